"""The examples of docs/integrations.md, and what is said where a library is missing."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convlens as cl

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("block", "left_behind"),
    [
        (0, "runs/watch-0001/report.html"),
        (1, "runs/watch-0001/run.db"),
        (2, "runs/watch-0001/run.db"),
        (3, "runs/watch-0001/run.db"),
        (4, "tb/mine/events.out.tfevents.*"),
    ],
    ids=["lightning", "skorch", "ignite", "transformers", "tensorboard"],
)
def test_an_example_runs(tmp_path, block, left_behind):
    assert len(BLOCKS) == 5
    exec(compile(BLOCKS[block], PAGE.name, "exec"), {"__name__": "__main__"})
    assert len(list(tmp_path.glob(left_behind))) == 1


LIBRARIES = ["Lightning", "skorch", "Ignite", "transformers", "TensorBoard"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_named(monkeypatch, library):
    name = library.lower()
    install = {"ignite": "pytorch-ignite", "transformers": "transformers accelerate"}
    missing = {"lightning", "lightning.pytorch", "pytorch_lightning", "tensorboard"}
    missing |= {"skorch.callbacks", "ignite.engine", "transformers"}
    for module in missing | {m for m in sys.modules if m.startswith("tensorboard.")}:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"convlens.integrations.{name}", raising=False)
    words = (
        rf"{name} needs {library}, which cannot be imported \(.+\); install it with: pip install"
    )
    with pytest.raises(cl.MissingLibraryError, match=rf"{words} {install.get(name, name)}"):
        importlib.import_module(f"convlens.integrations.{name}")


def test_writing_for_tensorboard_needs_no_torch():
    code = "import sys, convlens.integrations.tensorboard; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

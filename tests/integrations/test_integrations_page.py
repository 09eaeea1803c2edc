"""The examples of docs/integrations.md, as they stand there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("block", "left_behind"),
    [(0, "runs/watch-0001/report.html"), (1, "tb/mine/events.out.tfevents.*")],
    ids=["lightning", "tensorboard"],
)
def test_an_example_runs(tmp_path, block, left_behind):
    assert len(BLOCKS) == 2
    exec(compile(BLOCKS[block], PAGE.name, "exec"), {"__name__": "__main__"})
    assert len(list(tmp_path.glob(left_behind))) == 1

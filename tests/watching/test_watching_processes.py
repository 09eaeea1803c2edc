"""Watching in processes of their own: forked ones, and those that cannot write where they live."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest

import convlens
from convlens.watching.backends import numba_jit, numba_kernel

FORK = """
import faulthandler, os, sys, warnings
import torch
from torch import nn
import convlens as cl

warnings.simplefilter("ignore")  # of forking with threads, which is the point
assert torch.get_num_threads() == 2
# Small enough for torch to compute it without its own threads, which no fork has.
layer, x = nn.Linear(4, 4), torch.randn(8, 4)
stats = cl.watch(layer, run="mine").attach()
for _ in range(STEPS):
    layer(x)
if not INHERITED:
    stats.detach()
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(60, exit=True)
    status = 1
    try:
        if not INHERITED:
            stats = cl.watch(layer).attach()
        for _ in range(150):
            layer(x)
        stats.flush()
        found = len(stats[0])
        stats.detach()
        print("child", found, [note[:24] for note in stats.notes], flush=True)
        status = 0
    finally:
        os._exit(status)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
for _ in range(10):
    layer(x)
stats.detach()
run = cl.open_run("mine")
print("parent", len(stats[0]), len(run.activation_stats[0]), run.meta["status"], stats.notes)
"""


def run_script(folder, text, **options):
    (folder / "script.py").write_text(text)
    environment = {**os.environ, **options.pop("environment", {})}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, timeout=240,
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done


@pytest.mark.parametrize(("inherited", "steps"), [(False, 3), (True, 200)])
def test_a_fork_of_a_process_that_watched_with_two_threads(tmp_path, inherited, steps):
    text = FORK.replace("INHERITED", str(inherited)).replace("STEPS", str(steps))
    two = {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    child, parent = run_script(tmp_path, text, environment=two).stdout.splitlines()
    n = steps + 10 * inherited
    assert parent == f"parent {n} {n} finished ()"
    if not inherited:
        assert child == "child 150 []"
        return
    _, found, notes = child.split(" ", 2)
    assert notes == "['This process was forked ']"
    # Whole chunks of 64 may have been on their way in the thread that the child lacks.
    assert int(found) in [150 + steps - 64 * k for k in range(steps // 64 + 1)]


@pytest.fixture
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))


def compile_anew(kernel):
    """What is compiled on the first watched step, of one of the smaller kernels."""
    again = numba_jit.njit(nogil=True)(kernel.py_func)
    again(np.zeros(4, np.float32), 1.0)
    return again


@pytest.mark.usefixtures("_empty_cache")
def test_it_says_that_it_compiles_and_only_then(capsys):
    line = "convlens: compiling _sums (once on this machine) …\n"
    compile_anew(numba_kernel._sums)
    assert capsys.readouterr().err == line
    compile_anew(numba_kernel._sums)  # which is found in the cache
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_empty_cache")
def test_a_stderr_that_cannot_be_written_to_does_not_matter(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError("no space left")

    monkeypatch.setattr(sys, "stderr", Full())
    assert compile_anew(numba_kernel._sums).stats.cache_misses


@pytest.mark.usefixtures("_empty_cache")
def test_nothing_is_said_of_what_others_compile(capsys):
    numba.njit(lambda x: x + 1)(1)
    assert capsys.readouterr().err == ""


READONLY = """
import tempfile
TEMPORARY or setattr(tempfile, "tempdir", "/nonexistent")
import numpy as np
import convlens.watching
from convlens.watching.backends import numba_kernel
sums = np.zeros(4)
numba_kernel.add_batch_norm(*np.ones((4, 3), np.float32), 0.5, 0.5, sums)
print(sums.tolist(), numba_kernel.__file__)
"""


@pytest.fixture
def readonly():
    """A copy of the package that nobody can write to, in a folder that everybody can read."""
    folder = Path(tempfile.mkdtemp(prefix="convlens-readonly-"))
    shutil.copytree(
        Path(convlens.__file__).parent, folder / "lib" / "convlens",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    (folder / "tmp").mkdir()
    paths = [folder / "lib", *(folder / "lib").rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(folder)


# PR_CAPBSET_DROP and CAP_DAC_OVERRIDE of linux/prctl.h and capability.h: what is run then may write
# only where the mode says so, though it is root's.
WITHOUT_ROOT_RIGHTS = """
import ctypes, os, sys
assert os.getuid() or not ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "script.py"])
"""


@pytest.mark.parametrize("temporary", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_read_only_installation_and_home(readonly, temporary):
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")},
        "HOME": str(readonly / "lib"),
        "PYTHONPATH": str(readonly / "lib"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(readonly / "tmp"),
    }
    (readonly / "script.py").write_text(READONLY.replace("TEMPORARY", str(temporary)))
    for again in (False, True)[: 1 + temporary]:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_ROOT_RIGHTS], cwd=readonly, env=environment,
            timeout=240, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        kernels = readonly / "lib/convlens/watching/backends/numba_kernel.py"
        assert done.stdout == f"[1.0, 0.5, 1.0, 1.0] {kernels}\n"
        assert ("compiling add_batch_norm" in done.stderr) == (not again)
    assert bool(list((readonly / "tmp").glob("convlens-*"))) == temporary
    assert not list((readonly / "lib").rglob("__pycache__"))


@pytest.mark.parametrize("way", ["link", "mode"])
def test_a_cache_that_somebody_else_may_write_to_is_not_loaded(tmp_path, monkeypatch, way):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    find = numba_jit._temporary_folder.__wrapped__
    own = find()
    assert own == tmp_path / f"convlens-{os.getuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    if way == "link":
        own.rmdir()
        (tmp_path / "theirs").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "theirs")
    else:
        own.chmod(0o777)
    assert find() is None

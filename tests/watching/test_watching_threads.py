"""The CPU kernel counts exactly under whatever threads there are.

Numba fixes its threading layer and its number of threads when a process first uses them, so each
case is a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import os
import sys
import threading
import warnings

import numba
import numpy as np
import torch
from torch import nn

import convlens as cl
from convlens.core.buckets import BucketLayout
from convlens.watching.backends import dispatch

EDGES, ZERO = BucketLayout().edges, BucketLayout().zero


def check(stats, outputs):
    x = np.stack([output.numpy().ravel() for output in outputs])
    history = stats[0]
    assert history.first_step.tolist() == list(range(len(x)))
    for column, values in zip(history.counts, x, strict=True):
        above = np.searchsorted(EDGES, values, side="right") - 1
        below = np.searchsorted(EDGES, values, side="left") - 1
        buckets = np.where(values > 0, above, np.where(values < 0, below, ZERO))
        expected = np.bincount(buckets, minlength=len(EDGES) - 1)
        np.testing.assert_array_equal(column, expected)
    np.testing.assert_array_equal(history.columns.near_zero, (abs(x) <= np.float32(0.05)).sum(1))
    np.testing.assert_allclose(history.mean, x.mean(1, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(history.std, x.std(1, dtype=np.float64), rtol=1e-9)


def watch_and_check(seed, steps=5):
    generator = torch.Generator().manual_seed(seed)
    layer, outputs = nn.Conv2d(1, 8, 3), []
    with cl.watch(layer) as stats, torch.no_grad():
        for _ in range(steps):
            outputs.append(layer(torch.randn(16, 1, 30, 30, generator=generator)).clone())
    assert outputs[0].numel() > 2 * dispatch.PARALLEL_VALUES
    check(stats, outputs)
"""


ONE = (
    COMMON
    + """
LINES
watch_and_check(0)
threads = dispatch.numba_threads()
print(threads, numba.threading_layer() if threads > 1 and torch.get_num_threads() > 1 else "none")
"""
)

SEVERAL = (
    ONE
    + """
failures = []


def work(seed):
    try:
        watch_and_check(seed, steps=40)
    except BaseException as error:
        failures.append(error)


workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert not failures, failures
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
child = os.fork()
if child == 0:
    status = 1
    try:
        torch.set_num_threads(1)  # torch's own threads are no better at surviving a fork
        watch_and_check(1)
        status = 0
    finally:
        os._exit(status)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
watch_and_check(2)
"""
)

LOADER = (
    COMMON
    + """
from torch.utils.data import DataLoader, Dataset


class Watched(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        watch_and_check(index)
        return index


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    if sys.argv[1] == "fork":
        watch_and_check(0)  # so that this process has threads which its forks lack
    loader = DataLoader(Watched(), 2, num_workers=2, multiprocessing_context=sys.argv[1])
    print(torch.cat(list(loader)).tolist())
"""
)


def run(folder, script, *arguments, **settings):
    (folder / "script.py").write_text(script)
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    two = {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    # pip puts libtbb there, and the loader looks there only if told.
    environment = {**clean, **two, "LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib"), **settings}
    done = subprocess.run(
        [sys.executable, "script.py", *arguments], cwd=folder, env=environment, timeout=240,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("omp", "2 omp"),
        pytest.param("workqueue", "1 none", marks=pytest.mark.slow),
        pytest.param("tbb", "2 tbb", marks=pytest.mark.slow),
    ],
)
def test_two_python_threads_and_a_fork_on_each_layer(tmp_path, layer, said):
    script = SEVERAL.replace("LINES", "")
    # On a busy machine TBB also writes that it could not join its threads before the fork.
    assert run(tmp_path, script, NUMBA_THREADING_LAYER=layer).splitlines()[0] == said


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_the_workers_of_a_data_loader(tmp_path, context):
    assert run(tmp_path, LOADER, context) == "[0, 1, 2, 3]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "lines", "said"),
    [
        ({}, "torch.set_num_threads(1)", "2 none"),
        ({"NUMBA_NUM_THREADS": "1"}, "torch.set_num_threads(2)", "1 none"),
        ({"NUMBA_NUM_THREADS": "2"}, "torch.set_num_threads(5)", "2 omp"),
        ({"OMP_NUM_THREADS": "1"}, "assert torch.get_num_threads() == 1", "2 none"),
    ],
)
def test_torch_and_numba_with_different_numbers_of_threads(tmp_path, settings, lines, said):
    script = ONE.replace("LINES", lines)
    assert run(tmp_path, script, NUMBA_THREADING_LAYER="omp", **settings) == said


@pytest.mark.slow
def test_a_layer_without_its_library_is_not_used(tmp_path):
    """Numba brings its part of the tbb layer along, but would raise when it finds no libtbb."""
    script = ONE.replace("LINES", "")
    said = run(tmp_path, script, NUMBA_THREADING_LAYER="tbb", LD_LIBRARY_PATH="")
    assert said in ("1 none", "2 tbb")  # 2 where the system has a libtbb of its own

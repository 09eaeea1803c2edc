"""The kernels against NumPy on the same values."""

import multiprocessing
import threading
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.core.buckets import BucketLayout
from convlens.watching.backends import dispatch, numba_kernel
from convlens.watching.backends.buffers import Buffers, buffer_device
from convlens.watching.backends.dispatch import Sketcher

LAYOUT = BucketLayout()
EPS = 0.05
KERNELS = ["numba", "plain"]


def sketch(x, axis=None, kernel="numba", threads=1, buffers=None, row=0):
    channels = 0 if axis is None else x.shape[axis]
    buffers = buffers or Buffers(2, LAYOUT, channels, torch.device("cpu"))
    if kernel == "plain":
        buffers.rows = []  # as on a device without a kernel of its own
    Sketcher(LAYOUT, EPS, threads=threads)(x, axis, buffers, row)
    steps = np.arange(row + 1)
    return buffers.take(steps, steps)


def expected_counts(x):
    """Bucket counts by searching the edges, the definition of the layout."""
    values = x[np.isfinite(x)].astype(np.float64)
    positive = LAYOUT.edges[LAYOUT.zero + 1 :]
    magnitude = np.searchsorted(positive, np.abs(values), side="right") - 1
    bucket = LAYOUT.zero + np.where(values < 0, -1, 1) * (magnitude + 1)
    bucket[values == 0] = LAYOUT.zero
    return np.bincount(bucket, minlength=LAYOUT.size)


def check(columns, x, axis):
    flat = x.double().numpy().ravel()
    wide = flat.astype(np.float64 if x.dtype == torch.float64 else np.float32)
    with np.errstate(invalid="ignore"):
        near, at_most = np.abs(wide) <= wide.dtype.type(EPS), wide <= wide.dtype.type(EPS)
    assert columns.near_zero[0] == near.sum()
    assert columns.at_most_eps[0] == at_most.sum()
    assert columns.n[0] == flat.size
    assert columns.nan[0] == np.isnan(flat).sum()
    assert columns.pos_inf[0] == np.isposinf(flat).sum()
    assert columns.neg_inf[0] == np.isneginf(flat).sum()
    np.testing.assert_array_equal(columns.counts[0], expected_counts(flat))
    if axis is not None:
        n = x.shape[axis]
        rows = np.moveaxis(x.double().numpy(), axis, 0).reshape(n, -1)
        beyond = np.moveaxis(~near.reshape(x.shape), axis, 0).reshape(n, -1)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(columns.positive[0], (rows > 0).any(axis=1))
        np.testing.assert_array_equal(columns.active[0], beyond.any(axis=1))
    finite = flat[np.isfinite(flat)]
    if not finite.size:
        assert np.isnan(columns.mean[0])
    elif np.abs(finite).max() < 1e150:  # beyond it squares leave float64
        scale = np.abs(finite).max()
        assert columns.mean[0] == pytest.approx(finite.mean(), rel=1e-6, abs=1e-7 * scale)
        std = np.sqrt(columns.m2[0] / finite.size)
        assert std == pytest.approx(finite.std(), rel=1e-6, abs=1e-7 * scale)


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 0.05, -0.05, 2.0**-32, 65536.0, -65536.0, 3e38, -3e38]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((64, 8, 14, 14), 1), ((64, 64, 2, 2), 1), ((37, 10), 1), ((5, 7, 3), 2), ((1,), None)],
)
def test_agrees_with_numpy(kernel, dtype, shape, axis):
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 - 1).to(dtype)
    check(sketch(x, axis, kernel), x, axis)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values(kernel, dtype):
    values = [*SPECIAL, float("nan"), float("inf"), float("-inf"), float("-inf")]
    x = torch.tensor(values, dtype=dtype).reshape(2, 8)
    check(sketch(x, 1, kernel), x, 1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_large_and_tiny_values(kernel, scale):
    torch.manual_seed(1)
    x = (torch.randn(4096 * 3 + 5) + 2) * scale
    check(sketch(x, None, kernel), x, None)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_large_mean_does_not_drown_a_small_deviation(kernel):
    torch.manual_seed(2)
    x = torch.randn(100_000, dtype=torch.float64) * 1e-3 + 1e6
    columns = sketch(x, None, kernel)
    assert np.sqrt(columns.m2[0] / x.numel()) == pytest.approx(x.numpy().std(), rel=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_tensor(kernel):
    columns = sketch(torch.zeros(0, 4, 3, 3), 1, kernel)
    assert columns.calls[0] == 1
    assert columns.n[0] == 0
    assert np.isnan(columns.mean[0])


def layouts(x):
    yield x
    yield x.to(memory_format=torch.channels_last)
    yield x.transpose(2, 3)
    yield x[:, ::2]
    yield x[..., 1:]
    yield x[::2].to(memory_format=torch.channels_last)[:, :, 1:]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [3, 9])
def test_every_memory_layout(kernel, size):
    torch.manual_seed(3)
    for x in layouts(torch.randn(6, 8, size, size)):
        check(sketch(x, 1, kernel), x.contiguous(), 1)


def test_channels_last_is_read_in_place():
    x = torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last)
    flat, inner = dispatch.flatten(x, 1)
    assert flat.data_ptr() == x.data_ptr()
    assert inner == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_calls_add_up(kernel):
    torch.manual_seed(4)
    a, b = torch.randn(16, 4, 6, 6), torch.randn(8, 4, 6, 6) * 5 + 3
    buffers = Buffers(2, LAYOUT, 4, torch.device("cpu"))
    sketch(a, 1, kernel, buffers=buffers)
    columns = sketch(b, 1, kernel, buffers=buffers)
    assert columns.calls[0] == 2
    check(columns, torch.cat([a, b]), 1)


def bits_of(dtype):
    """Every value of a dtype, as integers of its size."""
    return {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}[dtype]


@st.composite
def tensors(draw):
    """Tensors of any shape, strides and dtype, of arbitrary bits and special values."""
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = int(np.prod(shape)) * 4
    if draw(st.booleans()):
        size = bits_of(dtype)
        bits = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, n, np.int64))
        whole = bits.to({16: torch.int16, 32: torch.int32, 64: torch.int64}[size]).view(dtype)
    else:
        whole = torch.from_numpy(rng.normal(0, 10.0 ** rng.integers(-3, 4), n)).to(dtype)
    info = torch.finfo(dtype)
    eps = torch.tensor(EPS, dtype=dtype).item()
    special = [*SPECIAL, eps, -eps, info.max, info.min, info.tiny, -info.smallest_normal / 2]
    special += [float("nan"), float("inf"), float("-inf")]
    chosen = torch.tensor(rng.choice(special, n), dtype=torch.float64).to(dtype)
    share = draw(st.sampled_from([0.0, 0.02, 0.7]))
    whole = torch.where(torch.from_numpy(rng.random(n) < share), chosen, whole)
    return strided(draw, whole, shape)


def strided(draw, whole, shape):
    """A view of a shape on some values, in one of many ways."""
    n = int(np.prod(shape))
    way = draw(st.sampled_from(["plain", "turned", "steps", "expanded", "last", "offset"]))
    if way == "turned":
        order = draw(st.permutations(range(len(shape))))
        return whole[:n].reshape([shape[i] for i in order]).permute(np.argsort(order).tolist())
    if way == "steps":
        axis = draw(st.integers(0, len(shape) - 1))
        doubled = [size * (1 + (i == axis)) for i, size in enumerate(shape)]
        begin = [slice(None)] * axis
        return whole[: 2 * n].reshape(doubled)[(*begin, slice(1, None, 2))]
    if way == "expanded":
        axis = draw(st.integers(0, len(shape) - 1))
        one = [1 if i == axis else size for i, size in enumerate(shape)]
        return whole[: int(np.prod(one))].reshape(one).expand(shape)
    x = whole[3 : 3 + n].reshape(shape) if way == "offset" else whole[:n].reshape(shape)
    if way == "last" and len(shape) in (4, 5):
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        x = x.contiguous(memory_format=last)
    return x


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tensors(), st.sampled_from(KERNELS), st.data())
def test_any_shape_strides_dtype_and_bits(x, kernel, data):
    axis = data.draw(st.sampled_from([None, *range(x.ndim)]))
    check(sketch(x, axis, kernel), x, axis)


def test_threads_give_the_same_counts(two_threads):
    torch.manual_seed(5)
    x = torch.randn(256, 8, 14, 14)
    one = sketch(x, 1, threads=1)
    with mock.patch.object(
        numba_kernel, "sketch_parallel", wraps=numba_kernel.sketch_parallel
    ) as parallel:
        two = sketch(x, 1, threads=2)
    parallel.assert_called_once()
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_array_equal(one.active, two.active)
    assert two.mean[0] == pytest.approx(one.mean[0], rel=1e-12, abs=1e-12)
    check(two, x, 1)


def test_two_python_threads_at_the_same_time(two_threads):
    torch.manual_seed(6)
    x = torch.randn(128, 8, 14, 14)
    results = []

    def work():
        results.extend(sketch(x, 1, threads=2) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 40
    for columns in results:
        np.testing.assert_array_equal(columns.counts, results[0].counts)


def _in_child(sketcher, x, queue):
    buffers = Buffers(1, LAYOUT, 0, torch.device("cpu"))
    sketcher(x, None, buffers, 0)
    queue.put(int(buffers.counts.sum()))


def _fresh_in_child(x, queue):
    _in_child(Sketcher(LAYOUT, EPS, threads=2), x, queue)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("fresh", [False, True])
def test_after_a_fork(two_threads, fresh):
    x, context = torch.linspace(-1, 1, 50_000), multiprocessing.get_context("fork")
    sketcher, queue = Sketcher(LAYOUT, EPS), context.SimpleQueue()
    _in_child(sketcher, x, multiprocessing.SimpleQueue())  # the parent has used its threads
    target, arguments = (_fresh_in_child, (x,)) if fresh else (_in_child, (sketcher, x))
    child = context.Process(target=target, args=(*arguments, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == 50_000


@pytest.mark.parametrize(
    ("wanted", "there", "threads"),
    [
        ("workqueue", ["tbb", "omp"], 1),
        ("omp", ["omp"], 2),
        ("omp", ["tbb"], 1),
        ("tbb", ["omp"], 1),  # Numba would raise: its own tbbpool is there, libtbb is not
        ("TBB", ["tbb"], 2),
        ("default", ["omp"], 2),
        ("default", [], 1),
        ("safe", ["omp", "tbb"], 1),  # not supported
    ],
)
def test_numba_threads_only_on_a_safe_layer(monkeypatch, wanted, there, threads):
    def loaded(name):
        if name.removeprefix("numba.np.ufunc.").removesuffix("pool") not in there:
            raise ImportError(name)

    monkeypatch.setattr("numba.core.config.THREADING_LAYER", wanted)
    monkeypatch.setattr("numba.core.config.NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(dispatch, "import_module", loaded)
    assert dispatch.numba_threads() == threads


def test_a_workqueue_that_comes_first_is_the_one(monkeypatch):
    monkeypatch.setattr("numba.core.config.THREADING_LAYER", "default")
    monkeypatch.setattr("numba.core.config.THREADING_LAYER_PRIORITY", ["workqueue", "omp", "tbb"])
    assert dispatch.numba_threads() == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_layer_that_changes_its_channels_is_counted_without_them(kernel):
    buffers = Buffers(1, LAYOUT, 4, torch.device("cpu"))
    columns = sketch(torch.ones(2, 3), 1, kernel, buffers=buffers)
    assert columns.n[0] == 6
    assert columns.positive.all()  # so that none is said to be dead
    assert columns.active.all()


@pytest.mark.parametrize("row", [0, 2, -1])
def test_a_row_known_on_the_device(row):
    """The plain kernel and the CPU's find it in a tensor, -1 for none."""
    x, cursor = torch.randn(6, 5, 4), torch.tensor([row])
    by_tensor, plain, expected = (Buffers(3, LAYOUT, 5, torch.device("cpu")) for _ in range(3))
    plain.rows = []
    sketcher = Sketcher(LAYOUT, EPS, threads=1)
    for _ in range(2):
        sketcher(x, 1, by_tensor, 1, cursor)
        sketcher(x, 1, plain, 1, cursor)
        sketcher(x, 1, expected, row)
    for found in (by_tensor, plain):
        for name in ("counts", "exact", "flags"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        torch.testing.assert_close(found.moments, expected.moments)
    assert expected.exact[:, 0].sum() == (2 if row >= 0 else 0)


def test_where_there_is_no_float64_buffers_lie_on_the_host():
    assert buffer_device(torch.device("mps")) == torch.device("cpu")
    for device in ("cpu", "cuda:1", "xpu"):
        assert buffer_device(torch.device(device)) == torch.device(device)

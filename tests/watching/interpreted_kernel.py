"""The Triton kernel against NumPy and the CPU kernel, in Triton's interpreter, so without a GPU.

`test_watching_gpu.py` runs this file in a process of its own, because the interpreter has to be
chosen before Triton is imported: ``TRITON_INTERPRET=1 pytest tests/watching/interpreted_kernel.py``
"""

import os
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convlens.core.buckets import BucketLayout
from convlens.watching.backends import cuda, plain_torch
from convlens.watching.backends.buffers import Buffers
from convlens.watching.backends.dispatch import Sketcher, flatten

assert os.environ.get("TRITON_INTERPRET") == "1", "run this with TRITON_INTERPRET=1"

LAYOUT = BucketLayout()
LOW = (127 + LAYOUT.min_exponent) << LAYOUT.mantissa_bits
CPU = torch.device("cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 0.05, -0.05, 2.0**-32, 65536.0, -65536.0, 3e38, -3e38]
STRANGE = [float("nan"), float("inf"), float("-inf")]


def buffers_for(x, axis, rows=3):
    channels = 0 if axis is None else x.shape[axis]
    return Buffers(rows, LAYOUT, channels, CPU), cuda.Scratch(channels, CPU)


def add(x, axis, buffers, scratch, row, eps=0.05):
    flat, inner = flatten(x, axis)
    channels = 0 if axis is None else x.shape[axis]
    cursor = torch.tensor([row])
    # NumPy, which computes for the interpreter, warns of what a GPU does in silence.
    with np.errstate(over="ignore", invalid="ignore"):
        cuda.sketch(flat, inner, channels, eps, buffers, cursor, scratch)


def sketch(x, axis=None, eps=0.05):
    buffers, scratch = buffers_for(x, axis)
    add(x, axis, buffers, scratch, 1, eps)
    assert not scratch.seen.any()
    assert not scratch.done.any()
    return buffers


def reference(x, axis=None, eps=0.05, kernel="numba"):
    buffers, _ = buffers_for(x, axis)
    if kernel == "numba":
        Sketcher(LAYOUT, eps, threads=1)(x, axis, buffers, 1)
    else:
        plain_torch.sketch(x, axis, eps, LOW, buffers, torch.tensor([1]))
    return buffers


def check(x, axis=None, eps=0.05):
    """The same integers as both other kernels, and the moments of NumPy."""
    ours = sketch(x, axis, eps)
    for kernel in ("numba", "plain"):
        theirs = reference(x, axis, eps, kernel)
        for name in ("counts", "exact", "flags"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (kernel, name)
    values = x.double().numpy().ravel()
    values = values[np.isfinite(values)]
    n, mean, m2 = ours.moments[1].tolist()
    assert n == values.size
    # Beyond 1e150 the squares leave float64, in NumPy too.
    if values.size and np.abs(values).max() < 1e150:
        scale = np.abs(values).max()
        assert mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-14 * scale)
        assert np.sqrt(m2 / n) == pytest.approx(values.std(), rel=1e-9, abs=1e-14 * scale)


SHAPES = [
    ((4, 8, 14, 14), 1),
    ((64, 8, 2, 2), 1),
    ((3, 70, 9, 9), 1),
    ((37, 10), 1),
    ((40, 130), 1),
    ((5, 7, 3), 2),
    ((2, 3, 4), 0),
    ((1,), None),
    ((), None),
    ((9001,), None),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_agrees(shape, axis):
    torch.manual_seed(0)
    for dtype in DTYPES if shape in ((37, 10), ()) else [torch.float32]:
        x = (torch.randn(shape) * 3 - 1).to(dtype)
        check(x, axis)
        if x.ndim == 4:
            check(x.to(memory_format=torch.channels_last), axis)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype):
    for eps in (0.0, 1e-45, 0.05, 1e38, float("inf")):
        check(torch.tensor([*SPECIAL, *STRANGE, -torch.inf]).to(dtype).reshape(2, 8), 1, eps)


def test_float64_beyond_the_range_of_float32():
    check(torch.tensor([1e300, -1e300, 1e-300, -1e-300, 5e-324, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e30])
def test_large_and_tiny_values(scale):
    torch.manual_seed(1)
    check((torch.randn(9000) + 2) * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_mean_does_not_drown_a_small_deviation(dtype):
    torch.manual_seed(2)
    x = (torch.randn(20_000, dtype=torch.float64) * (1 if dtype == torch.float32 else 1e-3)) + 1e6
    x = x.to(dtype)
    _, mean, m2 = sketch(x).moments[1].tolist()
    assert mean == pytest.approx(x.double().mean().item(), rel=1e-15)
    assert np.sqrt(m2 / x.numel()) == pytest.approx(x.double().numpy().std(), rel=1e-9)


def test_the_shift_is_found_after_values_that_are_not_finite():
    x = torch.full((40_000,), torch.nan, dtype=torch.float64)
    torch.manual_seed(3)
    x[30_000:] = torch.randn(10_000, dtype=torch.float64) * 1e-3 + 1e6
    check(x)
    _, _, m2 = sketch(x).moments[1].tolist()
    assert np.sqrt(m2 / 10_000) == pytest.approx(x[30_000:].numpy().std(), rel=1e-9)


@pytest.mark.parametrize("value", [0.1, -1e6, 3e38])
def test_equal_values_have_no_deviation(value):
    buffers, scratch = buffers_for(torch.ones(1), None)
    for n in (20_000, 7):
        add(torch.full((n,), value), None, buffers, scratch, 1)
    n, mean, m2 = buffers.moments[1].tolist()
    assert (n, mean, m2) == (20_007, torch.tensor(value).double().item(), 0.0)


def test_empty_tensor():
    buffers = sketch(torch.zeros(0, 4, 3, 3), 1)
    assert buffers.exact[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert not buffers.counts.any()
    assert not buffers.moments.any()


def layouts(x):
    yield x
    yield x.to(memory_format=torch.channels_last)
    yield x.transpose(2, 3)
    yield x[:, ::2]
    yield x[..., 1:]
    yield x[::2].to(memory_format=torch.channels_last)[:, :, 1:]
    yield x[:1, :, :1, :1].expand(3, -1, 5, 5)


@pytest.mark.parametrize("size", [3, 9])
def test_every_memory_layout(size):
    torch.manual_seed(4)
    for x in layouts(torch.randn(6, 8, size, size)):
        check(x, 1)


def test_calls_add_up_and_other_rows_stay_empty():
    torch.manual_seed(5)
    a, b = torch.randn(16, 4, 6, 6), torch.randn(80, 4, 6, 6) * 5 + 3
    buffers, scratch = buffers_for(a, 1)
    for x in (a, b):
        add(x, 1, buffers, scratch, 1)
    both = reference(torch.cat([a, b]), 1)
    assert buffers.exact[1].tolist() == [2, *both.exact[1, 1:].tolist()]
    assert torch.equal(buffers.counts, both.counts)
    assert torch.equal(buffers.flags, both.flags)
    torch.testing.assert_close(buffers.moments[1], both.moments[1], rtol=1e-12, atol=0)
    for tensor in (buffers.counts, buffers.exact, buffers.moments, buffers.flags):
        assert not tensor[[0, 2]].any()


@pytest.mark.parametrize("row", [-1, 3, 2**40])
def test_a_cursor_that_is_no_row_adds_nothing(row):
    x = torch.randn(4, 3, 2, 2)
    buffers, scratch = buffers_for(x, 1)
    add(x, 1, buffers, scratch, row)
    for tensor in (buffers.counts, buffers.exact, buffers.moments, buffers.flags):
        assert not tensor.any()
    assert not scratch.done.any()


@pytest.mark.parametrize("axis", [1, None])
@pytest.mark.parametrize("programs", [1, 3])
def test_any_number_of_programs(programs, axis):
    torch.manual_seed(6)
    x = torch.randn(20, 70, 4, 3)
    with mock.patch.object(cuda, "_programs_at_once", return_value=programs):
        check(x, axis)
        check(x.to(memory_format=torch.channels_last), axis)


@pytest.mark.parametrize("shape", [(90, 3, 5, 5), (3, 100, 4, 4), (2, 700)])
@pytest.mark.parametrize("value", [0.01, torch.nan])
def test_one_value_alone_in_its_channel(shape, value):
    n = int(np.prod(shape))
    for where in (n // 3, n - 1):
        x = torch.full(shape, -0.01)
        x.view(-1)[where] = value
        check(x, 1)


def test_wide_arithmetic_gives_the_same():
    torch.manual_seed(7)
    x = torch.randn(5, 70, 3, 3)
    narrow, run = sketch(x, 1), []

    class Wide:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                assert arguments[WIDE] is False
                run.append(grid)
                changed = [*arguments[:WIDE], True, *arguments[WIDE + 1 :]]
                gpu_kernel[grid](*changed, **options)

            return launch

    gpu_kernel = cuda.sketch_kernel
    WIDE = gpu_kernel.arg_names.index("wide")  # noqa: N806
    with mock.patch.object(cuda, "sketch_kernel", Wide()):
        wide = sketch(x, 1)
    assert run
    for name in ("counts", "exact", "moments", "flags"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name))


shapes = st.one_of(
    st.tuples(st.integers(0, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    strange=st.lists(st.sampled_from([*SPECIAL, *STRANGE]), max_size=30),
    step=st.integers(1, 3),
    last=st.booleans(),
    with_channels=st.booleans(),
)
def test_any_tensor(shape, dtype, seed, scale, strange, step, last, with_channels):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * scale
    if x.numel():
        places = torch.randint(x.numel(), (len(strange),), generator=generator)
        x.view(-1)[places] = torch.tensor(strange)
    x = x.to(dtype)
    if last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    check(x[::step], 1 if with_channels else None)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.one_of(st.floats(width=32), st.sampled_from(SPECIAL)), min_size=1, max_size=200),
    st.floats(0, 2, width=32),
    st.integers(1, 7),
)
def test_any_values(values, eps, channels):
    n = max(1, len(values) // channels)
    check(torch.tensor((values * channels)[: n * channels]).reshape(n, channels), 1, eps)

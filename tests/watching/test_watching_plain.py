"""The plain kernel where it differs from the others: no float64, and a row known on the device."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convlens.core.columns import BucketLayout
from convlens.watching.backends import plain
from convlens.watching.backends.buffers import Buffers

LAYOUT = BucketLayout()
LOW = (127 + LAYOUT.min_exponent) << LAYOUT.mantissa_bits
CPU = torch.device("cpu")


class NoDoubles(TorchDispatchMode):
    """Raises where an MPS device would: at any float64, and at scattering 64-bit integers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (out, *args):
            if isinstance(tensor, torch.Tensor):
                assert tensor.dtype != torch.float64, func
        if "scatter" in str(func):
            assert args[0].dtype != torch.int64, func
        return out


def single(*tensors, rows=2, row=1):
    """The moments and buffers of an MPS device, in memory of the CPU."""
    buffers = Buffers(rows, LAYOUT, 0, CPU)
    width, dtype = plain.moments_kind(torch.device("mps"))
    buffers.moments = torch.zeros(rows, width, dtype=dtype)
    with NoDoubles():
        for x in tensors:
            plain.sketch(x, None, 0.05, LOW, buffers, row)
    return plain.double_moments(buffers.moments.numpy(), buffers.counts.numpy())[row]


def check(*tensors):
    n, mean, m2 = single(*tensors)
    values = np.concatenate([x.double().numpy().ravel() for x in tensors])
    values = values[np.isfinite(values)]
    assert n == values.size
    scale = np.abs(values).max()
    assert mean == pytest.approx(values.mean(), rel=1e-6, abs=1e-7 * scale)
    assert np.sqrt(m2 / n) == pytest.approx(values.std(), rel=1e-6)
    return mean


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e18, 1e30, 1e37])
def test_large_and_tiny_values_without_float64(scale):
    check((torch.randn(12_293) + 2) * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_without_float64(dtype):
    check((torch.randn(5000) * 3 - 1).to(dtype), torch.randn(70).to(dtype))


def test_a_large_mean_keeps_its_deviation_and_its_last_digits():
    x, y = torch.randn(100_000) + 1e6, torch.randn(50_000) + 1e6
    mean = check(x, y)
    exact = torch.cat([x, y]).double().mean().item()
    assert abs(mean - exact) < 1e-6 < np.spacing(np.float32(exact))


def test_an_outlier_and_a_second_call_far_away():
    check(torch.cat([torch.randn(1_000_000), torch.tensor([1e4])]))
    check(torch.randn(1000) * 1e-3 + 1, torch.randn(1000) * 1e-3 + 1000)


def test_the_ends_of_the_range():
    check(torch.tensor([3.4e38, -3.4e38, 3e38, torch.nan, torch.inf, -torch.inf]))
    check(torch.tensor([3.4e38]), torch.tensor([-3.4e38]))


def test_equal_values_have_no_deviation_without_float64():
    n, mean, m2 = single(torch.full((1_000_003,), 0.1), torch.full((5,), 0.1))
    assert (n, m2) == (1_000_008, 0.0)
    assert mean == pytest.approx(0.1, rel=1e-7)


def test_nothing_finite_changes_nothing():
    x = torch.randn(500)
    alone = single(x)
    with_others = single(torch.full((9,), torch.nan), torch.zeros(0), x, torch.tensor([torch.inf]))
    np.testing.assert_array_equal(alone, with_others)


def test_only_mps_does_without_float64():
    assert plain.moments_kind(torch.device("mps")) == (plain.SINGLE_MOMENTS, torch.float32)
    for device in ("cpu", "cuda", "xpu"):
        assert plain.moments_kind(torch.device(device)) == (3, torch.float64)


@pytest.mark.parametrize("row", [0, 2, -1])
def test_a_row_known_on_the_device(row):
    x = torch.randn(6, 5, 4)
    by_tensor, by_number = Buffers(3, LAYOUT, 5, CPU), Buffers(3, LAYOUT, 5, CPU)
    for _ in range(2):
        plain.sketch(x, 1, 0.05, LOW, by_tensor, torch.tensor([row]))
        if row >= 0:
            plain.sketch(x, 1, 0.05, LOW, by_number, row)
    for name in ("counts", "exact", "moments", "flags"):
        assert torch.equal(getattr(by_tensor, name), getattr(by_number, name))
    assert by_tensor.exact[:, 0].sum() == (2 if row >= 0 else 0)

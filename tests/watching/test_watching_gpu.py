"""The Triton kernel: in Triton's interpreter, compiled for GPUs that are not here, and on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import coverage
import numpy as np
import pytest
import torch

from convlens.core.buckets import BucketLayout
from convlens.watching.backends.buffers import Buffers
from convlens.watching.backends.dispatch import Sketcher, flatten

triton = pytest.importorskip("triton", reason="Triton is made for Linux only")

from convlens.watching.backends import cuda  # noqa: E402
from convlens.watching.backends.triton_kernel import sketch_kernel  # noqa: E402

LAYOUT = BucketLayout()
ROOT = Path(__file__).parents[2]
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NAMES = ("counts", "exact", "flags")


def test_in_the_interpreter():
    """A process of its own, because Triton decides when it is imported."""
    program = ["-m", "pytest"]
    if coverage.Coverage.current() is not None:
        program = ["-m", "coverage", "run", *program]
    done = subprocess.run(
        [sys.executable, *program, "-q", "-p", "no:cacheprovider",
         "tests/watching/interpreted_kernel.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 35
    assert "skipped" not in done.stdout


TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


class Compiler:
    """Stands in for the kernel at its launch: compiles it for a GPU with the same arguments."""

    def __init__(self, arch):
        self.arch = arch
        self.compiled = None

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, **options):
        from triton.backends.compiler import GPUTarget

        signature, constants, attributes = {}, {}, {}
        for i, (p, value) in enumerate(zip(sketch_kernel.params, arguments, strict=True)):
            if p.is_constexpr:
                signature[p.name], constants[p.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                kinds = {torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", **TYPES}
                signature[p.name] = "*" + kinds[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[p.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if not p.do_not_specialize and value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(sketch_kernel, signature, constants, attributes)
        target = GPUTarget("cuda", self.arch, 32)
        self.compiled = triton.compile(source, target=target, options=options)


def compiled(monkeypatch, x, axis, arch):
    compiler = Compiler(arch)
    monkeypatch.setattr(cuda, "sketch_kernel", compiler)
    channels = 0 if axis is None else x.shape[axis]
    flat, inner = flatten(x, axis)
    buffers = Buffers(2, LAYOUT, channels, torch.device("cpu"))
    scratch = cuda.Scratch(channels, torch.device("cpu"))
    cuda.sketch(flat, inner, channels, 0.05, buffers, torch.tensor([0]), scratch)
    return compiler.compiled


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        (80, torch.float32),
        (90, torch.bfloat16),
        pytest.param(80, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(90, torch.float16, marks=pytest.mark.slow),
        pytest.param(90, torch.float32, marks=pytest.mark.slow),
        pytest.param(90, torch.float64, marks=pytest.mark.slow),
    ],
)
def test_compiles_for_gpus(monkeypatch, arch, dtype):
    """A100, H100 and H200; for values beside each other, channels in rows, and in columns."""
    x = torch.zeros(4, 64, 16, 16, dtype=dtype)
    for values, axis in ((x, None), (x, 1), (x.to(memory_format=torch.channels_last), 1)):
        kernel = compiled(monkeypatch, values, axis, arch)
        code = kernel.asm["ptx"]
        assert kernel.metadata.shared <= 16 << 10
        assert re.search(r"(atom|red)\.\S*shared\S*\.add\.u32", code), "counted in shared memory"
        assert "ftz" not in code  # small values are not zeros
        assert ".local" not in code


def test_compiles_for_more_than_2_to_the_31_values(monkeypatch):
    """On tensors that have a size and no memory."""
    for shape, memory in (
        ((2**31 + 4096,), torch.contiguous_format),
        ((2, 2, 2**15, 2**15), torch.contiguous_format),
        ((2**14, 2**10, 2**4, 2**4), torch.channels_last),
        ((2**12, 2**20), torch.contiguous_format),
    ):
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=memory)
        assert compiled(monkeypatch, x, None if x.ndim == 1 else 1, 90).asm["cubin"]


def test_half_precision_is_read_in_wide_words(monkeypatch):
    x = torch.zeros(4, 64, 16, 16, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    assert "ld.global.v4.b32" in compiled(monkeypatch, x, 1, 90).asm["ptx"]


def test_eps_is_rounded_to_the_type_that_is_compared():
    for dtype, wide in ((torch.float16, np.float32), (torch.float32, np.float32)):
        assert cuda.eps_pattern(0.05, dtype) == int(wide(0.05).view(np.int32))
    assert cuda.eps_pattern(0.05, torch.float64) == int(np.float64(0.05).view(np.int64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_benchmark_says_what_it_needs():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "benchmarks/gpu.py measures on a CUDA device, and torch finds none here; "
        "run it on a machine that has one.\n"
    )
    assert not done.stdout


# ---- on a GPU ------------------------------------------------------------------------------------


def agree(x, axis):
    """The kernel on the GPU against the one on the CPU."""
    channels = 0 if axis is None else x.shape[axis]
    ours = Buffers(2, LAYOUT, channels, x.device)
    scratch = cuda.Scratch(channels, x.device)
    flat, inner = flatten(x, axis)
    cursor = torch.ones(1, dtype=torch.int64, device=x.device)
    cuda.sketch(flat, inner, channels, 0.05, ours, cursor, scratch)
    theirs = Buffers(2, LAYOUT, channels, torch.device("cpu"))
    Sketcher(LAYOUT, 0.05)(x.cpu(), axis, theirs, 1)
    for name in NAMES:
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name
    torch.testing.assert_close(ours.moments.cpu(), theirs.moments, rtol=1e-9, atol=1e-9)
    return ours


class TestOnGpu:
    pytestmark = on_a_gpu

    @pytest.mark.parametrize("dtype", list(TYPES))
    @pytest.mark.parametrize(
        ("shape", "axis"),
        [((128, 64, 56, 56), 1), ((128, 512, 7, 7), 1), ((16, 3, 224, 224), 1), ((999, 1000), 1)],
    )
    def test_agrees(self, dtype, shape, axis):
        x = (torch.randn(shape, device="cuda") * 3 - 1).to(dtype)
        x.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        first = agree(x, axis)
        again = agree(x, axis)
        assert torch.equal(first.moments, again.moments), "the order of programs shows"
        if x.ndim == 4:
            agree(x.to(memory_format=torch.channels_last), axis)

    def test_more_than_2_to_the_31_values(self):
        x = torch.ones(2**31 + 4096, dtype=torch.bfloat16, device="cuda")
        x[-1] = 2.0
        buffers = Buffers(1, LAYOUT, 0, x.device)
        cursor = torch.zeros(1, dtype=torch.int64, device="cuda")
        scratch = cuda.Scratch(0, x.device)
        cuda.sketch(x, 1, 0, 0.05, buffers, cursor, scratch)
        assert sorted(buffers.counts[0].tolist())[-2:] == [1, 2**31 + 4095]

    def test_a_captured_graph_changes_rows(self):
        x = torch.randn(64, 32, 8, 8, device="cuda")
        buffers, scratch = Buffers(4, LAYOUT, 32, x.device), cuda.Scratch(32, x.device)
        cursor = torch.full((1,), -1, dtype=torch.int64, device="cuda")
        flat, inner = flatten(x, 1)

        def run():
            cuda.sketch(flat, inner, 32, 0.05, buffers, cursor, scratch)

        run()  # compiled before it is captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        for row in (0, 2, 3, 3):
            cursor.fill_(row)
            graph.replay()
        assert buffers.exact[:, 0].tolist() == [1, 0, 1, 2]
        assert torch.equal(buffers.counts[0], buffers.counts[2])
        assert torch.equal(2 * buffers.counts[0], buffers.counts[3])

"""Watching models that torch.compile has compiled, or will."""

import numpy as np
import pytest
import torch
from test_watching_watch import n_hooks, small_net, train
from torch import nn
from torch.nn import functional as F

import convlens as cl

BACKENDS = [
    pytest.param("eager", marks=pytest.mark.slow),
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.slow),
]
COUNTS = ("counts", "near_zero", "at_most_eps", "calls", "positive", "active")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def watched(model, run, steps=5, **options):
    with cl.watch(model, **options) as stats:
        train(run, steps)
    return stats


def assert_same(found, expected):
    """As many of everything; where compiled code rounds otherwise a value may change its bucket."""
    for name in expected:
        here, there = found[name], expected[name]
        np.testing.assert_array_equal(here.first_step, there.first_step)
        np.testing.assert_array_equal(here.calls, there.calls)
        np.testing.assert_array_equal(here.n, there.n)
        np.testing.assert_allclose(here.mean, there.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(here.std, there.std, rtol=1e-4)
        np.testing.assert_allclose(here.batch_mean, there.batch_mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(here.batch_var, there.batch_var, rtol=1e-3, atol=1e-5)
        assert abs(here.counts - there.counts).sum() <= 0.002 * there.counts.sum()
        np.testing.assert_array_equal(here.dead_channels, there.dead_channels)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_as_without_compiling(backend, when):
    plain = small_net()
    expected = watched(plain, plain, 70)
    model = small_net()
    if when == "before":
        stats = cl.watch(model).attach()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        train(compiled, 1)  # compiled for real, without hooks
        model.load_state_dict(small_net().state_dict())
        stats = cl.watch(compiled).attach()
    train(compiled, 70)
    stats.detach()
    assert stats.names == ["0", "2", "3", "6"]
    assert_same(stats, expected)
    assert n_hooks(model) == n_hooks(compiled) == 0


# Dynamo itself looks at .grad of what a compiled part is given, watched or not.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_only_a_part_is_compiled():
    plain, model = small_net(), small_net()
    expected = watched(plain, plain)
    model[3].compile(backend="aot_eager", fullgraph=True)
    assert_same(watched(model, model), expected)


def test_no_new_graph_after_the_first_steps():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with cl.watch(compiled) as stats, torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, 140)
    assert len(stats["0"]) == 140


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_batches_of_any_size(backend):
    model = small_net()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with cl.watch(compiled) as stats, torch._dynamo.config.patch(error_on_recompile=True):
        for n in (3, 5, 8, 13):
            train(compiled, 1, n)
    assert stats["0"].n.tolist() == [n * 4 * 36 for n in (3, 5, 8, 13)]


def test_evaluation_and_watching_every_third_step():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with cl.watch(model, every=3) as stats:
        train(compiled, 4)
        compiled.eval()
        compiled(torch.randn(2, 1, 12, 12))
        compiled.train()
        train(compiled, 3)
    assert stats["0"].first_step.tolist() == [0, 3, 6]
    assert stats["0"].calls.tolist() == [1, 1, 1]


def test_after_watching_nothing_is_counted_or_left():
    model = small_net()
    stats = cl.watch(model).attach()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    train(compiled, 2)
    stats.detach()
    train(compiled, 2)
    assert stats["0"].first_step.tolist() == [0, 1]
    again = watched(compiled, compiled, 3)
    assert again["0"].first_step.tolist() == [0, 1, 2]
    assert len(stats["0"]) == 2


def test_autocast():
    dtype = torch.bfloat16
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    seen = []
    with cl.watch(compiled) as stats, torch.autocast("cpu", dtype):
        model[0].register_forward_hook(lambda m, a, out: seen.append(out.dtype))
        train(compiled, 2)
    assert seen[0] == dtype
    assert stats["0"].n.tolist() == [6 * 4 * 36] * 2
    assert np.isfinite(stats["0"].mean).all()


def test_the_operator_as_torch_checks_operators():
    from convlens.core.buckets import BucketLayout
    from convlens.watching.backends.buffers import Buffers
    from convlens.watching.custom_ops import register

    register()
    buffers = Buffers(2, BucketLayout(), 3, torch.device("cpu"))
    cursor = torch.zeros(1, dtype=torch.int64)
    arguments = (torch.randn(4, 3), *buffers.sketched(), cursor, 1, 0, 0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.convlens.sketch_.default, arguments, test_utils=checks)


# ---- what was compiled before, and what is not seen ---------------------------------------------


def train_by(function, model, steps):
    """As `train` does, where a function calls the model."""

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return function(x)

    train(Called(), steps)


def test_a_step_function_that_ran_before():
    plain, model = small_net(), small_net()
    expected = watched(plain, plain)
    compiled = torch.compile(lambda x: model(x) + 0, backend="aot_eager")
    compiled(torch.randn(6, 1, 12, 12))
    model.load_state_dict(small_net().state_dict())
    with cl.watch(model) as stats:
        train_by(compiled, model, 5)
    assert_same(stats, expected)
    assert stats.notes == ()
    compiled(torch.randn(6, 1, 12, 12))
    assert len(stats["0"]) == 5


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_entered_around_compiled_parts(backend):
    """As a compiled training step of Lightning: `enter` comes from outside of the graph."""
    model = small_net()
    run = torch.compile(
        lambda x: model[4](model[3](model[2](model[1](model[0](x))))), backend=backend
    )
    with pytest.warns(cl.ConvlensWarning) as said, cl.watch(model, count_forwards=False) as stats:
        for number in range(3):
            stats.step(number)
            stats.enter()
            run(torch.randn(6, 1, 12, 12)).sum().backward()
            stats.leave()
    assert stats["3"].calls.tolist() == [1, 1, 1]
    assert np.isfinite(stats["2"].batch_var).all()
    assert [str(warning.message) for warning in said] == list(stats.notes)
    assert stats.notes[0].endswith("(all layers are compiled), so no dead channels are counted.")
    assert stats.notes[1].endswith("recorded: '6'.")


def test_which_layers_a_relu_follows_in_a_compiled_model_of_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x, y):
            return self.a(x).relu() + y

    model = Two()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    with cl.watch(run) as stats:
        run(torch.randn(3, 4), torch.randn(3, 4))
    assert stats["a"].layer.feeds_relu
    assert stats.notes == ()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("whole", "warmed"),
    [(False, False), (False, True), pytest.param(True, True, marks=pytest.mark.slow)],
)
def test_an_optimizer_that_is_compiled(whole, warmed):
    """The optimizer's step, or all of the training step."""
    model, plain = small_net(), small_net()
    with cl.watch(plain, gradients=True, updates=True) as expected:
        train(plain, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        F.cross_entropy(model(x), torch.arange(6) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()

    if whole:
        step = torch.compile(step, backend="aot_eager")
    else:
        optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    if warmed:
        step(torch.randn(6, 1, 12, 12))
        model.load_state_dict(small_net().state_dict())
    generator = torch.Generator().manual_seed(1)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for _ in range(3):
            step(torch.randn(6, 1, 12, 12, generator=generator))
    assert_same(stats, expected)
    for name in expected.gradients:
        found, true = stats.gradients[name], expected.gradients[name]
        assert found.first_step.tolist() == [0, 1, 2]
        np.testing.assert_allclose(found.norm, true.norm, rtol=1e-4, atol=1e-6)
        found, true = stats.updates[name].update, expected.updates[name].update
        np.testing.assert_allclose(found.norm, true.norm, rtol=1e-4, atol=1e-6)
    assert stats.notes == ()


def test_layers_without_parameters_of_a_compiled_model():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with cl.watch(compiled, "all") as stats:
        train(compiled, 2)
    assert [stats[name].calls.tolist() for name in stats] == [[1, 1]] * 7
    assert stats["1"].nonpositive[0] > 0.2
    assert stats.notes == ()


@pytest.mark.parametrize("mode", ["eval", "both"])
def test_evaluation_forwards_of_a_compiled_model(mode):
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with cl.watch(compiled, mode=mode) as stats:
        for training in (True, False, False):
            compiled.train(training)
            compiled(torch.randn(6, 1, 12, 12))
    assert stats["0"].first_step.tolist() == list(range(2 if mode == "eval" else 3))
    assert np.isnan(stats["2"].batch_var).tolist() == [False, True, True][3 - len(stats["2"]) :]
    assert np.isfinite(stats["2"].running_var).all()


def test_a_compiled_model_in_evaluation_is_said():
    model = small_net().eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.warns(cl.ConvlensWarning, match="Nothing was recorded"), cl.watch(compiled):
        compiled(torch.randn(6, 1, 12, 12))


def test_after_a_compiled_forward_nothing_outside_of_one_is_recorded():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with cl.watch(model) as stats:
        compiled(torch.randn(6, 1, 12, 12))
        model[0](torch.randn(6, 1, 12, 12))
    assert stats["0"].calls.tolist() == [1]


def test_a_compiled_operator_that_fails_ends_nothing():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    stats = cl.watch(compiled)

    def fails(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.warns(cl.ConvlensWarning, match="out of memory"), stats:
        stats.aggregator.kernel = fails
        train(compiled, 2)
    assert stats.notes[0].startswith("8 × activation left out, of '0', '2', '3' and 1 more")

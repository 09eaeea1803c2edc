"""Precision, accumulation, clipping, channels last and compiling of the loop."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl


def batches(sizes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 1, 6, 6, generator=draw), torch.randint(0, 3, (n,), generator=draw))
        for n in sizes
    ]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def learner(train, *callbacks, valid=None, run=None, model=None, **options):
    options.setdefault("optimizer", torch.optim.SGD)
    dls = cl.DataLoaders(train, valid, name="toy")
    model = net() if model is None else model
    return cl.Learner(dls, model, callbacks=callbacks, run=run, progress=False, **options)


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def test_accumulated_batches_are_one_batch_as_large():
    """Also uneven ones, and the smaller group that an epoch ends with."""
    parts = batches([6, 6, 2, 5, 4])
    groups = [parts[:2], parts[2:4], parts[4:]]
    whole = [tuple(torch.cat(part) for part in zip(*group, strict=True)) for group in groups]
    few = learner(whole, cl.GradientStats(), clip=0.5)
    few.fit_one_cycle(2, 0.05)
    many = learner(parts, cl.GradientStats(), cl.ActivationStats(), accumulate=2, clip=0.5)
    many.fit_one_cycle(2, 0.05)
    near = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(weights(many), weights(few), **near)
    assert many.n_steps == many.step == 6
    steps, expected = many.recorder.steps, few.recorder.steps
    np.testing.assert_allclose(steps.loss, expected.loss, **near)
    np.testing.assert_array_equal(steps.hypers["lr"], expected.hypers["lr"])
    ours, theirs = many.recorder.epochs[-1], few.recorder.epochs[-1]
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
    assert (ours.first_step, ours.last_step) == (3, 5)
    norms = [learn.gradient_stats["0.weight"] for learn in (many, few)]
    np.testing.assert_allclose(norms[0].norm, norms[1].norm, **near)
    assert norms[0].calls.tolist() == [1] * 6
    watched = many.activation_stats["0"]
    assert watched.first_step.tolist() == [0, 1, 2, 3, 4, 5]
    assert watched.n.tolist() == [n * 64 for n in (12, 7, 4)] * 2


def test_many_batches_for_a_step_are_no_training_without_an_optimizer():
    learn = learner(batches([2] * 120), cl.GradientStats(), accumulate=120)
    learn.fit(1, 0.01)  # a note would be a warning
    assert learn.gradient_stats[0].calls.tolist() == [1]


def test_events_and_cancelled_batches_of_a_group():
    class Skip(cl.Callback):
        steps = seen = 0

        def before_loss(self, learn):
            self.seen += 1
            if self.seen == 2:  # of the first group
                raise cl.CancelBatchError

        def after_step(self, learn):
            self.steps += 1

    parts = batches([4, 4, 4, 4])
    learn = learner(parts, Skip(), accumulate=2)
    learn.fit(1, 0.05)
    expected = learner([tuple(map(torch.cat, zip(parts[0], parts[2], strict=True))), parts[3]])
    expected.fit(1, 0.05)
    assert learn.skip.steps == 2
    torch.testing.assert_close(weights(learn), weights(expected))


def test_clipping_and_the_norm():
    class Norms(cl.Callback):
        def __init__(self):
            self.norms = []

        def after_step(self, learn):
            grads = [p.grad.flatten() for p in learn.model.parameters()]
            self.norms.append((float(learn.stepper.grad_norm), float(torch.cat(grads).norm())))

    learn = learner(batches([8] * 3), Norms(), clip=0.1)
    learn.fit(1, 0.01)
    for before, after in learn.norms.norms:
        assert before > 0.1
        assert after == pytest.approx(0.1, rel=1e-3)


def test_bf16_and_channels_last(tmp_path):
    class Look(cl.Callback):
        def after_loss(self, learn):
            self.seen = learn.output.dtype, learn.loss.dtype, learn.x.stride()
            assert not torch.is_autocast_enabled("cpu")

    data = batches([8] * 2)
    rgb = [(x.expand(-1, 3, -1, -1).contiguous(), y) for x, y in data]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    learn = learner(
        rgb, Look(), cl.ActivationStats(), valid=rgb, model=model, precision="bf16",
        channels_last=True, run=tmp_path / "run",
    )  # fmt: skip
    learn.fit(1, 0.01)
    dtype, of_loss, stride = learn.look.seen
    assert (dtype, of_loss, stride[1]) == (torch.bfloat16, torch.float32, 1)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert len(learn.activation_stats["0"].mean) == 2
    meta = cl.open_run(tmp_path / "run").meta
    facts = {"precision": "bf16", "accumulate": 1, "clip": None, "channels_last": True}
    assert facts.items() <= meta.items()
    assert meta["compile"] is False
    cl.load_checkpoint(tmp_path / "run" / "checkpoints", model)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_error_inside_autocast_leaves_nothing_behind(precision):
    def broken(output, y):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        learner(batches([4]), loss=broken, precision=precision).fit(1, 0.01)
    assert not torch.is_autocast_enabled("cpu")


# ---- fp16 ---------------------------------------------------------------------------------------


def small(output, y):
    """A loss whose gradients fit fp16 at the first scale."""
    return 0.01 * F.cross_entropy(output, y)


class Scaled(cl.Callback):
    """Multiplies the loss at some steps, so that its gradients overflow in fp16."""

    order = -50

    def __init__(self, steps, factor=1e9):
        self.steps, self.factor = steps, factor

    def after_loss(self, learn):
        if learn.training and learn.step in self.steps:
            learn.loss = learn.loss * self.factor


def test_an_overflow_of_fp16_skips_the_step_and_is_said(tmp_path):
    class Same(cl.Callback):
        def before_step(self, learn):
            self.before = weights(learn)

        def after_step(self, learn):
            same = torch.equal(self.before, weights(learn))
            self.same = [*getattr(self, "same", []), same]

    learn = learner(
        batches([8] * 6), Scaled({2}), Same(), cl.GradientStats(), cl.EMA(),
        precision="fp16", loss=small, run=tmp_path / "run",
    )  # fmt: skip
    with pytest.warns(cl.ConvlensWarning, match=r"Step 2 was skipped because a gradient overflow"):
        learn.fit(1, 0.01)
    assert learn.same.same == [False, False, True, False, False, False]
    assert (learn.overflows.n, learn.stepper.scale) == (1, 2.0**15)
    assert repr(learn.overflows) == "Overflows(1 skipped step)"
    assert learn.recorder.steps.step.tolist() == [0, 1, 2, 3, 4, 5]
    kept = np.delete(learn.recorder.steps.loss, 2)
    assert learn.recorder.epochs[0].train_loss == pytest.approx(kept.mean())
    assert learn.gradient_stats["0.weight"].first_step.tolist() == [0, 1, 3, 4, 5]
    assert learn.gradient_stats["0.weight"].norm.max() < 10  # without the scale
    assert "nonfinite-loss" not in [finding.kind for finding in learn.diagnose()]
    meta = cl.open_run(tmp_path / "run").meta
    assert (meta["skipped_steps"], meta["status"]) == (1, "finished")


def test_a_loss_that_overflows_once_is_no_divergence():
    class Large(cl.Callback):
        def before_batch(self, learn):
            if learn.training and learn.step == 1:
                learn.x = learn.x * 1e6

    learn = learner(batches([8] * 25), Large(), cl.ActivationStats(), loss=small, precision="fp16")
    with pytest.warns(cl.ConvlensWarning, match="Step 1 was skipped"):
        learn.fit(1, 0.01)
    assert not np.isfinite(learn.recorder.steps.loss[1])
    assert np.isfinite(learn.recorder.epochs[0].train_loss)
    assert not [finding for finding in learn.diagnose() if finding.kind.startswith("nonfinite")]


def test_a_training_that_only_skips_is_ended():
    def lost(output, y):
        return output.sum() * torch.nan

    learn = learner(batches([4] * 40), loss=lost, precision="fp16")
    before = weights(learn)
    with (
        pytest.warns(cl.ConvlensWarning, match="Step 0 was skipped"),
        pytest.raises(
            cl.NonFiniteLossError,
            match=r"not finite in the last 30 steps, up to step 29 .* so it is the loss function",
        ),
    ):
        learn.fit(1, 0.01)
    assert torch.equal(before, weights(learn))


# ---- compile ------------------------------------------------------------------------------------


def test_compiled(monkeypatch, tmp_path):
    """With another backend than the default, which takes a compiler and its time."""
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiling(model, backend="aot_eager"))
    data = batches([8] * 3)
    plain = learner(data, cl.ActivationStats(), valid=data)
    plain.fit(1, 0.05)
    model = net()
    learn = learner(
        data, cl.ActivationStats(), valid=data, model=model, compile=True, run=tmp_path / "run"
    )
    learn.fit(1, 0.05)
    assert learn.model is model
    torch.testing.assert_close(weights(learn), weights(plain))
    ours, theirs = learn.activation_stats["0"], plain.activation_stats["0"]
    assert ours.n.tolist() == theirs.n.tolist()
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-4)
    cl.load_checkpoint(tmp_path / "run" / "checkpoints", net())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch._dynamo.reset()


def test_a_compiler_that_fails_is_said(monkeypatch):
    def backend(graph, inputs):
        raise OSError("no compiler here")

    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiling(model, backend=backend))
    with pytest.raises(cl.TrainingError, match=r"compile=True: torch.compile failed .*; give comp"):
        learner(batches([4]), compile=True).fit(1, 0.01)
    torch._dynamo.reset()


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"precision": "bf61"},
            r"precision must be one of 'fp32', 'bf16', 'fp16', got 'bf61'. Closest: 'bf16'",
        ),
        ({"accumulate": 0}, r"accumulate must be a whole number of at least 1, got 0"),
        ({"accumulate": 1.5}, r"accumulate must be a whole number of at least 1, got 1.5"),
        ({"clip": 0}, r"clip must be the largest norm of the gradients, .* got 0"),
        ({"clip": "1"}, r"clip must be the largest norm of the gradients, .* got '1'"),
        ({"channels_last": 1}, r"channels_last must be True or False, got 1"),
        ({"compile": "yes"}, r"compile must be True or False, got 'yes'"),
    ],
)
def test_arguments_that_cannot_work(options, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        learner(batches([4]), **options)


def test_bfloat16_is_refused_where_torchs_gradients_are_wrong():
    def learner(size):
        dls = cl.from_arrays(torch.rand(8, 1, size, size), [0, 1] * 4, layout="NCHW", device="cpu")
        return cl.Learner(
            dls, cl.simple_cnn(1, 2, norm="batch"), precision="bf16", run=None, progress=False
        )

    with pytest.raises(cl.ArgumentError, match=r"with the layer '4\.0': its input has one pixel"):
        learner(16).fit(1)
    learn = learner(17)
    learn.fit(1)
    assert all(parameter.isfinite().all() for parameter in learn.model.parameters())

"""`learn.lr_find`: what it suggests, and that everything is as before."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import convlens as cl
from convlens.data import DataLoaders, TensorLoader
from convlens.train.lr_finding import LRFinding
from convlens.train.lr_suggestions import smoothed_losses, valley_of


def images(n: int = 64) -> tuple[Tensor, Tensor]:
    """Images whose class is how bright a half of them is."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 2
    x[:, :, :4] += y.view(-1, 1, 1, 1) * 2.0 - 1.0
    return x, y


class Forgetful(nn.Module):
    """Everything that a forward pass may change: buffers, caches, counters, all random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(36, 2),
        )  # fmt: skip
        self.still = nn.BatchNorm2d(1).eval()
        self.register_buffer("seen", torch.zeros(1))
        self.calls, self.cache = 0, [torch.zeros(2)]
        self.generator = torch.Generator().manual_seed(3)
        self.zeros = nn.Parameter(torch.tensor([-0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen += 1
            self.cache[0] = x.mean((0, 1, 2)).detach()
            noise = torch.randn(1, generator=self.generator) + random.random()
            x = x + 0.01 * float(noise + np.random.rand())  # noqa: NPY002
        return self.net(x) + self.zeros


def loader(kind: str) -> Any:
    x, y = images()
    if kind == "tensors":
        return TensorLoader(x, y, batch_size=16, shuffle=True)
    data = TensorDataset(x, y)
    generator = torch.Generator().manual_seed(5)
    if kind == "workers":
        return DataLoader(
            data, 16, shuffle=True, num_workers=1, persistent_workers=True, generator=generator
        )
    return DataLoader(data, 16, shuffle=True, generator=generator if kind == "own" else None)


def learner(kind: str = "tensors", optimizer: Any = torch.optim.AdamW, **settings: Any) -> Any:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = settings.pop("model", None) or Forgetful()
    dls = settings.pop("dls", None) or DataLoaders(loader(kind))
    return cl.Learner(dls, model, optimizer=optimizer, run=None, progress=False, **settings)


def bits(thing: Any) -> Any:
    """Whatever it is, so that it can be compared bit for bit."""
    if isinstance(thing, Tensor):
        return str(thing.dtype), thing.detach().numpy().tobytes()
    if isinstance(thing, dict):
        return {str(key): bits(value) for key, value in thing.items()}
    return [bits(value) for value in thing] if isinstance(thing, list | tuple) else thing


def state(learn: cl.Learner) -> dict[str, Any]:
    """Everything that a fit depends on, or leaves behind."""
    own = {name: value for name, value in vars(learn).items() if not isinstance(value, Tensor)}
    optimizer = learn._optimizer
    model: Any = learn.model
    return {
        "attributes": {name: (id(value), repr(value)) for name, value in own.items()},
        "model": bits(model.state_dict()),
        "extra": (model.calls, bits(model.cache), bits(model.generator.get_state())),
        "modes": [module.training for module in model.modules()],
        "gradients": [p.grad if p.grad is None else bits(p.grad) for p in model.parameters()],
        "parameters": [(id(p), p.data_ptr()) for p in model.parameters()],
        "optimizer": optimizer and bits(optimizer.state_dict()),
        "groups": optimizer and [id(group) for group in optimizer.param_groups],
        "random": (bits(torch.get_rng_state()), random.getstate()),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "recorded": (len(learn.recorder.steps), learn.recorder.steps.loss.tolist()),
    }  # fmt: skip


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        assert value == after[name], name


@pytest.mark.parametrize("kind", ["tensors", "own", "global"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9)])
def test_everything_is_as_before(kind: str, optimizer: Any) -> None:
    learn, other = learner(kind, optimizer), learner(kind, optimizer)
    other = learner(kind, optimizer)  # both begin with the same random numbers
    begun = bits(torch.get_rng_state()), random.getstate(), np.random.get_state()  # noqa: NPY002
    losses: list[list[float]] = []
    for each, finds in ((other, False), (learn, True)):
        torch.manual_seed(7)
        random.setstate(begun[1])
        np.random.set_state(begun[2])  # noqa: NPY002
        found: list[float] = []
        for _ in range(2):
            if finds:
                before = state(each)
                each.lr_find(n_steps=30)
                assert_same(before, state(each))
            each.fit_one_cycle(2, 0.01)
            found += each.recorder.steps.loss.tolist()
        losses.append(found)
    assert losses[0] == losses[1]
    assert_same(
        {name: state(other)[name] for name in ("model", "optimizer", "extra", "random", "numpy")},
        state(learn),
    )


def test_gradients_that_were_there_stay() -> None:
    learn = learner()
    learn.model(images(4)[0]).sum().backward()
    before = state(learn)
    learn.lr_find(n_steps=5)
    assert_same(before, state(learn))


class Broken(Forgetful):
    """Fails at its fifth call in training."""

    def __init__(self, failure: Any) -> None:
        super().__init__()
        self.failure = failure

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.calls == 12:
            self.failure()
        return super().forward(x)


def fail() -> None:
    raise ZeroDivisionError("on purpose")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("failure", "error"), [(fail, ZeroDivisionError), (interrupt, KeyboardInterrupt)]
)
def test_everything_is_as_before_after_an_error(failure: Any, error: Any) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        learn = learner(model=Broken(failure))
        learn.fit(2, 0.01)
        before = state(learn)
        with pytest.raises(error):
            learn.lr_find(n_steps=30)
        assert_same(before, state(learn))
    finally:
        signal.signal(signal.SIGINT, handler)


def test_ctrl_c_while_things_are_put_back_waits() -> None:
    class Late(list[int]):
        """Interrupts where it is restored."""

        def clear(self) -> None:
            if self[0] == 1:
                self[0] = 2
                raise KeyboardInterrupt
            super().clear()

    learn = learner()
    learn.model.late = Late([0])
    learn.model.register_forward_hook(lambda module, *_: module.late.__init__([1, 0]))
    learn.model.late[0] = 0
    before = state(learn)
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find(n_steps=5)
    assert learn.model.late == [0]
    assert_same(before, state(learn))


class Counts(cl.Callback):
    """Counts its events."""

    def __init__(self) -> None:
        self.n = 0

    def before_fit(self, learn: cl.Learner) -> None:
        self.n += 1

    before_batch = after_step = after_fit = before_fit


def test_nothing_is_recorded_and_no_callback_is_called(tmp_path: Any) -> None:
    learn = cl.Learner(
        DataLoaders(loader("tensors"), loader("tensors")), Forgetful(), progress=False,
        callbacks=[Counts(), cl.ActivationStats(), cl.GradientStats()], base=tmp_path,
    )  # fmt: skip
    learn.fit(1, 0.01)
    called, path, before = learn.counts.n, learn.run_path, state(learn)
    with cl.watch(learn.model, gradients=True) as stats:
        learn.lr_find(n_steps=25)
        learn.model(images()[0])
        recorded = len(stats["net.0"].mean)
    assert recorded == 1
    assert (learn.counts.n, learn.run_path) == (called, path)
    assert list(tmp_path.iterdir()) == [path]
    after = state(learn)
    for name in ("attributes", "optimizer", "recorded", "modes"):
        assert before[name] == after[name], name


def rates_of(steps: list[list[float]]) -> Any:
    """An optimizer that keeps the rates of its steps."""

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            steps.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    return Spy


def test_groups_keep_the_ratio_of_their_rates() -> None:
    steps: list[list[float]] = []

    def two(parameters: Any, lr: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        return rates_of(steps)([{"params": [first], "lr": lr / 10}, {"params": rest}], lr=lr)

    found = learner(optimizer=two).lr_find(1e-6, 1e-2, n_steps=20)
    expected = np.geomspace(1e-6, 1e-2, 20)
    np.testing.assert_allclose(found.lrs, expected)
    np.testing.assert_allclose(steps, np.outer(expected, [0.1, 1.0]))


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Has no length, and gives 40 items each time."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = images(40)
        return zip(x, y, strict=True)


@pytest.mark.parametrize(
    "batches",
    [[images(16)], DataLoader(Endless(), 16), DataLoader(Endless(), 16, num_workers=1)],
    ids=["one batch", "no length", "no length, worker"],
)
def test_small_data_and_data_without_a_length_is_read_again_and_again(batches: Any) -> None:
    steps: list[list[float]] = []
    learn = learner(dls=DataLoaders(batches), optimizer=rates_of(steps))
    before = state(learn)
    found = learn.lr_find(1e-5, 1e-2, n_steps=25)
    assert_same(before, state(learn))
    assert len(steps) == len(found.lrs) == 25
    first, second = learn.lr_find(n_steps=5), learn.lr_find(n_steps=5)
    assert first.losses.tolist() == second.losses.tolist()


def test_workers_that_a_loader_keeps_are_left_alone() -> None:
    orders: list[list[int]] = []
    for finds in (False, True):
        learn = learner("workers")
        order: list[int] = []
        for _ in range(2):
            if finds:
                learn.lr_find(n_steps=6)
            order += [label for _, y in learn.dls.train for label in y.tolist()]
        orders.append(order)
        iterator: Any = learn.dls.train._iterator
        iterator._shutdown_workers()
    assert orders[0] == orders[1]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Can be read once."""

    def __init__(self) -> None:
        self.source = iter([images(16)])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.source


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"lr_min": 0}, r"lr_min must be a positive number, such as 0.01, got 0"),
        ({"lr_min": 1, "lr_max": 0.1}, r"lr_min must be below lr_max, got 1 and 0.1"),
        ({"n_steps": 1}, r"n_steps must be a whole number of at least 2, got 1"),
        ({"n_steps": 2.5}, r"n_steps must be a whole number of at least 2, got 2.5"),
    ],
)
def test_arguments_that_cannot_work(arguments: Any, sentence: str) -> None:
    with pytest.raises(cl.ArgumentError, match=sentence):
        learner().lr_find(**arguments)


def test_data_and_models_that_cannot_work() -> None:
    with pytest.raises(cl.ArgumentError, match="an iterator, which can be read only once"):
        learner(dls=DataLoaders(DataLoader(Stream(), None))).lr_find()
    with pytest.raises(cl.ArgumentError, match=r"dls\.train has no batches"):
        learner(dls=DataLoaders([])).lr_find()
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(cl.ArgumentError, match=r"with the first batch \('1.weight'\)"):
        learner(model=lazy).lr_find()
    frozen = learner()
    frozen.model.requires_grad_(False)
    with pytest.raises(cl.TrainingError, match="depends on no parameter that needs a gradient"):
        frozen.lr_find()


def sweep_of(losses: Any, low: float = 1e-7, high: float = 10.0) -> LRFinding:
    return LRFinding.of(np.geomspace(low, high, len(losses)).tolist(), losses, "")


NOISE = np.random.default_rng(0).normal(0, 0.1, 100)
RATES = np.geomspace(1e-7, 10, 100)


def test_the_suggestions_of_a_plain_curve() -> None:
    """It falls from 2.3 to 0.3, half of it at 1e-3, and diverges from 1 on."""
    curve = np.where(RATES < 1, 0.3 + 2.0 / (1 + RATES / 1e-3), 20 * RATES)
    for noise in (0.0, 1.0):
        found = sweep_of(curve + noise * NOISE)
        assert found.suggestion == pytest.approx(0.022, rel=0.3)
        assert found.steepest == pytest.approx(1e-3, rel=1.0)
        assert found.minimum is not None
        assert found.valley is not None
        assert 0.01 < found.minimum < 0.1
        assert 1e-5 < found.valley < 1e-2
        assert f"suggestion  {found.suggestion:.2g}: 95 % of the fall are made." in str(found)
    cut = RATES < 1e-3
    assert "give a higher lr_max" in str(sweep_of(curve[cut] + 0.1 * NOISE[cut], 1e-7, 1e-3))
    steep = np.where(RATES < 0.05, 0.3 + 2.0 / (1 + RATES / 1e-2), 20.0)
    found = sweep_of(steep)
    assert found.suggestion == pytest.approx(0.005, rel=0.3)  # smoothed, it rises from 0.03 on
    assert "a fifth of the rate at which the loss rises again" in str(found)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (np.full(100, 2.3), r"at no rate from 1e-07 to 10 does the loss fall .*from 2.3 by 0;"),
        (2.3 + NOISE, r"does the loss fall by more than its noise"),
        (2.3 + NOISE - 0.1 * (RATES > 1e-2), r"differs by 0\.\d+ from batch to batch"),
        (np.where(RATES < 0.1, 0.01, 50.0), r"does the loss fall by more than its noise"),
        (np.arange(19.0)[::-1], r"the sweep made 19 steps and needs at least 20; .* n_steps"),
    ],
    ids=["constant", "noise", "more noise than fall", "only rises", "few"],
)
def test_a_curve_that_suggests_nothing_says_why(losses: Any, reason: str) -> None:
    found = sweep_of(losses)
    assert (found.suggestion, found.valley, found.steepest, found.minimum) == (None,) * 4
    assert re.search(f"^no suggestion: .*{reason}", str(found))
    assert str(found).endswith(".")


class Scaled(nn.Module):
    """Its loss is multiplied by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.factor = nn.Linear(64, 2), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1)) * self.factor


@pytest.mark.parametrize(
    ("factor", "arguments", "reason"),
    [
        (
            1.0,
            {"lr_min": 1e20, "lr_max": 1e30},
            r"the loss became inf at the rate 1e\+20; give a lower lr_min",
        ),
        (float("nan"), {}, "the first loss is nan; give"),
        (0.0, {}, "does the loss fall by more than its noise"),
        (0.1, {"n_steps": 5}, "the sweep made 5 steps and needs at least 20"),
    ],
    ids=["at once", "not finite", "flat", "few steps"],
)
def test_a_training_that_suggests_nothing_says_why(
    factor: float, arguments: Any, reason: str
) -> None:
    dls = DataLoaders(loader("tensors"))
    learn = cl.Learner(
        dls, Scaled(factor), lambda output, y: output.square().mean(), torch.optim.SGD,
        run=None, progress=False,
    )  # fmt: skip
    before = bits(learn.model.state_dict())
    found = learn.lr_find(**arguments)
    assert found.suggestion is None
    assert re.search(f"^no suggestion: .*{reason}", str(found))
    assert bits(learn.model.state_dict()) == before
    found.plot()
    plt.close("all")


def test_a_loss_that_refuses_nan_ends_the_sweep() -> None:
    def refuse(output: Tensor, y: Tensor) -> Tensor:
        if not output.isfinite().all():
            raise ValueError("output must be finite")
        return nn.functional.cross_entropy(output, y) + output.square().mean()

    learn = learner(loss=refuse, optimizer=torch.optim.SGD)
    found = learn.lr_find(1e-4, 1e30)
    assert found.ended


def test_smoothing_and_falls() -> None:
    np.testing.assert_allclose(smoothed_losses(np.full(7, 2.5)), 2.5)
    assert np.isfinite(smoothed_losses(np.full(9, 1e308))).all()
    assert valley_of(np.array([3.0, 1.0, 2.0, 0.0])) == 2
    assert valley_of(np.arange(4.0)) == 0
    assert valley_of(np.arange(100.0)[::-1]) == 49


def test_it_is_shown_as_text_and_picture() -> None:
    found = learner().lr_find(1e-5, 1.0, n_steps=40)
    assert found.suggestion is not None
    assert repr(found).startswith(f"LRFinding(40 steps, suggestion={found.suggestion:.2g})")
    ax = found.plot()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[2] == f"suggestion: {found.suggestion:.2g}"
    assert found._repr_html_().startswith("<img alt=")
    given = plt.subplots()[1]
    assert found.plot(given) is given
    plt.close("all")


SETTINGS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate": 3},
    "bf16, clip": {"precision": "bf16", "clip": 0.5},
    "fp16": {"precision": "fp16"},
    "channels_last": {"channels_last": True},
}


def scaler_of(learn: cl.Learner) -> Any:
    scaler = learn.stepper._scaler
    return (
        learn.stepper.scale,
        scaler and scaler.state_dict(),
        sorted(vars(scaler or learn.stepper)),
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore:Step . was skipped because a gradient overflowed")
def test_the_settings_of_the_loop_apply_and_are_as_before(name: str) -> None:
    losses: list[list[float]] = []
    for finds in (False, True):
        steps: list[list[float]] = []
        learn = learner(optimizer=rates_of(steps), **SETTINGS[name])
        learn.fit(1, 0.01)
        if finds:
            before, scaler = state(learn), scaler_of(learn)
            steps.clear()
            found = learn.lr_find(1e-4, 1.0, n_steps=24)
            np.testing.assert_allclose([lr for (lr,) in steps], np.geomspace(1e-4, 1.0, 24))
            assert len(found.lrs) == 24
            assert_same(before, state(learn))
            assert scaler == scaler_of(learn)
        learn.fit(2, 0.01)
        losses.append(learn.recorder.steps.loss.tolist())
    assert losses[0] == losses[1]


def test_an_accumulated_step_is_that_of_one_large_batch() -> None:
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    found: list[LRFinding] = []
    for size, accumulate in ((32, 1), (8, 4)):
        dls = DataLoaders(TensorLoader(x, y, batch_size=size))
        learn = cl.Learner(dls, model, accumulate=accumulate, run=None, progress=False)
        found.append(learn.lr_find(n_steps=40))
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-3)


@pytest.mark.slow  # 20 seconds of compiling
def test_a_compiled_training_is_swept_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    dls = DataLoaders(TensorLoader(*images(), batch_size=16))
    found: list[LRFinding] = []
    for compiles in (False, True):
        learn = cl.Learner(dls, model, compile=compiles, run=None, progress=False)
        before = bits(model.state_dict())
        found.append(learn.lr_find(n_steps=40))
        assert before == bits(model.state_dict())
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-3)

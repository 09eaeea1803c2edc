"""A check leaves model, optimizer, loss, loader and random states bit for bit as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from execution_models import MODELS
from execution_state import assert_same, state_of
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import convlens as cl

X, Y = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIAL_STEPS", "MEMORIZING_STEPS", "MEMORIZED"):
        monkeypatch.setattr(f"convlens.checking.checker.{name}", 4)


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3))


def built(*layers: nn.Module) -> nn.Sequential:
    model = net(*layers)
    model(X[:2])
    return model


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(24, 8, batch_first=True), nn.Linear(8, 3)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.rnn(x.flatten(1, 2).transpose(1, 2).reshape(len(x), 8, 24))[0][:, -1]
        return self.head(self.last)


class MovingLoss(nn.Module):
    """With a parameter, a buffer and a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(3))
        self.calls = 0

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.mean.lerp_(output.detach().mean(0), 0.1)
        return nn.functional.cross_entropy(self.scale * (output - self.mean), y)


class Noisy(Dataset[Any]):
    """Augments with random generators of its own, and caches."""

    def __init__(self, labels: Tensor = Y) -> None:
        self.rng, self.seen, self.calls = np.random.default_rng(0), dict[int, Tensor](), 0
        self.labels = labels

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.seen[i] = X[i] + float(self.rng.normal()) + float(np.random.rand())  # noqa: NPY002
        return self.seen[i], self.labels[i]


class Stream(IterableDataset[Any]):
    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        yield from zip(X, Y, strict=True)


class OwnLoader:
    """Batches in an order of its own, which goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.epoch, self.order = 0, torch.Generator().manual_seed(3)

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for part in torch.randperm(len(X), generator=self.order).split(8):
            yield {"input": X[part], "labels": Y[part]}


def state_of_optimizer(optimizer: torch.optim.Optimizer | None) -> Any:
    if optimizer is None:
        return None
    parts = copy.deepcopy(optimizer.state_dict())
    ids = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    return repr(parts), ids, sorted(vars(optimizer)), id(vars(optimizer).get("step"))


def held_by(loader: object) -> Any:
    """What a loader keeps: counters, caches and random states."""
    parts = [loader, *(getattr(loader, name, None) for name in ("sampler", "dataset"))]
    found: list[Any] = []
    for part in parts:
        for name, value in getattr(part, "__dict__", {}).items():
            if isinstance(value, torch.Generator):
                found.append((name, value.get_state().tolist()))
            elif isinstance(value, np.random.Generator):
                found.append((name, str(value.bit_generator.state)))
            elif isinstance(value, int | float | str | dict):
                found.append((name, repr(value)))
            else:
                found.append((name, id(value)))
    return found


def unchanged(
    model: nn.Module,
    data: object,
    loss: Callable[..., Any] | None = LOSS,
    optimizer: torch.optim.Optimizer | None = None,
    step: Callable[..., Any] | None = None,
) -> cl.CheckResult:
    """Check, and compare everything."""
    # Two looks: the first one of a caching model allocates what is compared by id.
    others = nn.ModuleList(m for m in (loss, step) if isinstance(m, nn.Module))
    before = state_of(model), state_of(others), state_of_optimizer(optimizer), held_by(data)
    result = cl.check(model, data, loss, optimizer, step, seconds=1)
    assert_same(before[0], state_of(model))
    assert_same(before[1], state_of(others))
    assert before[2] == state_of_optimizer(optimizer)
    assert before[3] == held_by(data)
    return result


def trained(model: nn.Module, kind: Any = torch.optim.Adam, **hypers: Any) -> torch.optim.Optimizer:
    """An optimizer after a step, with gradients left in half of the parameters."""
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, **hypers)
    model(X).square().mean().backward()
    optimizer.step()
    for i, parameter in enumerate(model.parameters()):
        if i % 2:
            parameter.grad = None
    return optimizer


@pytest.mark.parametrize("name", MODELS)
def test_models_that_write_into_themselves(name: str) -> None:
    model = MODELS[name]().train()
    optimizer = trained(model)
    x = X[:4]
    unchanged(model, (x, x), nn.MSELoss(), optimizer)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: built(nn.BatchNorm2d(4), nn.ReLU()),
    "dropout": lambda: built(nn.Dropout(0.2)),
    "spectral norm": lambda: built(spectral_norm(nn.Conv2d(4, 4, 1))),
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), *built()),
    "frozen": lambda: built(nn.Conv2d(4, 4, 1).requires_grad_(requires_grad=False)),
    "recurrent": Recurrent,
    "evaluation": lambda: built(nn.BatchNorm2d(4)).eval(),
    "compiled": lambda: torch.compile(built(nn.BatchNorm2d(4)), backend="eager"),
    "parallel": lambda: nn.DataParallel(built(nn.BatchNorm2d(4))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    model = LAYERS[name]()
    x = X.clone()
    result = unchanged(model, (x, Y), LOSS, trained(model))
    assert torch.equal(x, X)
    assert not any(found.kind == "not-copied" for found in result)


def loaders() -> dict[str, Any]:
    data = TensorDataset(X, Y)
    generator = torch.Generator().manual_seed(1)
    return {
        "shuffled": DataLoader(data, 4, shuffle=True),
        "generator": DataLoader(data, 4, shuffle=True, generator=generator),
        "sampler": DataLoader(data, 4, sampler=RandomSampler(data, generator=generator)),
        "workers": DataLoader(data, 4, shuffle=True, num_workers=2),
        "noisy": DataLoader(Noisy(), 4, shuffle=True),
        "sorted": DataLoader(Noisy(torch.arange(16) // 10), 1),
        "stream": DataLoader(Stream(), 4),
        "own": OwnLoader(),
        "tensors": cl.from_arrays(X, Y, layout="NCHW", batch_size=4).train,
        "list": [(X[:8], Y[:8]), (X[8:], Y[8:])],
    }


@pytest.mark.parametrize("name", loaders())
def test_loaders_give_what_they_would_have(name: str) -> None:
    torch.manual_seed(0)
    model, data = built(), loaders()[name]
    loss = None if name == "own" else LOSS

    def step(model: nn.Module, batch: Any) -> Tensor:
        return LOSS(model(batch["input"]), batch["labels"])

    unchanged(model, data, loss, trained(model), step if name == "own" else None)
    if name == "workers":
        return  # the same, and slow to start
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    found = [str(batch) for batch in data]
    fresh = loaders()[name]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert found == [str(batch) for batch in fresh]


def test_a_loader_whose_workers_are_busy() -> None:
    """The check reads beside the iteration that is going on."""
    loader = DataLoader(
        TensorDataset(X, Y),
        4,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    going = iter(loader)
    first = next(going)
    cl.check(built(), loader, LOSS, seconds=1)
    rest = list(going)
    assert torch.equal(torch.cat([first[0], *(x for x, _ in rest)]), X)
    loader._iterator._shutdown_workers()


def test_sparse_gradients() -> None:
    """Which Adam does not take."""
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer, x = torch.optim.SGD(model.parameters(), 0.1), torch.arange(32).reshape(16, 2) % 10
    LOSS(model(x), Y).backward()
    before = model[0].weight.grad.to_dense()
    result = cl.check(model, (x, Y), LOSS, optimizer, seconds=1)
    assert not result.problems, result
    assert torch.equal(model[0].weight.grad.to_dense(), before)


def test_a_loss_with_parameters_and_buffers() -> None:
    model, loss = built(), MovingLoss()
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()])
    unchanged(model, (X, Y), loss, optimizer)


def test_a_loss_that_closes_over_one() -> None:
    model, inside = built(), MovingLoss()
    before = state_of(inside)
    unchanged(model, (X, Y), lambda output, y: inside(output, y) + 0.0)
    assert_same(before, state_of(inside))


def test_a_step_that_touches_the_optimizer() -> None:
    model = built()
    optimizer = trained(model)

    def step(copy: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        optimizer.param_groups[0]["lr"] *= 0.5
        return LOSS(copy(batch[0]), batch[1])

    unchanged(model, (X, Y), None, optimizer, step)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.LBFGS])
def test_optimizers_with_a_schedule(kind: Any) -> None:
    model = built()
    optimizer = kind(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)
    before = schedule.state_dict()
    unchanged(model, (X, Y), LOSS, optimizer)
    assert schedule.state_dict() == before


def test_a_scaler_and_an_averaged_copy() -> None:
    model = built(nn.BatchNorm2d(4))
    optimizer, scaler = trained(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    average = torch.optim.swa_utils.AveragedModel(model)
    scaler.scale(model(X).mean()).backward()
    before, scale = state_of(average), scaler.state_dict()
    unchanged(model, (X, Y), LOSS, optimizer)
    assert_same(before, state_of(average))
    assert scaler.state_dict() == scale


def test_a_live_watch_sees_nothing_of_it() -> None:
    """Neither the steps of the copies nor their forwards."""
    model = built(nn.BatchNorm2d(4), nn.ReLU())
    with cl.watch(model, gradients=True, updates=True) as stats:
        optimizer = trained(model)
        unchanged(model, (X, Y), LOSS, optimizer)
        trained(model)
    facts = stats.record().loop
    assert (facts["training_forwards"], facts["optimizer_steps"], facts["foreign_steps"]) == (
        2,
        2,
        0,
    )
    assert len(stats["0"].mean) == 2


def test_lazy_modules_stay_lazy() -> None:
    model = net(nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    result = cl.check(model, (X, Y), LOSS, optimizer, seconds=1)
    assert isinstance(model[-1].weight, nn.parameter.UninitializedParameter)
    assert not result.problems


def test_it_may_be_called_without_gradients() -> None:
    model = built(nn.ReLU())
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            result = cl.check(model, (X, Y), LOSS, torch.optim.Adam(model.parameters()), seconds=1)
        assert not result.problems


def test_a_model_that_cannot_be_copied() -> None:
    model = built(nn.Softmax(1))
    model.append(nn.Softmax(1))
    model.stream = iter([1, 2, (i for i in range(3))])
    result = unchanged(model, (X, Y), LOSS, trained(model))
    assert [found.kind for found in result] == ["softmax-before-cross-entropy", "not-copied"]
    assert any("cannot be copied" in text for text in result.not_tried)

"""Whatever runs a user's model leaves all of it as it was."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import pytest
import torch
from execution_models import MODELS, Elsewhere
from execution_state import assert_same, fakes, state_of
from torch import Tensor, nn
from torch.nn import functional as F

import convlens as cl
from convlens.train.callbacks.nonfinite import first_non_finite

SHAPE = (2, 3, 8, 8)

LOOKS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "summary": lambda model, x: cl.summary(model, tuple(x.shape)),
    "summary of a tensor": cl.summary,
    "receptive_field": lambda model, x: cl.receptive_field(model, tuple(x.shape)),
    "effective field": lambda model, x: cl.effective_receptive_field(model, x, 0),
    "features": lambda model, x: cl.show_features(model, x[0], 0),
    "field": lambda model, x: cl.show_field(model, x[0], 0),
    "search for a NaN": first_non_finite,
}


def settings_of(optimizer: torch.optim.Optimizer) -> str:
    """What is not part of the model."""
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    return str((torch.is_grad_enabled(), fast, optimizer.state_dict()))


@pytest.mark.parametrize("name", MODELS)
def test_looking_changes_nothing(name: str) -> None:
    model, x = MODELS[name](), torch.rand(SHAPE)
    model(x).sum().backward()
    model.train()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    before, settings = state_of(model), settings_of(optimizer)
    held = fakes()
    for look in LOOKS.values():
        look(model, x)
        assert_same(before, state_of(model))
        assert settings == settings_of(optimizer)
    plt.close("all")
    assert fakes() <= held


@pytest.mark.parametrize("name", MODELS)
def test_the_model_gives_the_same_bits_as_one_that_was_not_looked_at(name: str) -> None:
    x = torch.rand(SHAPE)
    outputs: list[Tensor] = []
    for looked_at in (False, True):
        torch.manual_seed(1)
        model = MODELS[name]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            if looked_at:
                cl.summary(model, SHAPE)
                cl.receptive_field(model, SHAPE)
            torch.manual_seed(step)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.manual_seed(5)
        output = model.eval()(x)
        assert type(output) is Tensor
        outputs.append(output)
    assert torch.equal(*outputs)


def test_a_training_with_pictures_and_summary_is_the_same_to_the_bit() -> None:
    """A `Learner` that records looks at its model in several ways."""
    torch.manual_seed(0)
    batches = [(torch.rand(SHAPE), torch.randint(0, 3, (2,))) for _ in range(4)]
    for name, make in MODELS.items():
        weights: list[dict[str, Tensor]] = []
        for looked_at in (False, True):
            torch.manual_seed(1)
            model = nn.Sequential(make(), nn.Flatten(), nn.Linear(3 * 64, 3))
            learn = cl.Learner(
                cl.DataLoaders(batches, batches),
                model,
                callbacks=[cl.Pictures(n_epochs=2)] if looked_at else [],
                run="auto" if looked_at else None,
                seed=0,
                progress=False,
            )
            learn.fit(2, lr=1e-2)
            weights.append(model.state_dict())
        for key, value in weights[0].items():
            assert torch.equal(value, weights[1][key]), (name, key)


@pytest.mark.parametrize("has_run", [False, True])
def test_what_a_model_keeps_outside_of_itself_is_as_it_was(has_run: bool) -> None:
    model, x = Elsewhere(), torch.rand(SHAPE)
    if has_run:
        model(x)
    before = model.elsewhere()
    for look in LOOKS.values():
        look(model, x)
        assert str(model.elsewhere()) == str(before)
    plt.close("all")
    assert type(model(x)) is Tensor


def test_looking_at_a_watched_model_is_no_forward_of_its_training() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.rand(SHAPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model, gradients=True, mode="both") as stats:
        for _ in range(3):
            model(x).sum().backward()
            for look in LOOKS.values():
                look(model, x)
            optimizer.step()
            optimizer.zero_grad()
    plt.close("all")
    assert stats["0"].first_step.tolist() == [0, 1, 2]
    assert stats["0"].calls.tolist() == [1, 1, 1]
    assert stats.gradients["0.weight"].first_step.tolist() == [0, 1, 2]


def test_a_look_that_fails_changes_nothing() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.cache: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.cache.append(self.conv(x))
            self.late = x
            raise RuntimeError("no")

    model = nn.Sequential(Failing(), nn.Dropout())
    before = state_of(model)
    for look in LOOKS.values():
        with pytest.raises((cl.ArgumentError, RuntimeError), match="no"):
            look(model, torch.ones(SHAPE))
        assert_same(before, state_of(model))


def test_watching_a_compiled_model_leaves_its_weights() -> None:
    model = MODELS["two names"]()
    mine = model[0].conv.weight
    run = torch.compile(model, backend="eager")
    with cl.watch(run):
        run(torch.rand(SHAPE))
    assert model[0].conv.weight is model[2].conv.weight is mine


def test_what_slices_were_filled_with_is_followed() -> None:
    """A tensor made beforehand is real in a traced pass until something is written into it."""
    model = MODELS["slices"]()
    table = cl.summary(model, SHAPE)
    assert table.totals["multiplications"] == 64 * (3 * 3 * 25 + 3 * 3 * 9 + 6 * 3)
    assert table.notes[0].startswith("multiplications")
    assert table[""].receptive_field == (5, 5) if "" in [r.name for r in table] else True
    fields = cl.receptive_field(model, SHAPE)
    assert fields["last"].size == (5, 5)
    assert fields.notes == ()
    decides = nn.Sequential(model, _Deciding())
    assert "decides by values" in cl.receptive_field(decides, SHAPE).notes[0]


class _Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(1)
        total[0] = x.sum()
        return F.relu(x) if total > 1 else x

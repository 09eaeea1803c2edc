"""The first value that is not finite is named: layer, step, and what was so before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convlens as cl
from convlens.core.records import Finding

pytestmark = pytest.mark.filterwarnings("ignore")


class At(nn.Module):
    """An operation that is applied from a call on."""

    def __init__(self, what: Callable[[Tensor], Tensor], call: int) -> None:
        super().__init__()
        self.what, self.call, self.calls = what, call, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.what(x) if self.calls > self.call else x


def diagnosed(
    middle: nn.Module | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    lr: float = 1e-3,
    steps: int = 30,
    spoil: Callable[[Tensor, int], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Finding]:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 8), nn.Linear(8, 1)
    model = nn.Sequential(first, middle or nn.Identity(), nn.Linear(8, 8), last).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    x = torch.randn(steps, 16, 4)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for i in range(steps):
            batch = (spoil(x[i], i) if spoil else x[i]).to(dtype)
            value = loss(model(batch), x[i, :, :1].to(dtype))
            stats.log(loss=value.item())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return cl.diagnose(stats.record())


def only_problem(findings: list[Finding]) -> Finding:
    (problem,) = [finding for finding in findings if finding.severity == "problem"]
    return problem


def test_a_derivative_that_is_not_finite_is_not_blamed_on_the_first_layer() -> None:
    finding = only_problem(diagnosed(At(lambda x: (x - x.detach()).abs().sqrt() + x, 12)))
    assert (finding.kind, finding.first_step) == ("nonfinite-activations", 12)
    assert finding.layer == "0", "the sqrt lies after it, and its gradient is the first"
    assert "The gradient of '0.bias' is NaN at step 12, while activations and loss are finite" in (
        finding.text
    )
    assert "The loss is not finite from step 13 on. The learning rate was 0.001" in finding.text
    assert "inside sqrt, log, norm and divisions" in finding.fix


def test_a_loss_that_takes_the_logarithm_of_zero() -> None:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(o, y) - (o - o.detach().min()).log().mean() * 1e-3

    finding = only_problem(diagnosed(loss=loss))
    assert (finding.kind, finding.layer, finding.first_step) == ("nonfinite-loss", None, 0)
    assert "The activations of that step are finite." in finding.text


def test_an_overflow_in_half_precision_names_the_layer() -> None:
    finding = only_problem(diagnosed(At(lambda x: x * 6e4, 7), dtype=torch.float16))
    assert finding.kind == "fp16-overflow-or-underflow"
    assert "It ended in values that are not finite in '2', from step 7 on." in finding.text


def test_an_input_that_is_not_finite_is_the_cause() -> None:
    finding = only_problem(diagnosed(spoil=lambda x, i: x * (torch.nan if i == 3 else 1.0)))
    assert finding.kind == "nan-in-data"


def test_a_rate_that_is_too_high_is_one_finding() -> None:
    finding = only_problem(diagnosed(lr=3.0, steps=60))
    assert finding.kind == "learning-rate-too-high"
    assert "It ended in values that are not finite" in finding.text


def test_a_step_that_a_loss_scaler_left_out_is_none() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for i in range(60):
            x = torch.randn(16, 4)
            value = F.mse_loss(model(x), x[:, :1])
            stats.log(loss=value.item())
            optimizer.zero_grad()
            (value * (torch.inf if i == 1 else 1.0)).backward()
            if i != 1:
                optimizer.step()
    assert not [f for f in cl.diagnose(stats.record()) if f.severity == "problem"]


def test_of_several_gradients_the_last_layer_s_is_the_first() -> None:
    torch.manual_seed(0)
    root = At(lambda x: (x - x.detach()).abs().sqrt() + x, 12)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), root, nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for _ in range(30):
            x = torch.randn(16, 4)
            value = F.mse_loss(model(x), x[:, :1])
            stats.log(loss=value.item())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    finding = only_problem(cl.diagnose(stats.record()))
    assert (finding.layer, finding.first_step) == ("1", 12)

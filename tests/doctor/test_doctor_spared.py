"""Healthy trainings that look odd: nothing is a problem in any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convlens as cl
from convlens.core.records import Finding

CASES = dict[str, Callable[[], list[Finding]]]()


def case(build: Callable[[], list[Finding]]) -> Callable[[], list[Finding]]:
    CASES[build.__name__] = build
    return build


def items(n: int = 256, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, 6, generator=torch.Generator().manual_seed(7))
    y = torch.randint(0, classes, (n,), generator=generator)
    return centres[y] + torch.randn(n, 6, generator=generator), y


def mlp(outputs: int = 4, *middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *middle, nn.Linear(16, outputs))


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def diagnosed(
    model: nn.Module,
    step: Callable[[Tensor, Tensor, int], Tensor],
    *,
    steps: int = 60,
    batch: int = 16,
    data: tuple[Tensor, Tensor] | None = None,
    evaluate: Callable[[], Iterable[Tensor]] | None = None,
) -> list[Finding]:
    x, y = data or items()
    with cl.watch(model, gradients=True, updates=True) as stats:
        for i in range(steps):
            take = torch.arange(i * batch, (i + 1) * batch) % len(x)
            stats.log(loss=step(x[take], y[take], i).item())
            if i % 30 == 29 and evaluate is not None:
                list(evaluate())
                stats.log_epoch(accuracy=0.9)
    return cl.diagnose(stats.record())


def plain(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    lr: float = 1e-2,
    parameters: Iterable[Tensor] | None = None,
    **options: object,
) -> list[Finding]:
    optimizer = torch.optim.Adam(parameters or model.parameters(), lr)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del i
        return update(optimizer, loss(model(x), y))

    return diagnosed(model, step, **options)  # type: ignore[arg-type]


def trained(model: nn.Sequential) -> nn.Sequential:
    optimizer, (x, y) = torch.optim.Adam(model.parameters(), 1e-2), items()
    for _ in range(100):
        update(optimizer, F.cross_entropy(model(x), y))
    return model


@case
def fine_tuned_at_a_tiny_rate() -> list[Finding]:
    return plain(trained(mlp()), lr=1e-7)


@case
def only_a_new_head_is_trained() -> list[Finding]:
    model = trained(mlp())
    model[2].reset_parameters()
    return plain(model, lr=3e-2, parameters=list(model[2].parameters()), steps=100)


@case
def a_frozen_backbone() -> list[Finding]:
    model = trained(mlp())
    model[2].reset_parameters()
    model[0].requires_grad_(False)
    return plain(model, lr=3e-2, parameters=list(model[2].parameters()), steps=100)


def linear_probe(*, requires_grad: bool) -> list[Finding]:
    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
    model = nn.Sequential(backbone.requires_grad_(requires_grad), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model[1].parameters(), 1e-3)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del i
        model.eval()
        return update(optimizer, F.cross_entropy(model(x), y))

    return diagnosed(model, step)


@case
def a_frozen_backbone_in_evaluation_mode() -> list[Finding]:
    return linear_probe(requires_grad=False)


@case
def a_backbone_in_evaluation_mode_and_in_no_optimizer() -> list[Finding]:
    return linear_probe(requires_grad=True)


@case
def discriminator_of_a_least_squares_gan() -> list[Finding]:
    model = mlp(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del y, i
        true, made = model(x), model(torch.randn(16, 6))
        return update(optimizer, ((true - 1) ** 2).mean() + (made**2).mean())

    return diagnosed(model, step)


@case
def a_critic_without_targets() -> list[Finding]:
    return plain(mlp(1), lambda o, y: -(o[:, 0].tanh() * (y - 1.5)).mean())


@case
def a_policy_whose_loss_rises() -> list[Finding]:
    model = mlp(3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del y
        scores = model(x).log_softmax(1)
        action = torch.distributions.Categorical(logits=scores.detach()).sample()
        reward = (action == (x[:, 0] > 0)) * 5 + i / 10
        return update(optimizer, -(scores.gather(1, action[:, None])[:, 0] * reward).mean())

    return diagnosed(model, step)


@case
def a_contrastive_loss_with_its_positive_first() -> list[Finding]:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = mlp(8)

        def forward(self, x: Tensor) -> Tensor:
            q, k = (F.normalize(self.encoder(x + torch.randn_like(x)), dim=1) for _ in range(2))
            others = F.normalize(torch.randn(200, 8), dim=1)
            return torch.cat([(q * k.detach()).sum(1, keepdim=True), q @ others.T], 1) / 0.5

    return plain(Pairs(), lambda o, y: F.cross_entropy(o, torch.zeros_like(y)))


@case
def one_positive_in_a_hundred() -> list[Finding]:
    x = torch.randn(1600, 6)
    return plain(mlp(2), data=(x, (x[:, 0] > 2.3).long()), steps=100)


@case
def gradients_from_autograd_grad() -> list[Finding]:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del i
        loss = F.cross_entropy(model(x), y)
        found = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), found, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return loss

    return diagnosed(model, step)


@case
def lbfgs_resets_in_its_closure() -> list[Finding]:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del i

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return optimizer.step(closure)  # type: ignore[arg-type, return-value]

    return diagnosed(model, step, steps=24, batch=128)


@case
def monte_carlo_dropout() -> list[Finding]:
    model, x = mlp(4, nn.Dropout(0.2)), items(64)[0]

    def evaluate() -> Iterable[Tensor]:
        with torch.no_grad():
            return [model(x) for _ in range(10)]

    return plain(model, evaluate=evaluate)


@case
def many_micro_batches_before_the_first_step() -> list[Finding]:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        (loss / 32).backward()
        if i % 32 == 31:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return diagnosed(model, step, steps=44)


@case
def padding_and_weights() -> list[Finding]:
    weight = torch.tensor([1.0, 5.0, 2.0, 9.0])

    def loss(o: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y[::2] = -100
        return F.cross_entropy(o, y, weight)

    return plain(mlp(), loss)


@case
def an_input_with_missing_values_by_design() -> list[Finding]:
    class Filled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.nan_to_num(x))

    x, y = items()
    x[::9, 2] = torch.nan
    return plain(Filled(*mlp()), data=(x, y))


@case
def probabilities_and_squares() -> list[Finding]:
    model = nn.Sequential(*mlp(), nn.Softmax(1))
    return plain(model, lambda o, y: F.mse_loss(o, F.one_hot(y, 4).float()), steps=120)


@case
def an_image_that_is_optimized() -> list[Finding]:
    model, image = trained(mlp()), torch.randn(16, 6, requires_grad=True)
    optimizer = torch.optim.Adam([image], 0.05)

    def step(x: Tensor, y: Tensor, i: int) -> Tensor:
        del x, y, i
        return update(optimizer, -model(image)[:, 0].mean())

    return diagnosed(model, step)


@case
def pairs_of_images_with_batch_normalization() -> list[Finding]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    x = torch.randn(32, 3, 10, 10)
    y = x.argmax(1)[:, 1:-1, 1:-1]
    return plain(model, data=(x, y), batch=2)


@case
def a_weak_signal_in_noise() -> list[Finding]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3000, 6, generator=generator)
    y = 0.33 * x[:, :1] + torch.randn(3000, 1, generator=generator)
    return plain(mlp(1), F.mse_loss, lr=2e-3, data=(x, y), steps=200, batch=256)


@case
def a_weak_signal_in_noise_around_10() -> list[Finding]:
    """Whose mean has been learned."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3000, 6, generator=generator)
    y = 10 + 0.33 * x[:, :1] + torch.randn(3000, 1, generator=generator)
    return plain(mlp(1), F.mse_loss, lr=2e-2, data=(x, y), steps=200, batch=256)


@case
def batches_of_one_class_that_are_learned() -> list[Finding]:
    x, y = items(800)
    parts = [torch.where(y == label)[0][:160].split(32) for label in range(4)]
    order = torch.cat([part for batches in zip(*parts, strict=True) for part in batches])
    model = mlp()
    data = x[order], y[order]
    return plain(model, data=data, batch=32, steps=90, evaluate=lambda: [model(x)])


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_a_problem(name: str) -> None:
    torch.manual_seed(0)
    findings = CASES[name]()
    assert not [finding for finding in findings if finding.severity == "problem"], findings


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (F.cross_entropy, "cross entropy"),
        (lambda o, y: F.cross_entropy(o, y, torch.tensor([1.0, 5, 2, 9])), "cross entropy"),
        (lambda o, y: F.cross_entropy(o, y, reduction="sum"), "cross entropy"),
        (lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2), "soft cross entropy"),
        (lambda o, y: F.nll_loss(o.log_softmax(1), y), "cross entropy"),
        (
            lambda o, y: F.binary_cross_entropy_with_logits(o, F.one_hot(y, 4).float()),
            "binary cross entropy",
        ),
        (lambda o, y: F.mse_loss(o, F.one_hot(y, 4).float()), "mean squared error"),
        (lambda o, y: F.smooth_l1_loss(o, F.one_hot(y, 4).float()), None),
        (F.multi_margin_loss, None),
    ],
)
def test_the_gradient_tells_what_guessing_costs(
    loss: Callable[[Tensor, Tensor], Tensor], kind: str | None
) -> None:
    torch.manual_seed(0)
    found = next(f for f in plain(mlp(), loss, steps=60) if f.kind == "healthy")
    told = "that of guessing" in found.text or "the variance of the targets" in found.text
    assert told == (kind is not None)

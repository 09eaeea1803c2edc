"""Each rule fires on the smallest training that has its fault, and not on the repaired one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convlens as cl
from convlens.core.records import RunRecord
from convlens.models import output_scaled

STEPS = 60
Build = Callable[[bool], RunRecord]
RULES = dict[str, Build]()


def rule(kind: str) -> Callable[[Build], Build]:
    """The function builds the training with this fault, or without it."""

    def add(build: Build) -> Build:
        RULES[kind] = build
        return build

    return add


def blobs(seed: int = 0, n: int = 256, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Points about a few centres, and whose they are."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, 6, generator=torch.Generator().manual_seed(7))
    y = torch.randint(0, classes, (n,), generator=generator)
    return centres[y] + torch.randn(n, 6, generator=generator), y


def mlp(*end: nn.Module, outputs: int = 4, middle: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Linear(6, 16), nn.ReLU(), middle or nn.Identity(), nn.Linear(16, outputs)]
    return nn.Sequential(*layers, *end)


class Training:
    """A loop as its author would write it; each argument can be its fault."""

    def __init__(
        self,
        model: nn.Module | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        optimizer: torch.optim.Optimizer | None = None,
        data: tuple[Tensor, Tensor] | None = None,
        batch: int = 16,
    ) -> None:
        self.model = model or mlp()
        self.loss, self.batch = loss, batch
        self.optimizer = optimizer or torch.optim.Adam(self.model.parameters(), 1e-2)
        self.data = data or blobs()
        self.valid = blobs(seed=1)

    def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
        del i
        loss = self.loss(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def evaluate(self) -> float:
        self.model.eval()
        with torch.no_grad():
            outputs = torch.cat([self.model(part) for part in self.valid[0].split(64)])
        self.model.train()
        return float((outputs.argmax(1) == self.valid[1]).float().mean())

    def run(self, steps: int = STEPS, *, evaluated: bool = False) -> RunRecord:
        x, y = self.data
        with cl.watch(self.model, gradients=True, updates=True) as stats:
            for i in range(steps):
                take = torch.arange(i * self.batch, (i + 1) * self.batch) % len(x)
                stats.log(loss=self.step(x[take], y[take], i).item())
                if evaluated and (i + 1) % (steps // 2) == 0:
                    stats.log_epoch(accuracy=self.evaluate())
        return stats.record()


@rule("missing-backward")
def no_backward(fixed: bool) -> RunRecord:
    class Detached(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            if fixed:
                return super().step(x, y, i)
            loss = torch.tensor(self.loss(self.model(x), y).item(), requires_grad=True)
            loss.backward()
            self.optimizer.step()
            return loss

    return Detached().run()


@rule("missing-step")
def no_step(fixed: bool) -> RunRecord:
    class Still(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            if fixed:
                return super().step(x, y, i)
            loss = self.loss(self.model(x), y)
            loss.backward()
            return loss

    return Still().run()


@rule("optimizer-of-other-model")
def other_model(fixed: bool) -> RunRecord:
    model = mlp()
    return Training(model, optimizer=None if fixed else torch.optim.Adam(mlp().parameters())).run()


@rule("layers-not-registered")
def plain_list(fixed: bool) -> RunRecord:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Linear(6, 6), nn.Linear(6, 6)]
            self.layers = nn.ModuleList(layers) if fixed else layers
            self.last = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return self.last(x)

    return Training(Listed()).run()


@rule("missing-zero-grad")
def no_reset(fixed: bool) -> RunRecord:
    class Piling(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            loss = self.loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            if fixed:
                self.model.zero_grad()
            return loss

    return Piling().run()


@rule("eval-mode-in-training")
def stays_in_evaluation(fixed: bool) -> RunRecord:
    class Evaluated(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            self.model.train(fixed)
            return super().step(x, y, i)

    return Evaluated(mlp(middle=nn.BatchNorm1d(16))).run()


@rule("nan-in-data")
def missing_values(fixed: bool) -> RunRecord:
    x, y = blobs()
    x[3, 2] = 0.0 if fixed else torch.nan
    return Training(data=(x, y)).run()


@rule("shape-broadcast-in-loss")
@pytest.mark.filterwarnings("ignore")
def broadcast(fixed: bool) -> RunRecord:
    x, y = blobs()
    y = x[:, :1].clone() if fixed else x[:, 0].clone()
    return Training(mlp(outputs=1), lambda o, t: ((o - t) ** 2).mean(), data=(x, y)).run()


@rule("softmax-before-cross-entropy")
def softmax_twice(fixed: bool) -> RunRecord:
    return Training(mlp() if fixed else mlp(nn.Softmax(1))).run()


@rule("sigmoid-before-bce-with-logits")
def sigmoid_twice(fixed: bool) -> RunRecord:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(o[:, 0], (y > 1).float())

    return Training(mlp(outputs=1) if fixed else mlp(nn.Sigmoid(), outputs=1), loss).run()


@rule("activation-on-logits")
def cut_scores(fixed: bool) -> RunRecord:
    return Training(mlp() if fixed else mlp(nn.ReLU())).run()


@rule("wrong-axis-softmax")
def over_the_batch(fixed: bool) -> RunRecord:
    return Training(mlp(nn.LogSoftmax(int(fixed))), F.nll_loss).run()


@rule("too-few-outputs")
def one_probability(fixed: bool) -> RunRecord:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(o[:, 0], (y > 1).float())

    return Training(mlp(nn.Sigmoid() if fixed else nn.Softmax(1), outputs=1), loss).run()


@rule("output-constant")
def nothing_arrives(fixed: bool) -> RunRecord:
    class Constant(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(fixed)

    return Training(Constant(*mlp())).run()


@rule("wrong-loss-for-task")
def several_labels(fixed: bool) -> RunRecord:
    x, _ = blobs()
    loss = F.binary_cross_entropy_with_logits if fixed else F.cross_entropy
    return Training(loss=loss, data=(x, (x[:, :4] > 0).float())).run()


@rule("constant-labels")
def one_label(fixed: bool) -> RunRecord:
    x, y = blobs()
    return Training(data=(x, y if fixed else torch.full_like(y, 2))).run(40)


@rule("data-not-shuffled")
def sorted_labels(fixed: bool) -> RunRecord:
    x, y = blobs(n=512)
    order = torch.arange(512) if fixed else y.argsort()
    return Training(data=(x[order], y[order]), batch=64).run(24)


@rule("labels-shifted")
def other_labels(fixed: bool) -> RunRecord:
    training = Training()
    x, y = training.valid
    training.valid = (x, y if fixed else (y + 1) % 4)
    return training.run(evaluated=True)


@rule("labels-shuffled")
def other_order(fixed: bool) -> RunRecord:
    generator = torch.Generator().manual_seed(3)
    x, y = blobs(n=64)
    y = y if fixed else torch.randint(0, 4, (64,), generator=generator)
    return Training(mlp(middle=nn.Linear(16, 16)), data=(x, y)).run(200, evaluated=True)


@rule("train-data-duplicated-in-validation")
def validated_on_training_data(fixed: bool) -> RunRecord:
    training = Training()
    if not fixed:
        order = torch.randperm(160)
        x, y = (torch.cat([a[:96], b[:64]]) for a, b in zip(blobs(), blobs(1), strict=True))
        training.valid = x[order], y[order]
    return training.run(evaluated=True)


@rule("batchnorm-stats-never-updated")
def no_momentum(fixed: bool) -> RunRecord:
    return Training(mlp(middle=nn.BatchNorm1d(16, momentum=0.1 if fixed else 0.0))).run()


@rule("batchnorm-batch-too-small")
def pairs(fixed: bool) -> RunRecord:
    return Training(mlp(middle=nn.BatchNorm1d(16)), batch=16 if fixed else 2).run()


@rule("parameters-not-in-optimizer")
def last_layer_only(fixed: bool) -> RunRecord:
    model = mlp()
    nn.init.zeros_(model[0].weight)
    trained = model.parameters() if fixed else model[3].parameters()
    return Training(model, optimizer=torch.optim.Adam(trained, 2e-2)).run(80)


@rule("frozen-by-mistake")
def frozen(fixed: bool) -> RunRecord:
    model = mlp()
    nn.init.zeros_(model[0].weight)
    model[0].requires_grad_(fixed)
    return Training(model, optimizer=torch.optim.Adam(model.parameters(), 2e-2)).run(80)


@rule("constant-initialization")
def all_zero(fixed: bool) -> RunRecord:
    model = mlp()
    for parameter in () if fixed else model.parameters():
        nn.init.zeros_(parameter)
    return Training(model).run()


@rule("dropout-too-high")
def dropped(fixed: bool) -> RunRecord:
    model = mlp(middle=nn.Dropout(0.3 if fixed else 0.99))
    return Training(model, optimizer=torch.optim.Adam(model.parameters(), 5e-3)).run()


@rule("channels-mixed-by-reshape")
def reshaped(fixed: bool) -> RunRecord:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(64, 3, 4, 4, generator=generator) + torch.tensor([0, 2, 4]).view(3, 1, 1)
    images = F.interpolate(low, size=16, mode="bilinear")
    y = (low[:, 0].mean((1, 2)) > 0.5).long()
    x = images.permute(0, 2, 3, 1).contiguous()
    x = x.permute(0, 3, 1, 2) if fixed else x.view(64, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 49, 2))
    return Training(model, data=(x - 2, y)).run()


@rule("input-not-normalized")
def large_inputs(fixed: bool) -> RunRecord:
    x, y = blobs()
    model = mlp(middle=nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Training(model, optimizer=optimizer, data=(x if fixed else 300 * x + 900, y)).run()


@rule("input-double-scaled")
def divided_twice(fixed: bool) -> RunRecord:
    x, y = blobs()
    x = x.sigmoid()
    optimizer = torch.optim.SGD((model := mlp()).parameters(), 0.3)
    return Training(model, optimizer=optimizer, data=(x if fixed else x / 255, y)).run(120)


@rule("accumulation-not-scaled")
def micro_batches(fixed: bool) -> RunRecord:
    class Micro(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            loss = self.loss(self.model(x), y)
            (loss / 8 if fixed else loss).backward()
            if i % 8 == 7:
                self.optimizer.step()
                self.optimizer.zero_grad()
            return loss

    model = mlp()
    return Micro(model, optimizer=torch.optim.SGD(model.parameters(), 0.5 if fixed else 50.0)).run(
        160
    )


def with_optimizer(optimizer: type[torch.optim.Optimizer], steps: int = STEPS, **options: float):
    model = mlp()
    return Training(model, optimizer=optimizer(model.parameters(), **options)).run(steps)


@rule("weight-decay-too-high")
def decayed(fixed: bool) -> RunRecord:
    return with_optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.01 if fixed else 50.0)


@rule("learning-rate-too-low")
def crawls(fixed: bool) -> RunRecord:
    return with_optimizer(torch.optim.SGD, lr=0.1 if fixed else 1e-6)


@rule("learning-rate-too-high")
def jumps(fixed: bool) -> RunRecord:
    # AdamW's decay takes 30 % of the weights at each step then, and is not at fault.
    return with_optimizer(torch.optim.AdamW, lr=0.01 if fixed else 30.0)


@rule("momentum-too-high")
def rolls_on(fixed: bool) -> RunRecord:
    return with_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9 if fixed else 1.0, steps=120)


@rule("gradient-clipped-to-nothing")
def clipped(fixed: bool) -> RunRecord:
    class Clipped(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            loss = self.loss(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0 if fixed else 1e-4)
            self.optimizer.step()
            return loss

    model = mlp()
    return Clipped(model, optimizer=torch.optim.SGD(model.parameters(), 0.1)).run()


@rule("targets-far-from-outputs")
def prices(fixed: bool) -> RunRecord:
    x, _ = blobs()
    y = 250_000 + 10_000 * x[:, :1]
    model = mlp(outputs=1)
    model = output_scaled(model, y[:, 0]) if fixed else model
    return Training(model, F.mse_loss, torch.optim.Adam(model.parameters(), 1e-2), (x, y)).run()


@rule("learning-rate-schedule-ends-early")
def ended(fixed: bool) -> RunRecord:
    class Scheduled(Training):
        def step(self, x: Tensor, y: Tensor, i: int) -> Tensor:
            loss = super().step(x, y, i)
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.99 if fixed else 0.05
            return loss

    model = mlp()
    return Scheduled(model, optimizer=torch.optim.SGD(model.parameters(), 0.1)).run()


@rule("fp16-overflow-or-underflow")
def half(fixed: bool) -> RunRecord:
    x, y = blobs()
    model = mlp() if fixed else mlp().half()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, eps=1e-8)
    data = (x if fixed else x.half(), y)
    return Training(model, lambda o, t: F.cross_entropy(o.float(), t), optimizer, data).run()


@rule("bad-initialization")
def unit_normal(fixed: bool) -> RunRecord:
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 4))
    for layer in () if fixed else (0, 2, 4):
        nn.init.normal_(model[layer].weight, std=3.0)
    return Training(model, optimizer=torch.optim.Adam(model.parameters(), 1e-3)).run()


@rule("exploding-gradient")
def explodes(fixed: bool) -> RunRecord:
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(5)))
    x, _ = blobs()
    for layer in model:
        nn.init.orthogonal_(layer.weight, 1.0 if fixed else 6.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.02 if fixed else 1e-9)
    return Training(model, F.mse_loss, optimizer, data=(x, x.clone())).run()


@rule("vanishing-gradient")
def deep_sigmoid(fixed: bool) -> RunRecord:
    act = nn.ReLU if fixed else nn.Sigmoid
    hidden = [part for _ in range(7) for part in (nn.Linear(16, 16), act())]
    model = nn.Sequential(nn.Linear(6, 16), act(), *hidden, nn.Linear(16, 4))
    return Training(model, optimizer=torch.optim.Adam(model.parameters(), 5e-3)).run(100)


@rule("train-mode-in-evaluation")
def validated_in_training_mode(fixed: bool) -> RunRecord:
    class Forgets(Training):
        def evaluate(self) -> float:
            with torch.no_grad():
                for part in self.valid[0].split(64):
                    self.model(part)
            return 0.9

    model = mlp(middle=nn.Dropout(0.2))
    return (Training(model) if fixed else Forgets(model)).run(evaluated=True)


@rule("dead-relu")
def dead(fixed: bool) -> RunRecord:
    model = mlp()
    if not fixed:
        nn.init.constant_(model[0].bias, -100.0)
    return Training(model).run()


@rule("model-too-small")
def one_channel(fixed: bool) -> RunRecord:
    model = nn.Sequential(nn.Linear(6, 16 if fixed else 1), nn.Tanh())
    model.append(nn.Linear(16 if fixed else 1, 4))
    if not fixed:
        nn.init.constant_(model[0].weight, 1e-3)
    return Training(
        model, optimizer=torch.optim.Adam(model.parameters(), 1e-2 if fixed else 4e-3)
    ).run()


@rule("overfitting")
def few_items(fixed: bool) -> RunRecord:
    generator = torch.Generator().manual_seed(5)

    def noisy(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 6, generator=generator)
        return x, (x[:, 0] + 0.7 * torch.randn(n, generator=generator) > 0).long()

    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 2))
    training = Training(model, data=noisy(1024 if fixed else 24))
    training.valid = noisy(256)
    return training.run(60 if fixed else 240, evaluated=True)


@rule("nothing-learned")
def inputs_lost(fixed: bool) -> RunRecord:
    class Shuffles(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if fixed else x[torch.randperm(len(x))])

    model = Shuffles(*mlp())
    return Training(model, optimizer=torch.optim.Adam(model.parameters(), 3e-3)).run(120)


@rule("nonfinite-loss")
def logarithm_of_zero(fixed: bool) -> RunRecord:
    def loss(o: Tensor, y: Tensor) -> Tensor:
        p = o.softmax(1)[range(len(y)), y]
        return -(p if fixed else (p - p.detach().min()).clamp(min=0)).log().mean()

    return Training(loss=loss).run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", RULES)
def test_a_rule_finds_its_fault_and_not_the_repaired_one(kind: str) -> None:
    torch.manual_seed(0)
    problems = [found for found in cl.diagnose(RULES[kind](False)) if found.severity == "problem"]
    assert [found.kind for found in problems] == [kind], problems
    assert problems[0].fix
    torch.manual_seed(0)
    repaired = cl.diagnose(RULES[kind](True))
    assert not [found for found in repaired if found.severity == "problem"], repaired

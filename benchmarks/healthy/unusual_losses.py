"""Losses other than the cross entropy of one class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healthy.common import (
    Program,
    accuracy_of,
    classifier,
    clusters,
    generator,
    loader,
    loaders,
    mlp,
    pictures,
    pretrain,
    r2_of,
    regressor,
    small_cnn,
    surface,
    usual_step,
)


def label_smoothing(seed: int) -> Program:
    model = small_cnn()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.2)
    data = loaders(pictures, 640, seed)
    return classifier(model, opt, data, 120, "label smoothing 0.2", 0.5, loss_fn=loss_fn)


def mixup(seed: int) -> Program:
    """Soft labels from pairs of items."""
    model = small_cnn()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data, g = loaders(pictures, 640, seed), generator(seed)

    def step(batch: Sequence[Tensor]) -> float:
        x, y = batch[0], F.one_hot(batch[1], 5).float()
        share = float(torch.rand((), generator=g))
        other = torch.randperm(len(x), generator=g)
        x, y = share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]
        model.train()
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss.item()

    return classifier(model, opt, data, 160, "mixup", 0.5, step=step)


def focal(seed: int) -> Program:
    """Focal loss; its first value is far below that of the cross entropy."""
    model = mlp(16, 64, 4)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        nll = F.cross_entropy(out, y, reduction="none")
        return ((1 - torch.exp(-nll)) ** 2 * nll).mean()

    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 200, "focal loss", 0.5, loss_fn=loss_fn)


def weighted_rare_class(seed: int) -> Program:
    """One in fifty is positive; weighted cross entropy, judged by balanced accuracy."""
    g = generator(300 + seed)
    y = (torch.rand(3000, generator=g) < 0.02).long()
    x = torch.randn(3000, 10, generator=g) + 1.5 * y[:, None] * torch.tensor([1.0, -1.0] * 5)
    data = loader(x[:2400], y[:2400], batch=64, seed=seed), loader(x[2400:], y[2400:], batch=600)
    model = mlp(10, 32, 2)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 5.0]))
    program = classifier(model, opt, data, 200, "imbalance of 1:50", 0.7, loss_fn=loss_fn)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            said = model(x[2400:]).argmax(1)
        kinds = [float((said[y[2400:] == k] == k).float().mean()) for k in (0, 1)]
        return {"balanced_accuracy": sum(kinds) / 2}

    program.evaluate, program.metric = evaluate, "balanced_accuracy"
    return program


def _tags(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each of six tags adds a direction of its own; a tenth to a half of the items has it."""
    g = generator(seed)
    y = (torch.rand(n, 6, generator=g) < torch.linspace(0.1, 0.5, 6)).float()
    directions = torch.randn(6, 20, generator=generator(80))
    return y @ directions + 0.8 * torch.randn(n, 20, generator=g), y


def _tag_program(last: nn.Module | None, loss_fn: nn.Module, seed: int, task: str) -> Program:
    model = mlp(20, 64, 6)
    if last is not None:
        model.append(last)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    train, valid = loaders(_tags, 1200, seed)
    program = classifier(model, opt, (train, valid), 200, task, 0.85, loss_fn=loss_fn)

    def evaluate() -> dict[str, float]:
        model.eval()
        limit = 0.0 if last is None else 0.5
        with torch.no_grad():
            right = [((model(x) > limit) == (y > 0.5)).float().mean() for x, y in valid]
        return {"accuracy": float(torch.stack(right).mean())}

    program.evaluate = evaluate
    return program


def many_tags(seed: int) -> Program:
    """Saying no to each tag is right in 70 %."""
    return _tag_program(None, nn.BCEWithLogitsLoss(), seed, "multi-label")


def many_tags_bce(seed: int) -> Program:
    """The same with a sigmoid and BCELoss."""
    return _tag_program(nn.Sigmoid(), nn.BCELoss(), seed, "multi-label, BCELoss on a sigmoid")


def log_softmax_nll(seed: int) -> Program:
    model = nn.Sequential(*mlp(16, 64, 4), nn.LogSoftmax(1))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 200, "log-softmax and NLL", 0.5, loss_fn=nn.NLLLoss())


def log_softmax_cross_entropy(seed: int) -> Program:
    """The log-softmax of a log-softmax is the same again: harmless."""
    model = nn.Sequential(*mlp(16, 64, 4), nn.LogSoftmax(1))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 200, "log-softmax and cross entropy", 0.5)


def brier_score(seed: int) -> Program:
    """Squared error between a softmax and one-hot labels: unusual, proper, and it learns."""
    model = nn.Sequential(*mlp(16, 64, 4), nn.Softmax(1))
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        return ((out - F.one_hot(y, 4)) ** 2).sum(1).mean()

    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 200, "squared error of a softmax", 0.5, loss_fn=loss_fn)


def huber(seed: int) -> Program:
    model = mlp(6, 64, 64, 1)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(surface, 800, seed)
    return regressor(model, opt, data, 250, "Huber loss", loss_fn=nn.HuberLoss(delta=0.5))


def poisson(seed: int) -> Program:
    """Counts; the loss is negative for large ones."""

    def counts(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        x = torch.randn(n, 6, generator=g)
        rate = torch.exp(1.5 + 0.6 * x[:, :1] - 0.5 * x[:, 1:2] * x[:, 2:3].sign())
        return x, torch.poisson(rate, generator=g)

    model = mlp(6, 48, 1)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(counts, 1200, seed)
    program = regressor(model, opt, data, 250, "Poisson loss", loss_fn=nn.PoissonNLLLoss())

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            pairs = [(model(x).exp(), y) for x, y in data[1]]
        out, y = torch.cat([o for o, _ in pairs]), torch.cat([t for _, t in pairs])
        return {"r2": float(1 - ((out - y) ** 2).mean() / y.var())}

    program.evaluate, program.bar = evaluate, 0.3  # most of the variance is the counts' own
    return program


def gaussian_likelihood(seed: int) -> Program:
    """Mean and variance are both predicted; a loss that becomes negative."""
    model = mlp(6, 64, 2)
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = loaders(surface, 800, seed)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        return F.gaussian_nll_loss(out[:, :1], y, F.softplus(out[:, 1:]) + 1e-3)

    program = regressor(model, opt, data, 300, "Gaussian likelihood", loss_fn=loss_fn)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            out = [(model(x)[:, :1], y) for x, y in data[1]]
        said, y = torch.cat([o for o, _ in out]), torch.cat([t for _, t in out])
        return {"r2": float(1 - ((said - y) ** 2).mean() / y.var())}

    program.evaluate = evaluate
    return program


def hinge(seed: int) -> Program:
    """Multi-class hinge loss: exactly 0 where the margin is kept."""
    model = mlp(16, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = loaders(clusters, 1200, seed, noise=1.6)
    return classifier(model, opt, data, 200, "hinge loss", 0.5, loss_fn=nn.MultiMarginLoss())


def triplet(seed: int) -> Program:
    """Three forwards a step; judged by the nearest neighbour, 25 % by guessing."""
    x, y = clusters(800, 400 + seed)
    xv, yv = clusters(200, 5400 + seed)
    model, g = mlp(16, 64, 16), generator(seed)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    of_class = [x[y == k] for k in range(4)]

    def step(batch: Sequence[Tensor]) -> float:
        anchors, kinds = batch
        others = (kinds + torch.randint(1, 4, kinds.shape, generator=g)) % 4
        near, far = (
            torch.stack([_any_of(of_class[k], g) for k in of.tolist()]) for of in (kinds, others)
        )
        model.train()
        opt.zero_grad()
        loss = F.triplet_margin_loss(model(anchors), model(near), model(far))
        loss.backward()
        opt.step()
        return loss.item()

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            nearest = torch.cdist(model(xv), model(x)).argsort(1)[:, :9]
        said = F.one_hot(y[nearest], 4).sum(1).argmax(1)
        return {"accuracy": float((said == yv).float().mean())}

    train = loader(x, y, seed=seed)
    return Program(
        model, None, opt, train, None, step, evaluate, 200, "triplet loss on nearest ones", 0.5
    )


def _any_of(items: Tensor, g: torch.Generator) -> Tensor:
    return items[int(torch.randint(len(items), (), generator=g))]


def contrastive_over_batch(seed: int) -> Program:
    """NT-Xent: two noisy views of each item; the loss compares the whole batch."""
    x, y = clusters(1000, 500 + seed, noise=1.6)
    xv, yv = clusters(200, 5500 + seed, noise=1.6)
    model, g = mlp(16, 64, 16), generator(seed)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss_fn(z: Tensor, _: object = None) -> Tensor:
        z = F.normalize(z, dim=1)
        n = len(z) // 2
        alike = (z @ z.T / 0.3).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e9)
        return F.cross_entropy(alike, torch.arange(2 * n).roll(n))

    def views(items: Tensor) -> Tensor:
        return torch.cat([items + 0.3 * torch.randn(items.shape, generator=g) for _ in range(2)])

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        loss = loss_fn(model(views(batch[0])))
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            nearest = torch.cdist(F.normalize(model(xv)), F.normalize(model(x))).argmin(1)
        return {"accuracy": float((y[nearest] == yv).float().mean())}

    train = loader(x, y, batch=64, seed=seed)
    return Program(
        model, None, opt, train, None, step, evaluate, 200, "contrastive over the batch", 0.5
    )


def prototypes_one_class_batches(seed: int) -> Program:
    """Each batch holds one class (metric learning with class centres as parameters)."""
    x, y = clusters(1200, 600 + seed, noise=1.6)
    order = [torch.where(y == k)[0].split(20) for k in range(4)]
    batches = [(x[part], y[part]) for parts in zip(*order, strict=False) for part in parts]
    xv, yv = clusters(200, 5600 + seed, noise=1.6)

    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.centres = mlp(16, 64, 8), nn.Parameter(torch.randn(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            return -torch.cdist(self.body(x), self.centres)

    model = Prototypes()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        opt.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        opt.step()
        return loss.item()

    valid = [(xv, yv)]
    return Program(
        model,
        F.cross_entropy,
        opt,
        batches,
        valid,
        step,
        lambda: accuracy_of(model, valid),
        300,
        "prototypes, one class in each batch",
        0.5,
    )


def distillation(seed: int) -> Program:
    """A small network learns the softened outputs of a large one, and the labels."""
    data = loaders(pictures, 640, seed)
    teacher = small_cnn()
    pretrain(teacher, data[0], 4)
    teacher.eval().requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(batch: Sequence[Tensor]) -> float:
        x, y = batch
        model.train()
        with torch.no_grad():
            soft = F.softmax(teacher(x) / 3, 1)
        out = model(x)
        loss = 9 * F.kl_div(F.log_softmax(out / 3, 1), soft, reduction="batchmean")
        loss = loss + 0.5 * F.cross_entropy(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()

    program = classifier(model, opt, data, 200, "knowledge distillation", 0.5, step=step)
    program.loss_fn = None
    return program


def two_tasks(seed: int) -> Program:
    """Outputs and targets are dictionaries: a class and a number."""
    x, y = clusters(1200, 700 + seed)
    amount = (x[:, :1] * x[:, 1:2]).clone()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(16, 64, 64)
            self.kind, self.amount = nn.Linear(64, 4), nn.Linear(64, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.relu(self.body(x))
            return {"kind": self.kind(h), "amount": self.amount(h)}

    model = Both()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_fn(out: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(out["kind"], y["kind"]) + F.mse_loss(out["amount"], y["amount"])

    parts = zip(x.split(40), y.split(40), amount.split(40), strict=True)
    batches = [(a, {"kind": b, "amount": c}) for a, b, c in parts]
    train, valid = batches[:25], batches[25:]

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            right = [(model(a)["kind"].argmax(1) == t["kind"]).float().mean() for a, t in valid]
        return {"accuracy": float(torch.stack(right).mean())}

    step = usual_step(model, loss_fn, opt)
    return Program(model, loss_fn, opt, train, valid, step, evaluate, 250, "two tasks", 0.5)


def quantiles(seed: int) -> Program:
    """Three quantiles of one target: the targets (N, 1) meet the outputs (N, 3) on purpose."""
    model = mlp(6, 64, 3)
    opt = torch.optim.Adam(model.parameters(), lr=4e-3)
    levels = torch.tensor([0.1, 0.5, 0.9])
    data = loaders(surface, 800, seed)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        over = y - out
        return torch.maximum(levels * over, (levels - 1) * over).mean()

    program = regressor(model, opt, data, 300, "quantile regression", loss_fn=loss_fn)
    middle = nn.Sequential(model)

    def evaluate() -> dict[str, float]:
        found = r2_of(middle, [(x, y.expand(-1, 3)) for x, y in data[1]])
        model.eval()
        with torch.no_grad():
            inside = [((y > model(x)[:, :1]) & (y < model(x)[:, 2:])).float() for x, y in data[1]]
        return {"inside": float(torch.cat(inside).mean()), **found}

    program.evaluate, program.bar = evaluate, 0.3
    return program

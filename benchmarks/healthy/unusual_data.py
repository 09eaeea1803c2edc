"""Unusual data, single layers, and trainings that are no classification."""

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
    r2_of,
    regressor,
    small_cnn,
    surface,
)

BAR = 0.5
"""Guessing is right in 20 or 25 %."""


def noisy_labels(seed: int) -> Program:
    """Three labels in ten are drawn at random; the loss stays high, the validation is clean."""
    x, y = clusters(1600, 1200 + seed, noise=1.6)
    g = generator(seed)
    wrong = torch.rand(len(y), generator=g) < 0.3
    y = torch.where(wrong, torch.randint(4, y.shape, generator=g), y)
    model = mlp(16, 48, 4)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    data = loader(x, y, seed=seed), loader(*clusters(200, 6200 + seed, noise=1.6), batch=100)
    return classifier(model, opt, data, 200, "30 % noisy labels", BAR)


def forty_items(seed: int) -> Program:
    """Forty items in a batch of their own; easy enough to be right elsewhere."""
    model = mlp(16, 32, 3)

    def easy(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        y = torch.randint(3, (n,), generator=g)
        return 2 * F.one_hot(y, 16) + 0.5 * torch.randn(n, 16, generator=g), y

    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = loader(*easy(40, 1210 + seed), batch=40), loader(*easy(200, 6210 + seed), batch=200)
    return classifier(model, opt, data, 100, "forty items", 0.8)


def bytes_into_batch_norm(seed: int) -> Program:
    """Pixels from 0 to 255; the network begins with a batch normalization."""

    def raw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = pictures(n, seed)
        return (127 + 40 * x).clamp(0, 255).round(), y

    model = nn.Sequential(nn.BatchNorm2d(3), *small_cnn())
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return classifier(model, opt, loaders(raw, 640, seed), 120, "0 to 255 with batch norm", BAR)


def normalizes_inside(seed: int) -> Program:
    """uint8 pictures; the model subtracts and divides by itself."""

    def raw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = pictures(n, seed)
        return (127 + 40 * x).clamp(0, 255).to(torch.uint8), y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_cnn()

        def forward(self, x: Tensor) -> Tensor:
            return self.body((x.float() - 127) / 50)

    model = Net()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return classifier(model, opt, loaders(raw, 640, seed), 120, "uint8 pictures", BAR)


def bytes_with_adam(seed: int) -> Program:
    """Pixels from 0 to 255 as floats into a CNN without scaling: bad style, and it learns."""

    def raw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = pictures(n, seed)
        return (127 + 40 * x).clamp(0, 255), y

    model = small_cnn()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return classifier(model, opt, loaders(raw, 640, seed), 160, "0 to 255, unscaled", BAR)


def sparse_counts(seed: int) -> Program:
    """Bag-of-words counts (N, 300), 95 % of them 0."""

    def counts(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        y = torch.randint(4, (n,), generator=g)
        rate = torch.full((n, 300), 0.04)
        for k in range(4):
            rate[y == k, 20 * k : 20 * k + 20] = 0.15
        return torch.poisson(rate, generator=g), y

    model = mlp(300, 32, 4)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return classifier(model, opt, loaders(counts, 1200, seed), 150, "sparse counts", BAR)


def one_hot_inputs(seed: int) -> Program:
    """Categories as one-hot vectors, 40 of 44 values 0."""

    def codes(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        values = torch.randint(11, (n, 4), generator=g)
        y = (values[:, 0] + values[:, 1] > 10).long() + 2 * (values[:, 2] > 5).long()
        return F.one_hot(values, 11).flatten(1).float(), y

    model = mlp(44, 64, 4)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return classifier(model, opt, loaders(codes, 1200, seed), 200, "one-hot inputs", BAR)


def prices(seed: int) -> Program:
    """Targets around 250,000, not normalized: the first losses are near 1e11."""

    def houses(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = surface(n, seed)
        return x, 250_000 + 60_000 * y

    model = mlp(6, 64, 1)
    with torch.no_grad():
        model[-1].bias.fill_(250_000)
        model[-1].weight.mul_(1e4)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    return regressor(model, opt, loaders(houses, 800, seed), 300, "prices as targets", bar=0.3)


def tiny_targets(seed: int) -> Program:
    """Targets of about 0.01: every loss is small."""

    def small(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = surface(n, seed)
        return x, 0.01 * y

    model = mlp(6, 64, 1)
    with torch.no_grad():
        model[-1].weight.mul_(0.01)
        model[-1].bias.zero_()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    return regressor(model, opt, loaders(small, 800, seed), 300, "tiny targets")


def judged_on_training_data_too(seed: int) -> Program:
    """evaluate() gives the accuracy on both sets, so training data are met in evaluation mode."""
    model = mlp(16, 64, 4)
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    train, valid = loaders(clusters, 1200, seed)
    program = classifier(model, opt, (train, valid), 200, "evaluated on both sets", BAR)

    def evaluate() -> dict[str, float]:
        on_train = accuracy_of(model, train)["accuracy"]
        return {"train_accuracy": on_train, **accuracy_of(model, valid, F.cross_entropy)}

    program.evaluate = evaluate
    return program


def judged_by_a_clone(seed: int) -> Program:
    """Evaluation is by another module that holds the same weights."""
    model, other = small_cnn(), small_cnn()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(pictures, 640, seed)
    program = classifier(model, opt, data, 120, "evaluated by a clone", BAR)

    def evaluate() -> dict[str, float]:
        other.load_state_dict(model.state_dict())
        return accuracy_of(other, data[1], F.cross_entropy)

    program.evaluate = evaluate
    return program


def logistic_regression(seed: int) -> Program:
    """One layer, two classes, by the binary cross entropy; guessing is right in 50 %."""

    def two(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        x = torch.randn(n, 8, generator=g)
        p = torch.sigmoid(2 * x[:, :1] - 1.5 * x[:, 1:2] + 0.5)
        return x, torch.bernoulli(p, generator=g)

    model = nn.Linear(8, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    train, valid = loaders(two, 800, seed)
    loss_fn = nn.BCEWithLogitsLoss()
    program = classifier(
        model, opt, (train, valid), 200, "logistic regression", 0.7, loss_fn=loss_fn
    )

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            right = [((model(x) > 0) == (y > 0.5)).float().mean() for x, y in valid]
        return {"accuracy": float(torch.stack(right).mean())}

    program.evaluate = evaluate
    return program


def softmax_regression(seed: int) -> Program:
    """One linear layer, begun at zero as the textbook does."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    nn.init.zeros_(model[1].weight)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    data = loaders(pictures, 640, seed, size=16)
    return classifier(model, opt, data, 200, "softmax regression from zero", 0.35)


def linear_regression(seed: int) -> Program:
    def plane(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        x = torch.randn(n, 5, generator=g)
        y = x @ torch.tensor([[2.0], [-1.0], [0.5], [0.0], [3.0]]) + 4
        return x, y + 0.3 * torch.randn(n, 1, generator=g)

    model = nn.Linear(5, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.03)
    return regressor(model, opt, loaders(plane, 600, seed), 200, "linear regression", bar=0.8)


def flat_targets(seed: int) -> Program:
    """Outputs and targets are both (N,)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(6, 64, 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).squeeze(1)

    def flat(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = surface(n, seed)
        return x, y[:, 0]

    model = Net()
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    return regressor(model, opt, loaders(flat, 800, seed), 250, "outputs and targets (N,)")


def weak_signal(seed: int) -> Program:
    """Returns of a market, mostly noise: 10 % of the variance can be explained, and about is."""

    def market(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        x = torch.randn(n, 6, generator=g)
        return x, 0.33 * x[:, :1] + torch.randn(n, 1, generator=g)

    model = mlp(6, 16, 1)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    x, y = market(3000, 1230 + seed)
    data = loader(x, y, batch=64, seed=seed), [market(3000, 6230 + seed)]
    return regressor(model, opt, data, 200, "a weak signal in noise", bar=0.05)


def bandit(seed: int) -> Program:
    """Policy gradient on a contextual bandit with a moving baseline; the loss means nothing.

    Judged by the mean reward; chance is 0.25.
    """
    model, g = mlp(8, 32, 4), generator(1240 + seed)
    best = torch.randn(8, 4, generator=generator(82))
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    baseline = [0.25]

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        scores = model(batch[0]).log_softmax(1)
        chosen = torch.multinomial(scores.detach().exp(), 1, generator=g)
        reward = (chosen[:, 0] == (batch[0] @ best).argmax(1)).float()
        loss = -((reward - baseline[0]) * scores.gather(1, chosen)[:, 0]).mean()
        baseline[0] += 0.1 * (float(reward.mean()) - baseline[0])
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()

    states = torch.randn(300, 8, generator=g)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            said = model(states).argmax(1)
        return {"reward": float((said == (states @ best).argmax(1)).float().mean())}

    train = loader(torch.randn(2000, 8, generator=g), batch=64, seed=seed)
    return Program(
        model, None, opt, train, None, step, evaluate, 250, "policy gradient", 0.5, metric="reward"
    )


def value_learning(seed: int) -> Program:
    """Temporal differences with a target network on a walk along ten places.

    The targets move, so the loss rises before it falls. Judged by how much of the true values'
    variance is explained.
    """
    model, frozen = mlp(10, 32, 1), mlp(10, 32, 1)
    frozen.load_state_dict(model.state_dict())
    opt, g, count = torch.optim.Adam(model.parameters(), lr=5e-3), generator(1250 + seed), [0]
    places = torch.eye(10)

    def step(batch: Sequence[Tensor]) -> float:
        place, at = batch
        to = (at + 1).clamp(max=9)
        with torch.no_grad():
            after = torch.where(at == 9, 1.0, 0.8 * frozen(places[to])[:, 0])
        model.train()
        loss = F.mse_loss(model(place)[:, 0], after)
        opt.zero_grad()
        loss.backward()
        opt.step()
        count[0] += 1
        if count[0] % 10 == 0:
            frozen.load_state_dict(model.state_dict())
        return loss.item()

    truth = 0.8 ** (9 - torch.arange(10.0))[:, None]
    at = torch.randint(10, (1000,), generator=g)
    train = loader(places[at], at, batch=32, seed=seed)
    return Program(
        model, None, opt, train, None, step, lambda: r2_of(model, [(places, truth)]), 300,
        "temporal differences", 0.5, metric="r2",
    )  # fmt: skip


def differential_equation(seed: int) -> Program:
    """Solves u'' = −u with u(0) = 0 and u'(0) = 1, by input gradients; u = sin."""
    model = mlp(1, 32, 32, 1, act=nn.Tanh)
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    zero = torch.zeros(1, 1)

    def derivative(u: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(u.sum(), x, create_graph=True)[0]

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        x = batch[0].clone().requires_grad_()
        u = model(x)
        residual = derivative(derivative(u, x), x) + u
        start = zero.clone().requires_grad_()
        at_start = model(start)
        loss = residual.square().mean()
        loss = loss + at_start.square().mean() + (derivative(at_start, start) - 1).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.item()

    x = torch.linspace(0, 3, 100)[:, None]
    train = loader(3 * torch.rand(1000, 1, generator=generator(seed)), batch=100, seed=seed)
    return Program(
        model, None, opt, train, None, step, lambda: r2_of(model, [(x, x.sin())]), 300,
        "physics-informed", 0.5, metric="r2",
    )  # fmt: skip


def implicit_picture(seed: int) -> Program:
    """Coordinates to grey values, one picture: memorizing it is the task."""
    picture = pictures(1, 1260, size=24, channels=1, noise=0.0)[0][0, 0]
    v, u = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
    x, y = torch.stack([u, v], 2).reshape(-1, 2), picture.reshape(-1, 1)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
                          nn.Linear(64, 1))  # fmt: skip
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = loader(x, y, batch=64, seed=seed), [(x, y)]
    return regressor(model, opt, data, 1000, "a picture as a function", bar=0.5)


def denoiser(seed: int) -> Program:
    """Diffusion: the noise in a point of a ring is predicted; the loss cannot go to 0."""
    g = generator(1270 + seed)
    angle = 6.28 * torch.rand(1500, generator=g)
    points = torch.stack([angle.cos(), angle.sin()], 1)

    def noised(x: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        t = torch.rand(len(x), 1, generator=g)
        noise = torch.randn(x.shape, generator=g)
        return torch.cat([(1 - t).sqrt() * x + t.sqrt() * noise, t], 1), noise

    model = mlp(3, 64, 64, 2, act=nn.SiLU)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train = [noised(part, g) for _ in range(10) for part in points.split(64)]
    test = [noised(points[:500], generator(1))]
    return regressor(model, opt, (train, test), 300, "diffusion", bar=0.4)


def collaborative_filtering(seed: int) -> Program:
    """Ratings of 60 users for 40 films from embeddings and biases."""
    g = generator(1280)
    taste, kind = torch.randn(60, 3, generator=g), torch.randn(40, 3, generator=g)

    def ratings(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = generator(seed)
        who, what = torch.randint(60, (n,), generator=g), torch.randint(40, (n,), generator=g)
        y = 3 + (taste[who] * kind[what]).sum(1) / 2 + 0.2 * torch.randn(n, generator=g)
        return torch.stack([who, what], 1), y.clamp(1, 5)

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.films = nn.Embedding(60, 6), nn.Embedding(40, 6)
            self.user_bias, self.film_bias = nn.Embedding(60, 1), nn.Embedding(40, 1)
            for table in (self.users, self.films):
                nn.init.normal_(table.weight, std=0.3)

        def forward(self, x: Tensor) -> Tensor:
            who, what = x[:, 0], x[:, 1]
            out = (self.users(who) * self.films(what)).sum(1)
            return 3 + out + (self.user_bias(who) + self.film_bias(what))[:, 0]

    model = Factors()
    opt = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    data = loaders(ratings, 4000, seed, batch=64)
    return regressor(model, opt, data, 500, "collaborative filtering", bar=0.3)

"""Odd and usual schedules and optimizers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel, update_bn

from healthy.common import (
    Program,
    accuracy_of,
    classifier,
    clusters,
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

BAR = 0.5
"""Guessing is right in 20 or 25 %."""


def warm_up_from_zero(seed: int) -> Program:
    model = small_cnn()
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = schedules.LambdaLR(opt, lambda i: min(i / 80, 1.0))
    data = loaders(pictures, 640, seed)
    return classifier(
        model, opt, data, 200, "linear warm-up from a rate of 0", BAR, scheduler=schedule
    )


def cosine_restarts(seed: int) -> Program:
    model = mlp(16, 64, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = schedules.CosineAnnealingWarmRestarts(opt, 40, 2)
    data = loaders(clusters, 1200, seed)
    return classifier(
        model, opt, data, 280, "cosine with warm restarts", BAR, scheduler=schedule, eval_every=40
    )


def one_cycle_momentum(seed: int) -> Program:
    model = small_cnn()
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = schedules.OneCycleLR(opt, 0.15, 161, base_momentum=0.85, max_momentum=0.95)
    data = loaders(pictures, 640, seed)
    return classifier(
        model, opt, data, 160, "one-cycle with cycled momentum", BAR, scheduler=schedule
    )


def cyclic_rate(seed: int) -> Program:
    model = mlp(16, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = schedules.CyclicLR(opt, 0.001, 0.2, step_size_up=25, mode="triangular2")
    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 250, "cyclic rate", BAR, scheduler=schedule)


def step_decay_to_little(seed: int) -> Program:
    """Ends at a thousandth of the rate, after it has learned."""
    model = mlp(16, 64, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    schedule = schedules.MultiStepLR(opt, [120, 180, 220])
    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 260, "step decay by 1,000", BAR, scheduler=schedule)


def early_decay_but_learned(seed: int) -> Program:
    """The rate is down by 100 before the half: the problem is easy and was learned by then."""
    model = mlp(16, 64, 4)
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = schedules.ExponentialLR(opt, 0.96)
    data = loaders(clusters, 1200, seed, noise=1.4)
    return classifier(model, opt, data, 300, "exponential decay", BAR, scheduler=schedule)


def reduce_on_plateau(seed: int) -> Program:
    model = mlp(6, 64, 64, 1)
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = schedules.ReduceLROnPlateau(opt, factor=0.3, patience=1)
    data = loaders(surface, 800, seed)
    program = regressor(model, opt, data, 300, "reduce on plateau")

    def evaluate() -> dict[str, float]:
        found = r2_of(model, data[1], F.mse_loss)
        schedule.step(found["loss"])
        return found

    program.evaluate, program.eval_every = evaluate, 25
    return program


def tiny_rate_fine_tuning(seed: int) -> Program:
    """A trained network, and a rate of 1e-5 as for large language models."""
    model = small_cnn()
    data = loaders(pictures, 640, seed)
    pretrain(model, data[0], 5)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-5)
    return classifier(model, opt, data, 80, "fine-tuning with a tiny rate", BAR)


def trained_again(seed: int) -> Program:
    """A good network trained again at a usual rate."""
    model = mlp(16, 64, 4)
    data = loaders(clusters, 1200, seed)
    pretrain(model, data[0], 12)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    return classifier(model, opt, data, 120, "a trained network again", BAR)


def resumed_with_optimizer(seed: int) -> Program:
    """The second half of a training: model, Adam's moments and the schedule are loaded."""
    data = loaders(pictures, 640, seed)
    first = small_cnn()
    before = torch.optim.Adam(first.parameters(), lr=2e-3)
    step = usual_step(first, F.cross_entropy, before)
    for _ in range(4):
        for batch in data[0]:
            step(batch)
    model = small_cnn()
    model.load_state_dict(copy.deepcopy(first.state_dict()))
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    opt.load_state_dict(copy.deepcopy(before.state_dict()))
    return classifier(model, opt, data, 80, "resumed", BAR)


def nesterov_high(seed: int) -> Program:
    model = mlp(16, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.99, nesterov=True)
    data = loaders(clusters, 1200, seed)
    return classifier(model, opt, data, 400, "Nesterov momentum 0.99, small rate", BAR)


def plain_sgd(seed: int) -> Program:
    model = small_cnn(norm=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return classifier(model, opt, loaders(pictures, 640, seed), 400, "SGD without momentum", BAR)


def adamw_decay_tenth(seed: int) -> Program:
    model = small_cnn()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    return classifier(model, opt, loaders(pictures, 640, seed), 160, "AdamW, decay 0.1", BAR)


def sgd_decay_as_published(seed: int) -> Program:
    """Decay 5e-4 with rate 0.1: as in many recipes for CIFAR."""
    model = small_cnn()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return classifier(model, opt, loaders(pictures, 640, seed), 160, "SGD, decay 5e-4", BAR)


def rmsprop(seed: int) -> Program:
    model = mlp(16, 64, 4)
    opt = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return classifier(model, opt, loaders(clusters, 1200, seed), 200, "RMSprop", BAR)


def adagrad(seed: int) -> Program:
    model = mlp(16, 64, 4)
    opt = torch.optim.Adagrad(model.parameters(), lr=0.05)
    return classifier(model, opt, loaders(clusters, 1200, seed), 200, "Adagrad", BAR)


def adamax_and_amsgrad(seed: int) -> Program:
    """Two optimizers, each for a half of one network."""
    model = mlp(16, 64, 64, 4)
    first = torch.optim.Adamax(model[:2].parameters(), lr=5e-3)
    second = torch.optim.Adam(model[2:].parameters(), lr=2e-3, amsgrad=True)
    data = loaders(clusters, 1200, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        for opt in (first, second):
            opt.step()
            opt.zero_grad()
        return loss.item()

    program = classifier(model, first, data, 200, "two optimizers", BAR, step=step)
    program.optimizer = None  # check takes one optimizer, and neither has all parameters
    return program


def lbfgs(seed: int) -> Program:
    """The whole set in a batch, and a closure."""
    model = mlp(6, 32, 1, act=nn.Tanh)
    opt = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    data = loaders(surface, 400, seed, batch=400)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()

        def closure() -> Tensor:
            opt.zero_grad()
            loss = F.mse_loss(model(batch[0]), batch[1])
            loss.backward()
            return loss

        return opt.step(closure).item()

    return regressor(model, opt, data, 60, "L-BFGS with a closure", step=step)


def rprop(seed: int) -> Program:
    model = mlp(6, 32, 1, act=nn.Tanh)
    opt = torch.optim.Rprop(model.parameters(), lr=1e-3)
    return regressor(model, opt, loaders(surface, 500, seed, batch=500), 200, "Rprop, whole set")


def hand_written_sgd(seed: int) -> Program:
    """No optimizer of torch's: weights are changed by hand."""
    model = mlp(16, 64, 4)
    data = loaders(clusters, 1200, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
                p.grad = None
        return loss.item()

    program = classifier(
        model, torch.optim.SGD(model.parameters(), lr=0.1), data, 250, "SGD by hand", BAR, step=step
    )
    program.optimizer = None
    return program


def functional_grad(seed: int) -> Program:
    """torch.autograd.grad instead of backward, and an update by hand."""
    model = mlp(6, 64, 1)
    data = loaders(surface, 800, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        parameters = list(model.parameters())
        loss = F.mse_loss(model(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(g, alpha=0.05)
        return loss.item()

    program = regressor(
        model, torch.optim.SGD(model.parameters(), lr=0.05), data, 400, "autograd.grad", step=step
    )
    program.optimizer = None
    return program


def sharpness_aware(seed: int) -> Program:
    """Two forwards and backwards a step: the gradient where the loss is highest nearby."""
    model = mlp(16, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = loaders(clusters, 1200, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            grads = [p.grad for p in model.parameters()]
            norm = torch.stack([g.norm() for g in grads]).norm()
            moves = [0.05 * g / (norm + 1e-12) for g in grads]
            for p, move in zip(model.parameters(), moves, strict=True):
                p.add_(move)
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.sub_(move)
        opt.step()
        opt.zero_grad()
        return loss.item()

    return classifier(model, opt, data, 200, "sharpness-aware minimization", BAR, step=step)


def moving_average(seed: int) -> Program:
    """Evaluated with an exponential moving average of the weights, another network."""
    model = small_cnn(norm=False)
    averaged = copy.deepcopy(model).requires_grad_(False)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(pictures, 640, seed)
    usual = usual_step(model, F.cross_entropy, opt)

    def step(batch: Sequence[Tensor]) -> float:
        loss = usual(batch)
        for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(now.data, 0.05)
        return loss

    program = classifier(model, opt, data, 250, "moving average of weights", BAR, step=step)
    program.evaluate = lambda: accuracy_of(averaged, data[1], F.cross_entropy)
    return program


def averaged_weights(seed: int) -> Program:
    """Stochastic weight averaging; update_bn runs the copy in training mode without gradients."""
    model = small_cnn()
    swa = AveragedModel(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = loaders(pictures, 640, seed)
    usual, count = usual_step(model, F.cross_entropy, opt), [0]

    def step(batch: Sequence[Tensor]) -> float:
        loss = usual(batch)
        count[0] += 1
        if count[0] >= 80 and count[0] % 10 == 0:
            swa.update_parameters(model)
        return loss

    def evaluate() -> dict[str, float]:
        if count[0] < 80:
            return accuracy_of(model, data[1], F.cross_entropy)
        update_bn(data[0], swa)
        return accuracy_of(swa, data[1], F.cross_entropy)

    program = classifier(model, opt, data, 160, "weight averaging with update_bn", BAR, step=step)
    program.evaluate = evaluate
    return program


def batch_norm_recalibrated(seed: int) -> Program:
    """Before each evaluation the watched network runs in training mode without gradients."""
    model = small_cnn()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = loaders(pictures, 640, seed)
    program = classifier(model, opt, data, 160, "update_bn on the network itself", BAR)

    def evaluate() -> dict[str, float]:
        update_bn(data[0], model)
        return accuracy_of(model, data[1], F.cross_entropy)

    program.evaluate = evaluate
    return program


def accumulated(seed: int) -> Program:
    """Four small batches for each step, the loss divided by four."""
    model = small_cnn(norm=False)
    opt = torch.optim.Adam(model.parameters(), lr=4e-3)
    data, count = loaders(pictures, 640, seed, batch=8), [0]

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        (loss / 4).backward()
        count[0] += 1
        if count[0] % 4 == 0:
            opt.step()
            opt.zero_grad()
        return loss.item()

    return classifier(model, opt, data, 600, "gradient accumulation", BAR, step=step)


def accumulated_in_closure(seed: int) -> Program:
    """A closure that runs four parts of the batch."""
    model = mlp(16, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = loaders(clusters, 1200, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()

        def closure() -> float:
            opt.zero_grad()
            total = 0.0
            for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
                loss = F.cross_entropy(model(x), y) * len(x) / len(batch[0])
                loss.backward()
                total += loss.item()
            return total

        return opt.step(closure)  # type: ignore[arg-type]

    return classifier(model, opt, data, 200, "accumulation in a closure", BAR, step=step)


def clipped_each_step(seed: int) -> Program:
    """The norm of the gradient is above 0.5 in nearly every step, and so is 0.5."""
    model = mlp(16, 64, 64, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    data = loaders(clusters, 1200, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        opt.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        opt.step()
        return loss.item()

    return classifier(model, opt, data, 220, "clipped at each step", BAR, step=step)


def sign_clipped_adam(seed: int) -> Program:
    """Clipped to 0.001 in front of Adam, which divides by the size again, so it learns."""
    model = mlp(16, 64, 4)
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = loaders(clusters, 1200, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        opt.step()
        return loss.item()

    return classifier(model, opt, data, 220, "clipped to little, with Adam", BAR, step=step)

"""Trained networks of which a part is frozen, or trained slowly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healthy.common import Program, classifier, loader, loaders, pictures, pretrain, small_cnn

BAR = 0.5
"""Guessing is right in 20 %."""


def _backbone(seed: int) -> nn.Sequential:
    """A CNN trained on other pictures, with a new head."""
    model = small_cnn(classes=8)
    pretrain(model, loader(*pictures(640, 1100 + seed, classes=8), seed=seed), 4)
    model[-1] = nn.Linear(32, 5)
    return model


def linear_probe(seed: int) -> Program:
    """The backbone is frozen with requires_grad_(False), and stays in evaluation mode."""
    model = _backbone(seed)
    model[:-1].requires_grad_(False)
    opt = torch.optim.Adam(model[-1].parameters(), lr=0.02)
    data = loaders(pictures, 640, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.eval()
        model[-1].train()
        opt.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        opt.step()
        return loss.item()

    return classifier(model, opt, data, 120, "linear probe, frozen backbone", BAR, step=step)


def head_only_in_optimizer(seed: int) -> Program:
    """The backbone gets gradients, but only the head's parameters are the optimizer's."""
    model = _backbone(seed)
    opt = torch.optim.SGD(model[-1].parameters(), lr=0.1, momentum=0.9)
    return classifier(model, opt, loaders(pictures, 640, seed), 120, "only the head's", BAR)


def probe_without_gradients(seed: int) -> Program:
    """Features under no_grad, as in many scripts."""

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = _backbone(seed)
            self.backbone, self.head = whole[:-1], whole[-1]

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.backbone(x)
            return self.head(h)

    model = Probe()
    opt = torch.optim.Adam(model.head.parameters(), lr=0.02)
    return classifier(model, opt, loaders(pictures, 640, seed), 120, "features under no_grad", BAR)


def first_layers_frozen(seed: int) -> Program:
    model = _backbone(seed)
    model[:3].requires_grad_(False)
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    return classifier(model, opt, loaders(pictures, 640, seed), 100, "first layers frozen", BAR)


def discriminative_rates(seed: int) -> Program:
    """A rate for each depth, lower below (as fast.ai's slices)."""
    model = _backbone(seed)
    groups = [{"params": model[:6].parameters(), "lr": 1e-4}, {"params": model[6:].parameters()}]
    opt = torch.optim.Adam(groups, lr=5e-3)
    return classifier(model, opt, loaders(pictures, 640, seed), 100, "rates by depth", BAR)


def batch_norm_frozen(seed: int) -> Program:
    """Batch normalization in evaluation mode while the rest trains (as in detection)."""
    model = _backbone(seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data = loaders(pictures, 640, seed)

    def step(batch: Sequence[Tensor]) -> float:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        opt.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        opt.step()
        return loss.item()

    return classifier(model, opt, data, 100, "batch norms frozen", BAR, step=step)

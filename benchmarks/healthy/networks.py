"""Networks of torchvision and timm on pictures of 32×32; guessing is right in 20 %.

Tried and left out, as they do not learn in so few steps on so small pictures: SqueezeNet 1.1,
MobileNetV2, EfficientNet-B0, RegNetY-400MF, MnasNet.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torchvision.models as tv
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from healthy.common import Program, classifier, loaders, pictures

BAR = 0.5
"""Two and a half times what guessing gives."""


def _program(
    model: nn.Module,
    lr: float,
    n_steps: int,
    seed: int,
    *,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    one_cycle: bool = False,
    **options: Any,  # noqa: ANN401
) -> Program:
    opt = optimizer(model.parameters(), lr=lr, **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, n_steps + 1) if one_cycle else None
    data = loaders(pictures, 480, seed, batch=16, noise=0.5, distraction=0.2)
    task = f"{type(model).__name__} on small pictures, {optimizer.__name__}"
    return classifier(model, opt, data, n_steps, task, BAR, scheduler=schedule)


def _quick_norms(model: nn.Module) -> nn.Module:
    """Batch normalizations with the usual momentum, as one does for a short training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def torchvision_resnet18(seed: int) -> Program:
    model = tv.resnet18(num_classes=5)
    return _program(model, 0.02, 40, seed, optimizer=torch.optim.SGD, momentum=0.9)


def torchvision_mobilenet_v3_small(seed: int) -> Program:
    """Its batch normalizations have momentum 0.01, too little for a training of 80 steps."""
    return _program(_quick_norms(tv.mobilenet_v3_small(num_classes=5)), 2e-3, 80, seed)


def torchvision_shufflenet(seed: int) -> Program:
    model = tv.shufflenet_v2_x0_5(num_classes=5)
    return _program(model, 0.01, 60, seed, one_cycle=True)


def torchvision_densenet(seed: int) -> Program:
    model = tv.DenseNet(8, (3, 3, 3), 16, num_classes=5)
    return _program(model, 0.05, 60, seed, optimizer=torch.optim.SGD, momentum=0.9, nesterov=True)


def torchvision_convnext(seed: int) -> Program:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)]
    model = ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=5)
    return _program(model, 1e-3, 100, seed, optimizer=torch.optim.AdamW, weight_decay=0.05)


def timm_resnet10t(seed: int) -> Program:
    model = timm.create_model("resnet10t", num_classes=5)
    return _program(model, 0.02, 40, seed, optimizer=torch.optim.SGD, momentum=0.9)


def timm_vit(seed: int) -> Program:
    model = VisionTransformer(32, 8, num_classes=5, embed_dim=64, depth=4, num_heads=4)
    return _program(model, 1e-3, 120, seed, optimizer=torch.optim.AdamW, one_cycle=True)


def timm_mixer(seed: int) -> Program:
    model = MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=3, embed_dim=64)
    return _program(model, 1e-3, 120, seed)


def timm_test_convnext(seed: int) -> Program:
    model = timm.create_model("test_convnext", num_classes=5)
    return _program(model, 2e-3, 120, seed, optimizer=torch.optim.AdamW)


def timm_test_efficientnet(seed: int) -> Program:
    return _program(timm.create_model("test_efficientnet", num_classes=5), 2e-3, 80, seed)


def timm_without_normalization(seed: int) -> Program:
    """NFNet: no normalization of activations, but standardized weights."""
    model = timm.create_model("test_nfnet", num_classes=5)
    return _program(model, 2e-3, 100, seed)

"""Real networks: torchvision's, timm's, transformers' and a few that were written for this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Network = tuple[Callable[[], nn.Module], Any]
"""What makes it, and what it is called with: a shape, or tensors by name."""

TORCHVISION: dict[str, Shape] = {
    "alexnet": (1, 3, 64, 64),
    "vgg11_bn": (1, 3, 32, 32),
    "resnet18": (1, 3, 64, 64),
    "resnext50_32x4d": (1, 3, 64, 64),
    "densenet121": (1, 3, 64, 64),
    "googlenet": (2, 3, 64, 64),
    "inception_v3": (2, 3, 96, 96),
    "mobilenet_v2": (1, 3, 64, 64),
    "mobilenet_v3_small": (1, 3, 64, 64),
    "mnasnet0_5": (1, 3, 64, 64),
    "shufflenet_v2_x0_5": (1, 3, 64, 64),
    "squeezenet1_1": (1, 3, 64, 64),
    "efficientnet_b0": (1, 3, 64, 64),
    "regnet_y_400mf": (1, 3, 64, 64),
    "convnext_tiny": (1, 3, 64, 64),
    "swin_t": (1, 3, 64, 64),
    "swin_v2_t": (1, 3, 64, 64),
    "maxvit_t": (1, 3, 224, 224),
    "vit_b_16": (1, 3, 224, 224),
    "fcn_resnet50": (1, 3, 64, 64),
    "deeplabv3_mobilenet_v3_large": (2, 3, 64, 64),
    "lraspp_mobilenet_v3_large": (1, 3, 64, 64),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (1, 3, 96, 96),
    "ssdlite320_mobilenet_v3_large": (1, 3, 320, 320),
    "r3d_18": (1, 3, 4, 32, 32),
    "r2plus1d_18": (1, 3, 4, 32, 32),
    "swin3d_t": (1, 3, 4, 64, 64),
}

TIMM: dict[str, Shape] = {
    "coat_tiny": (1, 3, 224, 224),
    "crossvit_tiny_240": (1, 3, 240, 240),
    "xcit_nano_12_p16_224": (1, 3, 64, 64),
    "levit_128s": (1, 3, 224, 224),
    "volo_d1_224": (1, 3, 224, 224),
    "tnt_s_legacy_patch16_224": (1, 3, 224, 224),
    "beit_base_patch16_224": (1, 3, 224, 224),
    "eva02_tiny_patch14_224": (1, 3, 224, 224),
    "deit_tiny_patch16_224": (1, 3, 224, 224),
    "cait_xxs24_224": (1, 3, 224, 224),
    "pit_ti_224": (1, 3, 224, 224),
    "poolformer_s12": (1, 3, 64, 64),
    "gcvit_xxtiny": (1, 3, 224, 224),
    "davit_tiny": (1, 3, 64, 64),
    "edgenext_xx_small": (1, 3, 64, 64),
    "efficientformer_l1": (1, 3, 224, 224),
    "fastvit_t8": (1, 3, 64, 64),
    "ghostnet_050": (1, 3, 64, 64),
    "hrnet_w18_small": (1, 3, 64, 64),
    "mobilevit_xxs": (1, 3, 64, 64),
    "repvgg_a0": (1, 3, 64, 64),
    "resnest14d": (1, 3, 64, 64),
    "rexnet_100": (1, 3, 64, 64),
    "sequencer2d_s": (1, 3, 224, 224),
    "halonet26t": (1, 3, 256, 256),
    "tf_efficientnet_lite0": (1, 3, 64, 64),
    "twins_svt_small": (1, 3, 64, 64),
    "mixer_s32_224": (1, 3, 224, 224),
    "vit_small_patch16_dinov3": (1, 3, 64, 64),
    "nf_regnet_b0": (1, 3, 64, 64),
}


def _tiny(name: str, **options: Any) -> Network:
    """A model of transformers with few and narrow layers."""

    def make() -> nn.Module:
        import transformers

        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": 64,
            "patch_size": 16,
        }
        config = getattr(transformers, f"{name}Config")(**{**sizes, **options})
        return getattr(transformers, f"{name}Model")(config)

    return make, {"pixel_values": torch.rand(1, 3, 64, 64)}


def _stages(name: str, **options: Any) -> Network:
    """A model of transformers that has stages, small."""

    def make() -> nn.Module:
        import transformers

        return getattr(transformers, f"{name}Model")(
            getattr(transformers, f"{name}Config")(**options)
        )

    return make, {"pixel_values": torch.rand(1, 3, 64, 64)}


def _rt_detr() -> nn.Module:
    from transformers import RTDetrConfig, RTDetrModel
    from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrModel(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_hidden_dim=32,
            encoder_in_channels=[12, 16, 24],
            encoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_in_channels=[32, 32, 32],
            d_model=32,
            decoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
            num_queries=10,
        )
    )


TRANSFORMERS: dict[str, Network] = {
    "DINOv3ViT": _tiny("DINOv3ViT"),
    "Dinov2": _tiny("Dinov2"),
    "Beit": _tiny("Beit", use_relative_position_bias=True),
    "Data2VecVision": _tiny("Data2VecVision", use_relative_position_bias=True),
    "ViT": _tiny("ViT"),
    "DeiT": _tiny("DeiT"),
    "ViTMAE": _tiny("ViTMAE"),
    "Yolos": _tiny("Yolos", image_size=[64, 64]),
    "RTDetr": (_rt_detr, {"pixel_values": torch.rand(1, 3, 64, 64)}),
    "Swin": _stages("Swin", image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2]),
    "Swinv2": _stages("Swinv2", image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2]),
    "ConvNext": _stages("ConvNext", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
    "Segformer": _stages("Segformer", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
    "Levit": _stages("Levit", image_size=64),
    "PoolFormer": _stages("PoolFormer", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
}


class Siamese(nn.Module):
    """Two inputs through one encoder, registered whole and in slices."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.stages = nn.ModuleList([self.encoder[:1], self.encoder[1:]])

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        for stage in self.stages:
            a, b = stage(a), stage(b)
        return {"distance": (a - b).square().mean((1, 2, 3)), "a": a}


class Recurrent(nn.Module):
    """Rows of an image through a GRU and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(24, 16, batch_first=True)
        self.lstm = nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.gru(x.flatten(1, 2))[0])[0][:, -1]


OWN: dict[str, Network] = {
    "siamese": (Siamese, [(1, 3, 16, 16), (1, 3, 16, 16)]),
    "recurrent": (Recurrent, (1, 1, 24, 24)),
}


def networks() -> dict[str, Network]:
    """All of them by name."""
    import timm
    import torchvision
    from execution_models import MODELS

    def of_torchvision(name: str) -> Callable[[], nn.Module]:
        more = {"weights_backbone": None} if name in _WITH_BACKBONE else {}
        return lambda: torchvision.models.get_model(name, weights=None, **more)

    found: dict[str, Network] = {
        f"torchvision:{name}": (of_torchvision(name), shape) for name, shape in TORCHVISION.items()
    }
    for name, shape in TIMM.items():
        found[f"timm:{name}"] = (lambda name=name: timm.create_model(name), shape)
    found |= {f"transformers:{name}": network for name, network in TRANSFORMERS.items()}
    found |= {f"ours:{name}": (make, (1, 3, 8, 8)) for name, make in MODELS.items()}
    return found | {f"ours:{name}": network for name, network in OWN.items()}


_WITH_BACKBONE = (
    "fcn_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
)

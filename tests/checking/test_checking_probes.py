"""What the experiments on a copy of a model say, without a whole check."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convlens.checking.probes import is_affine


class Residual(nn.Module):
    """Blocks that add a branch times ``scale``, its last weights times ``last``."""

    def __init__(self, *, scale: float, last: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 16), nn.Linear(16, 3)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(scale)) for _ in range(6))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), activation(), nn.Linear(16, 16)) for _ in range(6)
        )
        for block in self.blocks:
            with torch.no_grad():
                block[2].weight *= last

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for scale, block in zip(self.scales, self.blocks, strict=True):
            h = h + scale * block(h)
        return self.head(h)


@pytest.mark.parametrize(
    ("scale", "last"),
    [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1e-6, 1.0), (1.0, 1e-5)],
    ids=["usual", "zero weights", "ReZero", "layer scale", "small weights"],
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_affine_is_the_architecture_not_how_it_begins(
    scale: float, last: float, activation: type[nn.Module]
) -> None:
    model = Residual(scale=scale, last=last, activation=activation).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert is_affine(model, torch.randn(16, 4)) is (activation is nn.Identity)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_head_that_begins_at_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 3))
    nn.init.zeros_(model[1].weight)
    assert is_affine(model, torch.randn(16, 4)) is True


def test_whether_a_single_matrix_is_affine_is_not_asked() -> None:
    assert is_affine(nn.Linear(4, 3), torch.randn(16, 4)) is None

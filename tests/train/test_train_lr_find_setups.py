"""Whether `lr_find` suggests rates that train as well as the best one of a grid."""

from __future__ import annotations

import numpy as np
import pytest
from lr_find_setups import CIFAR, SETUPS

SEEDS = range(3)
POINT = 1.0
"""By so many percent may the suggestion train worse than the best rate."""


@pytest.mark.slow  # 12 minutes of one core for all
@pytest.mark.parametrize("name", SETUPS)
def test_a_suggestion_trains_as_well_as_the_best_rate_of_a_grid(name: str) -> None:
    if "objects" in name and not CIFAR.is_file():
        pytest.skip(f"needs {CIFAR}")
    setup = SETUPS[name]
    found = [setup.learner(seed).lr_find() for seed in SEEDS]
    grid = {lr: [setup.trained(seed, lr) for seed in SEEDS] for lr in setup.rates}
    best = max(grid, key=lambda lr: float(np.mean(grid[lr])))
    rates = [one.suggestion for one in found]
    assert None not in rates, [str(one) for one in found]
    ours = [setup.trained(seed, lr) for seed, lr in zip(SEEDS, rates, strict=True) if lr]
    print(
        f"\n| {name} | {', '.join(f'{lr:.2g}' for lr in rates if lr)} | {np.mean(ours):.2f} "
        f"({min(ours):.1f} to {max(ours):.1f}) | {best:.2g} | {np.mean(grid[best]):.2f} "
        f"({min(grid[best]):.1f} to {max(grid[best]):.1f}) | "
        f"{np.mean(ours) - np.mean(grid[best]):+.2f} |"
    )
    print({f"{lr:.2g}": round(float(np.mean(scores)), 1) for lr, scores in grid.items()})
    assert np.mean(ours) > np.mean(grid[best]) - POINT


def test_a_suggestion_trains_well() -> None:
    """The short sibling: one seed, the neighbours of the best rate only."""
    setup = SETUPS["digits, no norm, AdamW, 64"]
    lr = setup.learner(0).lr_find().suggestion
    assert lr is not None
    assert 3e-3 < lr < 0.03
    assert setup.trained(0, lr) > 93.0

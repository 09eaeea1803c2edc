"""One snapshot of every kind, made up."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from convlens.core.snapshots import (
    Calibration,
    ClassActivationMaps,
    Confusion,
    EffectiveFieldMap,
    FeatureMaps,
    FieldIntervals,
    Kernels,
    Mistakes,
    Probes,
    Snapshot,
)


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grey(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_maps(layer: str = "0.0", epoch: int = -1, seed: int = 0) -> FeatureMaps:
    return FeatureMaps(
        epoch=epoch,
        layer=layer,
        maps=grey(2, 3, 4, 5, seed=seed),
        low=reals(3),
        high=reals(3) + 1,
        channels=np.array([0, 1, 7]),
        n_channels=8,
        grid=(8, 10),
    )


def every_kind() -> list[Snapshot]:
    none = np.zeros(0, np.float32)
    line = np.arange(4)
    return [
        Probes(-1, "", grey(2, 6, 6, 3), reals(2, 3, 6, 6), ("7", "<b> ü")),
        make_maps(),
        Kernels(3, "0.0", reals(4, 1, 3, 3), none, (8, 1, 3, 3), (2, 1), (1, 0), (1, 2), 1, True,
                False),
        FieldIntervals(-1, "0.0", (4, 2), line, line + 2, line[:2], line[:2] - 1, (3, None)),
        EffectiveFieldMap(
            2, "0.0", reals(3, 3), (5, -1), (6.5, 0.5), (2, 2), {"50": 1.5, "90": float("inf")}
        ),
        Confusion(0, "", np.arange(9).reshape(3, 3), ("a", "b", "c")),
        Mistakes(0, "", grey(2, 6, 6), line[:2], line[1:3], reals(2), reals(2) * 9, line[2:],
                 ("a", "b", "c")),
        Calibration(1, "", line[:3], reals(3), line[1:], 0.25, 1.5, float("inf")),
        ClassActivationMaps(1, "", grey(2, 3, 3), line[:2], reals(2), grey(0, 3, 3), none, "0.0"),
    ]  # fmt: skip


def assert_same(found: Snapshot | None, expected: Snapshot) -> None:
    assert type(found) is type(expected)
    for f in fields(expected):
        one, other = getattr(found, f.name), getattr(expected, f.name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, f.name
            np.testing.assert_array_equal(one, other, f.name)
        else:
            assert one == other, f.name

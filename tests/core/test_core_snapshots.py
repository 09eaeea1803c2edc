"""Snapshots come back as they were, to the last bit, and damage is an error, never a guess."""

from __future__ import annotations

import json

import numpy as np
import pytest

from convlens.core.encoding import pack
from convlens.core.snapshots import FeatureMaps, Snapshot, arrays_of, decode, facts_of
from convlens.errors import RunError
from snapshot_samples import assert_same, every_kind, make_maps


def encode(snapshot: Snapshot) -> tuple[str, bytes]:
    return facts_of(snapshot), pack(arrays_of(snapshot))


def test_every_kind_has_a_name_of_its_own_and_is_tested() -> None:
    kinds = [type(snapshot) for snapshot in every_kind()]
    assert set(kinds) == set(Snapshot.__subclasses__())
    assert len({kind.KIND for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("snapshot", every_kind(), ids=lambda s: s.KIND)
def test_a_snapshot_comes_back_as_it_was(snapshot: Snapshot) -> None:
    facts, payload = encode(snapshot)
    assert_same(decode(type(snapshot), snapshot.epoch, snapshot.layer, facts, payload), snapshot)


@pytest.mark.parametrize(
    "facts",
    ["", "[]", "null", "{}", '{"n_channels": 8, "grid": [8, 10], "more": 1}', '{"epoch": 3}'],
)
def test_damaged_facts_are_an_error(facts: str) -> None:
    _, payload = encode(make_maps())
    with pytest.raises((TypeError, ValueError)):
        decode(FeatureMaps, 0, "0.0", facts, payload)


def test_damaged_arrays_are_an_error() -> None:
    facts, payload = encode(make_maps())
    with pytest.raises(RunError, match="cannot be decoded"):
        decode(FeatureMaps, 0, "0.0", facts, payload[:-1])


@pytest.mark.parametrize("snapshot", every_kind(), ids=lambda s: s.KIND)
def test_arrays_of_another_shape_or_type_are_an_error(snapshot: Snapshot) -> None:
    facts, arrays = facts_of(snapshot), arrays_of(snapshot)
    assert arrays.keys() == snapshot.AXES.keys(), "each has a shape that is known"
    for name, array in arrays.items():
        shapes = [(), (7, 7, 7, 7, 7), (*array.shape, 2)]
        wrong = [np.zeros(shape, array.dtype) for shape in shapes]
        wrong += [array.astype(np.int32), array.astype(np.float64)]
        for other in wrong:
            with pytest.raises(ValueError, match=f"{name} of '{snapshot.KIND}' "):
                decode(type(snapshot), 0, "x", facts, pack(arrays | {name: other}))


def test_facts_are_plain_json_without_epoch_and_layer() -> None:
    facts, _ = encode(make_maps())
    assert json.loads(facts) == {"n_channels": 8, "grid": [8, 10]}


def test_what_is_no_plain_value_is_refused() -> None:
    odd = make_maps()
    object.__setattr__(odd, "n_channels", np.int64(8))
    with pytest.raises(TypeError, match="int64"):
        encode(odd)

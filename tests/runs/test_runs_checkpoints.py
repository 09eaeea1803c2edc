"""Checkpoints: exact, complete or absent, and never half loaded."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convlens.errors import ArgumentError, CheckpointError
from convlens.runs import checkpoints
from convlens.runs.checkpoints import (
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def build(width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 9, 3),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    x = torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def adam(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


@contextmanager
def manifest_of(path: Path) -> Iterator[dict[str, Any]]:
    """The manifest, to be changed by somebody who also knows how its checksum is made."""
    file = path / checkpoints.MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    yield manifest
    text = json.dumps(manifest, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        adam,
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.1)),
    ],
)
def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path, make_optimizer) -> None:
    model = build()
    optimizer = make_optimizer(model)
    train(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer, {"epoch": 2})
    resumed = build(seed=9)
    other = make_optimizer(resumed)
    assert load_checkpoint(path, resumed, other) == {"epoch": 2}
    train(model, optimizer)
    train(resumed, other)
    assert same_state(model, resumed)


def test_settings_of_the_optimizer_come_back(tmp_path: Path) -> None:
    model = build()
    path = save_checkpoint(tmp_path, model, adam(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.1, 0.2))
    load_checkpoint(path, model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_names_count_up_and_the_newest_is_loaded(tmp_path: Path) -> None:
    first, second = build(seed=1), build(seed=2)
    (tmp_path / "run").mkdir()
    tmp_path /= "run"
    assert save_checkpoint(tmp_path / "new", first).name == "checkpoint-0001"
    assert save_checkpoint(tmp_path / "new", second).name == "checkpoint-0002"
    found = build(seed=3)
    assert load_checkpoint(tmp_path / "new", found) == {}
    assert same_state(found, second)
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_keep_removes_older_ones(tmp_path: Path) -> None:
    model = build()
    for epoch in range(4):
        save_checkpoint(tmp_path, model, None, {"epoch": epoch}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-0003", "checkpoint-0004"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, build())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot take a checkpoint \(.*No space left.*Earli"):
        save_checkpoint(tmp_path, build())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0001"]


def test_one_without_manifest_does_not_count(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, build())
    (tmp_path / "checkpoint-0009").mkdir()
    assert list_checkpoints(tmp_path) == [path]
    assert save_checkpoint(tmp_path, build()).name == "checkpoint-0010"


def test_tied_weights_and_buffers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    path = save_checkpoint(tmp_path, model)
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    load_checkpoint(path, other)
    assert same_state(model, other)


def test_another_model_is_told_apart_and_not_touched(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, build(4))
    other = build(5, seed=7)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"of another model: 0.weight is \(4, 1, 3, 3\), the model has \(5, 1, 3, 3\), .*more",
    ):
        load_checkpoint(path, other)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    with pytest.raises(CheckpointError, match=r"1\.weight is missing|is not in the model"):
        load_checkpoint(path, nn.Sequential(nn.Conv2d(1, 4, 3)))
    bigger = nn.Sequential(*build(4), nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match=r"5\.weight is missing, 5\.bias is missing"):
        load_checkpoint(path, bigger)


def test_another_optimizer_and_none(tmp_path: Path) -> None:
    model = build()
    path = save_checkpoint(tmp_path, model, adam(model))
    partial = torch.optim.SGD(list(model.parameters())[:2], lr=0.1)
    with pytest.raises(CheckpointError, match=r"parameter groups have \[6\] .* this one has \[2\]"):
        load_checkpoint(path, model, partial)
    path = save_checkpoint(tmp_path, model)
    with pytest.raises(CheckpointError, match="holds no optimizer state; load it without"):
        load_checkpoint(path, model, adam(model))


def test_damage_is_found(tmp_path: Path) -> None:
    model = build()
    path = save_checkpoint(tmp_path, model)
    file = path / checkpoints.MODEL
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged \(its SHA-256 is .*, the manifest says"):
        load_checkpoint(path, model)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"is damaged \(there is no such file\)"):
        load_checkpoint(path, model)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, build())
    (path / checkpoints.MODEL).write_bytes(b"pickle?" * 10)
    with manifest_of(path) as manifest:
        manifest["files"][checkpoints.MODEL] = checkpoints._sha256(path / checkpoints.MODEL)
    with pytest.raises(CheckpointError, match=r"is damaged \(it cannot be read"):
        load_checkpoint(path, build())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it cannot be read: JSONDecodeError"),
        ("[]", "it has no format"),
        ("{}", "it has no format"),
        ("[" * 100_000, "it cannot be read: RecursionError"),
        ('{"format": 2}', "has format 2, this convlens reads format 1; upgrade with"),
        ('{"format": 1}', "the SHA-256 of its contents is [0-9a-f]{64}, it says None"),
    ],
)
def test_manifests_that_say_nothing(tmp_path: Path, text: str, words: str) -> None:
    path = save_checkpoint(tmp_path, build())
    (path / checkpoints.MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path, build())


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    model = build()
    optimizer = adam(model)
    train(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer, {"epoch": 3, "note": "a b"})
    expected = state_of(model, optimizer)
    for name in (checkpoints.MANIFEST, checkpoints.OPTIMIZER, checkpoints.MODEL):
        content = (path / name).read_bytes()
        for at in range(0, 8 * len(content), 37):
            damaged = bytearray(content)
            damaged[at // 8] ^= 1 << at % 8
            (path / name).write_bytes(damaged)
            other = build(seed=5)
            its_optimizer = adam(other)
            try:
                facts = load_checkpoint(path, other, its_optimizer)
            except CheckpointError as error:
                assert str(path) in str(error)  # noqa: PT017
                continue
            assert facts == {"epoch": 3, "note": "a b"}
            assert state_of(other, its_optimizer) == expected
        (path / name).write_bytes(content)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Everything that a checkpoint brings back, to be compared."""
    return repr((model.state_dict(), optimizer.state_dict()))


def nodes(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of nested lists and dictionaries."""
    if path:
        yield path
    for key in (
        value
        if isinstance(value, dict)
        else range(len(value or ()))
        if isinstance(value, list)
        else ()
    ):
        yield from nodes(value[key], (*path, key))


@pytest.mark.parametrize("value", ["0.1", None, [], {"x": 1}, -1, 10**30])
def test_no_entry_that_cannot_be_leads_to_another_error(tmp_path: Path, value: object) -> None:
    model = build()
    optimizer = torch.optim.AdamW(
        [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}],
        betas=(0.9, 0.99),
    )
    train(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer, {"epoch": 3})
    file = path / checkpoints.MANIFEST
    content = file.read_text()
    for way in nodes(json.loads(content)):
        if way[0] in ("sha256", "facts"):
            continue
        with manifest_of(path) as manifest:
            entry: Any = manifest
            for key in way[:-1]:
                entry = entry[key]
            entry[way[-1]] = value
        try:
            load_checkpoint(path, build(), torch.optim.AdamW(
                [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}]
            ))  # fmt: skip
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
        file.write_text(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o["param_groups"][0].update(lr="0.1"), "param_groups/0/lr is '0.1', expected a"),
        (lambda o: o["param_groups"][0].update(betas=[0.9, "x"]), "betas is (0.9, 'x'), expected"),
        (lambda o: o["param_groups"][0].update(betas=[0.9]), "betas is (0.9,), expected a value"),
        (lambda o: o["param_groups"][0].update(amsgrad=0.5), "amsgrad is 0.5, expected a value"),
        (lambda o: o["param_groups"][0].update(params=3), "object of type 'int' has no len()"),
        (lambda o: o["state"].update(x={}), "invalid literal for int()"),
        (lambda o: o["state"].update({"99": {}}), "state of more than 6 parameters"),
        (lambda o: o["state"].pop("0"), "KeyError('0')"),
        (lambda o: o.update(state=[1]), "'list' object has no attribute"),
        (lambda o: o.pop("param_groups"), "KeyError('param_groups')"),
    ],
)  # fmt: skip
def test_an_entry_of_the_optimizer_that_cannot_be_is_refused(
    tmp_path: Path, change: Callable[[Any], object], words: str
) -> None:
    model = build()
    optimizer = adam(model)
    train(model, optimizer)
    path = save_checkpoint(tmp_path, model, optimizer)
    with manifest_of(path) as manifest:
        change(manifest["optimizer"])
    other = build(seed=3)
    before = state_of(other, adam(other))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, other, adam(other))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert state_of(other, adam(other)) == before, "nothing is half loaded"


def test_a_manifest_that_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    model = build()
    path = save_checkpoint(tmp_path, model, adam(model))
    file = path / checkpoints.MANIFEST
    text = file.read_text()
    assert '"lr": 0.01' in text
    file.write_text(text.replace('"lr": 0.01', '"lr": 1e9'))
    with pytest.raises(CheckpointError, match=r"manifest\.json' is damaged \(the SHA-256 of its"):
        load_checkpoint(path, model, adam(model))


def test_facts_of_any_plain_kind_come_back(tmp_path: Path) -> None:
    facts = {"a": [1, 2.5, None, True], "b": {"c": "é\ud800"}, "inf": math.inf, "é": 0.1 + 0.2}
    assert load_checkpoint(save_checkpoint(tmp_path, build(), None, facts), build()) == facts


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, build())
    for name in (checkpoints.MODEL, checkpoints.MANIFEST):
        content = (path / name).read_bytes()
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError, match=r"no such file|holds no complete checkpoint"):
            load_checkpoint(path, build())
        (path / name).unlink()
        (path / name).write_bytes(content)


INTERRUPTED = """
import os, sys
import torch
from convlens.runs import checkpoints
def stop(handle):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = stop
checkpoints.save_checkpoint(sys.argv[1], torch.nn.Linear(2, 2))
"""


def test_what_interrupted_saves_leave_is_removed_by_the_next(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    def left() -> int:
        return len([path for path in tmp_path.iterdir() if path.name.startswith(".writing-")])

    with start() as alive, start() as killed:
        assert left() == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        save_checkpoint(tmp_path, build())
        assert left() == 1, "the other is still written"
        alive.kill()
        alive.wait()
    save_checkpoint(tmp_path, build())
    assert left() == 0
    assert len(list_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_others(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        path = save_checkpoint(tmp_path, build(), adam(build()))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o777 & ~mask
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~mask}


def test_a_run_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot take a checkpoint \(.*No such file"):
        save_checkpoint(tmp_path / "gone" / "checkpoints", build())
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no complete checkpoint; give the checkpoints"):
        load_checkpoint(tmp_path / "nothing", build())


def test_what_cannot_be_written_without_pickle(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(ArgumentError, match="'_extra_state' is of type dict, not a tensor"):
        save_checkpoint(tmp_path, Odd(2, 2))
    with pytest.raises(ArgumentError, match=r"manifest=\{'a': \{1\}\} or the optimizer's settings"):
        save_checkpoint(tmp_path, build(), None, {"a": {1}})
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no complete checkpoint in best, averaged or"):
        best_checkpoint(tmp_path)
    with pytest.raises(ArgumentError, match=r"run_path must be a path, .*3"):
        best_checkpoint(3)  # pyright: ignore[reportArgumentType]
    for name in ("checkpoints", "averaged", "best"):
        save_checkpoint(tmp_path / name, build())
        path = save_checkpoint(tmp_path / name, build())
        assert best_checkpoint(tmp_path) == path
        assert path.parent.name == name
    (tmp_path / "best" / "checkpoint-0001" / "manifest.json").unlink()
    (path / "manifest.json").unlink()
    assert best_checkpoint(tmp_path).parent.name == "averaged"

"""Checkpoints: exact, complete or absent, and never half loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from convlens.errors import ArgumentError, CheckpointError
from convlens.runs import checkpoints
from convlens.runs.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint


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
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, build())
    monkeypatch.setattr(checkpoints, "_sync", full)
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
    with pytest.raises(CheckpointError, match=r"is damaged \(it cannot be read: .*No such file"):
        load_checkpoint(path, model)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, build())
    (path / checkpoints.MODEL).write_bytes(b"pickle?" * 10)
    manifest = json.loads((path / checkpoints.MANIFEST).read_text())
    manifest["files"][checkpoints.MODEL] = checkpoints._sha256(path / checkpoints.MODEL)
    (path / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"is damaged \(it cannot be read"):
        load_checkpoint(path, build())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it cannot be read: JSONDecodeError"),
        ("[]", "it cannot be read: TypeError"),
        ("{}", "it cannot be read: KeyError"),
        ('{"format": 2}', "has format 2, this convlens reads format 1; upgrade with"),
        ('{"format": 1}', "facts or files are missing"),
    ],
)
def test_manifests_that_say_nothing(tmp_path: Path, text: str, words: str) -> None:
    path = save_checkpoint(tmp_path, build())
    (path / checkpoints.MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path, build())


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no complete checkpoint; give the checkpoints"):
        load_checkpoint(tmp_path / "nothing", build())


def test_what_cannot_be_written_without_pickle(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(ArgumentError, match="'_extra_state' is a dict, not a tensor"):
        save_checkpoint(tmp_path, Odd(2, 2))
    with pytest.raises(ArgumentError, match=r"manifest=\{'a': \{1\}\} or the optimizer's settings"):
        save_checkpoint(tmp_path, build(), None, {"a": {1}})
    assert list(tmp_path.iterdir()) == []

"""Checkpoints: weights and optimizer state in safetensors, described by a JSON manifest.

A checkpoint is a directory ``checkpoint-0001`` with ``model.safetensors``, perhaps
``optimizer.safetensors``, and ``manifest.json`` with the SHA-256 of each. It is written under a
temporary name, synced to the disk and renamed, so that one under its final name is complete.
Nothing in it is pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from convlens.errors import ArgumentError, CheckpointError

FORMAT = 1
MODEL, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    manifest: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Path:
    """Write the next checkpoint into a folder.

    Args:
        folder: where the checkpoints are, such as ``run.path / "checkpoints"``; made if missing.
        model: its parameters and buffers are written.
        optimizer: its state is written too.
        manifest: plain JSON facts to keep with it, such as epoch and step.
        keep: remove all but the newest ``keep`` checkpoints once this one is complete.

    Returns:
        The new checkpoint's directory.

    Raises:
        ArgumentError: if the manifest or the optimizer's settings are not plain JSON.
        CheckpointError: if it cannot be written.
    """
    folder = Path(folder)
    files = {MODEL: {name: _own(value) for name, value in check_state(model).items()}}
    facts: dict[str, Any] = {"format": FORMAT, "facts": dict(manifest or {})}
    if optimizer is not None:
        files[OPTIMIZER], facts["optimizer"] = _split(optimizer.state_dict())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _write(folder, files, facts)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"folder={str(folder)!r} cannot take a checkpoint ({error}); check that it is writable "
            "and the disk is not full. Earlier checkpoints are untouched."
        ) from error
    for old in list_checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return path


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    folder = Path(folder)
    entries = list(folder.iterdir()) if folder.is_dir() else []
    found = [entry for entry in entries if _NAME.fullmatch(entry.name)]
    return sorted((p for p in found if (p / MANIFEST).is_file()), key=_number)


def load_checkpoint(
    path: str | Path, model: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint into a model, and into an optimizer if one is given.

    Everything is verified first; the model is not touched if anything does not fit.

    Args:
        path: a checkpoint's directory, or a folder of them, of which the newest is taken.
        model: gets the parameters and buffers.
        optimizer: gets its state.

    Returns:
        The manifest given to `save_checkpoint`.

    Raises:
        CheckpointError: if it is missing, damaged, or of another model.
    """
    path = _resolve(Path(path))
    manifest = _read_manifest(path)
    if optimizer is not None and "optimizer" not in manifest:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} holds no optimizer state; load it without optimizer."
        )
    state = _read_tensors(path, MODEL, manifest)
    _check_fit(path, model.state_dict(), state)
    restored = None
    if optimizer is not None:
        restored = _join(_read_tensors(path, OPTIMIZER, manifest), manifest["optimizer"])
        _check_groups(path, optimizer, restored)
    model.load_state_dict(state)
    if optimizer is not None and restored is not None:
        optimizer.load_state_dict(restored)
    return manifest["facts"]


def _write(folder: Path, files: Mapping[str, dict[str, Any]], facts: dict[str, Any]) -> Path:
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        facts["files"] = {}
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
            _sync(temporary / name)
            facts["files"][name] = _sha256(temporary / name)
        (temporary / MANIFEST).write_text(_to_json(facts), encoding="utf-8")
        _sync(temporary / MANIFEST)
        _sync(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private; a run is as readable as its folder
        existing = [_number(p) for p in folder.iterdir() if _NAME.fullmatch(p.name)]
        path = folder / f"checkpoint-{max(existing, default=0) + 1:04d}"
        temporary.rename(path)
        _sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _sync(path: Path) -> None:
    """Have the file or directory on the disk, not only in the system's memory."""
    if os.name == "nt":  # Windows cannot sync a directory, nor a file opened for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state, as far as it can be saved.

    Raises:
        ArgumentError: if a part of it is no tensor.
    """
    state: dict[str, Any] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ArgumentError(
                f"The model's state {name!r} is a {type(value).__name__}, not a tensor, and cannot "
                "be saved without pickle; have get_extra_state return a tensor, or give run=None "
                "to train without a record."
            )
    return state


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A plain copy on the CPU: safetensors refuses views and shared memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _split(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and plain values."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {"state": {}, "param_groups": []}
    for key, values in state["state"].items():
        plain["state"][str(key)] = _take_tensors(values, f"state/{key}", tensors)
    for i, group in enumerate(state["param_groups"]):
        plain["param_groups"].append(_take_tensors(group, f"param_groups/{i}", tensors))
    return tensors, plain


def _take_tensors(
    values: Mapping[str, Any], prefix: str, tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Move the tensors among ``values`` to ``tensors``; what remains is returned."""
    found = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    tensors.update({f"{prefix}/{name}": _own(value) for name, value in found.items()})
    return {k: v for k, v in values.items() if k not in found}


def _join(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """The state that `_split` took apart; JSON's lists become tuples again, as betas are."""
    state = {int(key): dict(values) for key, values in plain["state"].items()}
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in plain["param_groups"]
    ]
    for full_name, tensor in tensors.items():
        part, key, name = full_name.split("/", 2)
        target = state if part == "state" else groups
        target[int(key)][name] = tensor
    return {"state": state, "param_groups": groups}


def _resolve(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(
            f"path={str(path)!r} holds no complete checkpoint; give the checkpoints folder of a "
            "run, or one checkpoint in it."
        )
    return found[-1]


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
        found = manifest["format"]
        complete = {"facts", "files"} <= set(manifest)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(file, f"it cannot be read: {error!r}") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{str(file)!r} has format {found!r}, this convlens reads format {FORMAT}; "
            "upgrade with: pip install --upgrade convlens."
        )
    if not complete:
        raise _damaged(file, "facts or files are missing")
    return manifest


def _read_tensors(path: Path, name: str, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    file = path / name
    expected = manifest["files"].get(name)
    try:
        found = _sha256(file)
        if found != expected:
            raise _damaged(file, f"its SHA-256 is {found}, the manifest says {expected}")
        return load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(file, f"it cannot be read: {error}") from error


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{str(file)!r} is damaged ({reason}); use an earlier checkpoint or restore it from a copy."
    )


def _check_fit(
    path: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is not in the model" for name in found if name not in wanted]
    faults += [
        f"{name} is {_shape(found[name])}, the model has {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if faults:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is of another model: {_first(faults)}; "
            "build the model that it was written from."
        )


def _check_groups(path: Path, optimizer: Optimizer, restored: dict[str, Any]) -> None:
    wanted = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in restored["param_groups"]]
    if wanted != found:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is of another optimizer: its parameter groups have "
            f"{found} parameters, this one has {wanted}; build the optimizer as it was."
        )


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def _first(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return ", ".join(faults[:3]) + more


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _to_json(facts: dict[str, Any]) -> str:
    try:
        return json.dumps(facts, indent=1)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"manifest={facts['facts']!r} or the optimizer's settings cannot be written ({error}); "
            "give plain JSON: numbers, texts, lists and dictionaries."
        ) from error

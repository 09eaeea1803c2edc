"""Checkpoints: weights and optimizer state in safetensors, described by a JSON manifest.

A checkpoint is a directory ``checkpoint-0001`` with ``model.safetensors``, perhaps
``optimizer.safetensors``, and ``manifest.json`` with the SHA-256 of each and of its own contents.
It is written under a temporary name, synced to the disk and renamed, so that one under its final
name is complete. Nothing in it is pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from convlens.core.argument_checks import check_path
from convlens.core.wording import type_name
from convlens.errors import ArgumentError, CheckpointError
from convlens.runs.lock import is_abandoned, lock_folder

FORMAT = 1
MODEL, OPTIMIZER, MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"
MOST_MANIFEST = 1 << 26
_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    manifest: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Path:
    """Write the next checkpoint into a folder.

    >>> import tempfile
    >>> import torch
    >>> from convlens.runs.checkpoints import load_checkpoint, save_checkpoint
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(folder, model, manifest={"epoch": 3})
    ...     load_checkpoint(path, torch.nn.Linear(2, 1))
    {'epoch': 3}

    Args:
        folder: where the checkpoints are, such as ``run.path / "checkpoints"``; made if missing, in
            a folder that exists.
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
        folder.mkdir(exist_ok=True)  # but not its parents: a run's folder that is gone stays gone
        _clear(folder)
        path = _write(folder, files, facts)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"folder={str(folder)!r} cannot take a checkpoint ({error}); check that it is writable "
            "and the disk is not full. Earlier checkpoints are untouched."
        ) from error
    for old in list_checkpoints(folder)[:-keep] if keep else []:
        with suppress(OSError):  # under another name first: what is half removed is no checkpoint
            shutil.rmtree(old.rename(_temporary(folder)), ignore_errors=True)
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

        >>> dls = cl.DataLoaders([(torch.rand(8, 1, 28, 28), torch.arange(8))])
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 10), progress=False)
        >>> learn.fit(1)
        >>> model = cl.simple_cnn(1, 10)
        >>> cl.load_checkpoint(learn.run_path / "checkpoints", model)["epoch"]
        0

    Args:
        path: a checkpoint's directory, or a folder of them, of which the newest is taken.
        model: gets the parameters and buffers.
        optimizer: gets its state.

    Returns:
        The manifest that was given to `save_checkpoint`.

    Raises:
        ArgumentError: if ``path`` is not a path.
        CheckpointError: if it is missing, damaged, or of another model.
    """
    try:
        path = _resolve(check_path("path", path))
    except OSError as error:
        raise CheckpointError(
            f"path={str(path)!r} cannot be read ({error.strerror}); check that you may read it."
        ) from error
    manifest = _read_manifest(path)
    if optimizer is not None and "optimizer" not in manifest:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} holds no optimizer state; load it without optimizer."
        )
    state = _read_tensors(path, MODEL, manifest)
    check_fit(path, model.state_dict(), state)
    if optimizer is not None:
        tensors = _read_tensors(path, OPTIMIZER, manifest)
        try:
            restored = _join(tensors, manifest["optimizer"])
            _check_groups(path, optimizer, restored)
            optimizer.load_state_dict(restored)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise _damaged(path / MANIFEST, f"the optimizer does not fit: {error!r}") from error
    model.load_state_dict(state)
    return manifest["facts"]


BEST, AVERAGED, CHECKPOINTS = "best", "averaged", "checkpoints"
"""The folders of a run that hold checkpoints: of `BestCheckpoint`, `EMA` and every epoch."""


def best_checkpoint(run_path: str | Path) -> Path:
    """The checkpoint of a run whose weights are to be used.

    The newest of ``best/``, which `BestCheckpoint` writes; without one, of ``averaged/``, which
    `EMA` writes; without one, of ``checkpoints/``.

        >>> import tempfile
        >>> from pathlib import Path
        >>> from convlens.runs.checkpoints import best_checkpoint, save_checkpoint
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Path(folder)
        ...     _ = save_checkpoint(run / "checkpoints", model)
        ...     _ = save_checkpoint(run / "best", model)
        ...     best_checkpoint(run).relative_to(run).parts
        ('best', 'checkpoint-0001')

    Args:
        run_path: the run's directory.

    Returns:
        The checkpoint's directory, for `load_checkpoint`.

    Raises:
        ArgumentError: if ``run_path`` is not a path.
        CheckpointError: if the run has no complete checkpoint, or cannot be read.
    """
    path = check_path("run_path", run_path)
    try:
        for name in (BEST, AVERAGED, CHECKPOINTS):
            if found := list_checkpoints(path / name):
                return found[-1]
    except OSError as error:
        raise CheckpointError(
            f"run_path={str(path)!r} cannot be read ({error.strerror}); check that you may read it."
        ) from error
    raise CheckpointError(
        f"run_path={str(path)!r} holds no complete checkpoint in {BEST}, {AVERAGED} or "
        f"{CHECKPOINTS}; give the directory of a run that has finished at least one epoch."
    )


PREFIX = ".writing-"


def _temporary(folder: Path) -> Path:
    return folder / f"{PREFIX}{secrets.token_hex(8)}"


def _clear(folder: Path) -> None:
    """Remove what saves have left that were interrupted: those whose process is gone."""
    for entry in folder.iterdir():
        if entry.name.startswith(PREFIX) and is_abandoned(entry):
            shutil.rmtree(entry, ignore_errors=True)


def _write(folder: Path, files: Mapping[str, dict[str, Any]], facts: dict[str, Any]) -> Path:
    temporary = _temporary(folder)
    temporary.mkdir()
    handle: int | None = None
    try:
        with suppress(OSError):  # where a folder cannot be locked, it is left by `_clear`
            handle = lock_folder(temporary)
        facts["files"] = {}
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
            facts["files"][name] = _sha256(temporary / name)
        (temporary / MANIFEST).write_text(_to_json(facts), encoding="utf-8")
        mode = temporary.stat().st_mode & 0o666  # safetensors makes its files private
        for name in (*files, MANIFEST):
            (temporary / name).chmod(mode)
            sync_to_disk(temporary / name)
        sync_to_disk(temporary)
        existing = [_number(p) for p in folder.iterdir() if _NAME.fullmatch(p.name)]
        path = folder / f"checkpoint-{max(existing, default=0) + 1:04d}"
        temporary.rename(path)
        sync_to_disk(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)
    return path


def sync_to_disk(path: Path) -> None:
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
                f"The model's state {name!r} is of type {type_name(value)}, not a tensor, and "
                "cannot be saved without pickle; have get_extra_state return a tensor, or give "
                "run=None to train without a record."
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
    state = {key: dict(values) for key, values in plain["state"].items()}
    groups: dict[str, dict[str, Any]] = {}
    for i, group in enumerate(plain["param_groups"]):
        groups[str(i)] = {
            k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()
        }
    for full_name, tensor in tensors.items():
        part, key, name = full_name.split("/", 2)
        {"state": state, "param_groups": groups}[part][key][name] = tensor
    return {
        "state": {int(key): values for key, values in state.items()},
        "param_groups": list(groups.values()),
    }


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
        if file.stat().st_size > MOST_MANIFEST:
            raise ValueError(f"it has more than {MOST_MANIFEST:,} bytes")
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"it cannot be read: {error!r}") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise _damaged(file, "it has no format")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{str(file)!r} has format {manifest['format']!r}, this convlens reads format "
            f"{FORMAT}; upgrade with: pip install --upgrade convlens."
        )
    said, found = manifest.pop("sha256", None), _seal(manifest)
    if said != found:
        raise _damaged(file, f"the SHA-256 of its contents is {found}, it says {said}")
    for name in ("facts", "files", *(["optimizer"] if "optimizer" in manifest else [])):
        if not isinstance(manifest.get(name), dict):
            raise _damaged(file, f"{name} is {str(manifest.get(name))[:80]!r}, expected an object")
    return cast("dict[str, Any]", manifest)


def _seal(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest's contents, however they are laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_tensors(path: Path, name: str, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    file = path / name
    expected = manifest["files"].get(name)
    try:
        if not file.is_file():  # or a pipe, which would be waited for
            raise _damaged(file, "there is no such file")
        found = _sha256(file)
        if found != expected:
            raise _damaged(file, f"its SHA-256 is {found}, the manifest says {expected}")
        return load_file(file)
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        raise _damaged(file, f"it cannot be read: {error}") from error


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{str(file)!r} is damaged ({reason}); use an earlier checkpoint or restore it from a copy."
    )


def check_fit(
    path: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> None:
    """Raises CheckpointError if a file's tensors are not those of a model, by names and shapes."""
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
    own = optimizer.param_groups
    wanted = [len(group["params"]) for group in own]
    found = [len(group["params"]) for group in restored["param_groups"]]
    if wanted != found:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is of another optimizer: its parameter groups have "
            f"{found} parameters, this one has {wanted}; build the optimizer as it was."
        )
    if any(index >= sum(wanted) for index in restored["state"]):
        raise ValueError(f"state of more than {sum(wanted)} parameters")
    for i, group in enumerate(restored["param_groups"]):
        for name, value in group.items():
            if name in own[i] and name != "params" and not _is_like(value, own[i][name]):
                raise ValueError(
                    f"param_groups/{i}/{name} is {value!r}, expected a value such as "
                    f"{own[i][name]!r}"
                )


def _is_like(value: object, own: object) -> bool:
    """Whether a setting of an optimizer may be what another one has: of the same kind."""
    if isinstance(own, tuple | list):
        is_list = isinstance(value, tuple | list)
        return is_list and len(own) == len(value) and all(map(_is_like, value, own))
    if isinstance(own, bool):
        return isinstance(value, bool | None)
    if own is None:
        return value is None or isinstance(value, int | float | torch.Tensor)
    if isinstance(own, int | float | torch.Tensor):
        return isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)
    return isinstance(value, type(own))


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
        plain = json.loads(json.dumps(facts))  # keys are texts now, as they will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"manifest={facts['facts']!r} or the optimizer's settings cannot be written ({error}); "
            "give plain JSON: numbers, texts, lists and dictionaries."
        ) from error
    return json.dumps({**plain, "sha256": _seal(plain)}, indent=1)

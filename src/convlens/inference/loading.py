"""`load_classifier`: a classifier from an exported folder or from a run's directory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, cast

import safetensors
import torch
from safetensors.torch import load
from torch import nn

from convlens.core.argument_checks import check_path
from convlens.core.terminal import printable
from convlens.data.input_transform import InputTransform
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.errors import ArgumentError, CheckpointError, DataError
from convlens.execution.devices import pick_device
from convlens.inference.classifier import Classifier
from convlens.models.architecture import Architecture, build
from convlens.runs import open_run
from convlens.runs.checkpoints import best_checkpoint, check_fit, load_checkpoint

FORMAT = 1
MANIFEST, WEIGHTS, ONNX = "classifier.json", "model.safetensors", "model.onnx"
FILES = (WEIGHTS, ONNX)
KEYS = {"format", "kind", "classes", "architecture", "input", "files"}
"""What `MANIFEST` must have; the rest is for people."""

MOST_MANIFEST = 1 << 24
MOST_NAME, MOST_CLASSES = 1000, 100_000
MOST_NUMBER, MOST_NUMBERS = 1_000_000, 64
"""The largest number in the arguments of a network, and how many there are in a list."""

READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | (
    getattr(os, "O_NONBLOCK", 0)
)  # fmt: skip
"""How a file is opened: links are not followed, and a pipe is not waited for."""


def load_classifier(
    folder: str | Path,
    device: str | torch.device | None = None,
    model: nn.Module | None = None,
) -> Classifier:
    """Load a classifier from a folder that `Learner.export` wrote, or from a run's directory.

    No training code is needed, and nothing in the folder is run: there is no pickle in it, every
    file is compared with its SHA-256, and the network is built by its name.

        >>> dls = cl.from_arrays(torch.rand(8, 28, 28), [0, 1] * 4, layout="NHW", valid=0.5)
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), progress=False)
        >>> learn.fit(1)
        >>> classifier = cl.load_classifier(learn.run_path, device="cpu")
        >>> classifier
        Classifier(Sequential, 2 classes, images of 1×28×28, cpu)
        >>> images = torch.rand(3, 1, 28, 28)
        >>> torch.equal(
        ...     classifier.predict(images).probabilities, learn.predict(images).probabilities
        ... )
        True

    Args:
        folder: the folder, or the directory of a run, of which the best checkpoint is taken; see
            `convlens.runs.checkpoints.best_checkpoint`.
        device: where the network is used: None for cuda if available, else cpu.
        model: the network, for one that convlens did not build by name; its weights are replaced.

    Raises:
        ArgumentError: if there is no such folder, ``model`` is missing, or the library of the
            network is not installed.
        CheckpointError: if the folder is damaged or is not an export, or its weights are those of
            another network.
        RunError: if the run cannot be read.
    """
    path, target = check_path("folder", folder), pick_device(device)
    if not isinstance(model, nn.Module | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"model must be a torch.nn.Module or None, got {model!r}.")
    if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        raise ArgumentError(
            f"folder={printable(str(path))!r} is no folder; give one that learn.export wrote, or "
            "the directory of a run."
        )
    if (path / "run.db").is_file():
        return _of_run(path, target, model)
    return _of_export(path, target, model)


# ---- a run ---------------------------------------------------------------------------------------


def _of_run(path: Path, device: torch.device, model: nn.Module | None) -> Classifier:
    meta = open_run(path).meta
    if not KEYS.difference({"format", "files"}) <= meta.keys():
        raise CheckpointError(
            f"The run {printable(str(path))!r} does not say how its network is used: it was "
            "recorded without a Learner, or by an earlier convlens."
        )
    facts = _Facts(path, meta)
    checkpoint = best_checkpoint(path)
    model = facts.network() if model is None else model
    load_checkpoint(checkpoint, model)
    return facts.classifier(model, device)


# ---- an exported folder --------------------------------------------------------------------------


def _of_export(path: Path, device: torch.device, model: nn.Module | None) -> Classifier:
    manifest = _manifest(path)
    files = _files(path, manifest["files"])
    facts = _Facts(path / MANIFEST, manifest)
    for name, (digest, size) in files.items():
        if name != WEIGHTS:
            _check_digest(path / name, digest, size)
    data = _content(path / WEIGHTS, files[WEIGHTS][1])
    if hashlib.sha256(data).hexdigest() != files[WEIGHTS][0]:
        _damaged(path / WEIGHTS, f"its SHA-256 is not that in {MANIFEST}")
    try:
        state = load(data)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        _damaged(path / WEIGHTS, f"it cannot be read: {error}")
    del data
    if model is None:
        # Shapes first: on this device a network of any size takes no memory.
        with suppress(RuntimeError, NotImplementedError), torch.device("meta"):
            check_fit(path / WEIGHTS, facts.network(len(state)).state_dict(), state)
        model = facts.network(len(state))
    check_fit(path / WEIGHTS, model.state_dict(), state)
    model.load_state_dict(state)
    return facts.classifier(model, device)


def _manifest(path: Path) -> dict[str, Any]:
    """What `MANIFEST` says; its format is known and it has all `KEYS`."""
    file = path / MANIFEST
    if not os.path.lexists(file):
        raise ArgumentError(
            f"folder={printable(str(path))!r} has neither {MANIFEST} nor run.db; give a folder "
            "that learn.export wrote, or the directory of a run."
        )
    try:
        manifest: Any = json.loads(_content(file, None), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        _damaged(file, f"it is not JSON: {str(error)[:200] or type(error).__name__}")
    if not isinstance(manifest, dict):
        _damaged(file, "it is not an object")
    found = cast("dict[str, Any]", manifest)
    if type(found.get("format")) is not int or found["format"] != FORMAT:
        raise CheckpointError(
            f"{printable(str(file))!r} has format {str(found.get('format'))[:40]!r}, this convlens "
            f"reads format {FORMAT}; upgrade with: pip install --upgrade convlens."
        )
    if missing := sorted(KEYS - found.keys()):
        _damaged(file, f"it has no {', '.join(missing)}")
    return found


def _files(path: Path, value: object) -> dict[str, tuple[str, int]]:
    """The SHA-256 and the size of each file."""
    files = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if not {WEIGHTS} <= files.keys() <= set(FILES):
        _damaged(path / MANIFEST, f"files must be {' and '.join(FILES)}")
    found: dict[str, tuple[str, int]] = {}
    for name, facts in files.items():
        one: Any = facts if isinstance(facts, dict) else {}
        digest, size = one.get("sha256"), one.get("bytes")
        if not isinstance(digest, str) or type(size) is not int:
            _damaged(path / MANIFEST, f"{name} must have sha256 and bytes")
        found[name] = digest, size
    return found


def _open(file: Path) -> int:
    """The handle of a file in the folder itself."""
    try:
        handle = os.open(file, READ)
    except OSError as error:
        why = "it is a link" if file.is_symlink() else error.strerror or str(error)
        _damaged(file, why)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        _damaged(file, "it is not a file")
    return handle


def _content(file: Path, size: int | None) -> bytes:
    """The bytes of a file that has this size, or at most `MOST_MANIFEST`."""
    with os.fdopen(_open(file), "rb") as stream:
        found = os.fstat(stream.fileno()).st_size
        if size is None and found > MOST_MANIFEST:
            _damaged(file, f"it has more than {MOST_MANIFEST:,} bytes")
        if size is not None and found != size:
            _damaged(file, f"it has {found:,} bytes, {MANIFEST} says {size:,}")
        return stream.read(found)


def _check_digest(file: Path, digest: str, size: int) -> None:
    with os.fdopen(_open(file), "rb") as stream:
        if os.fstat(stream.fileno()).st_size != size:
            _damaged(file, f"it does not have the size that is in {MANIFEST}")
        if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
            _damaged(file, f"its SHA-256 is not that in {MANIFEST}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _damaged(file: Path, reason: str) -> NoReturn:
    raise CheckpointError(
        f"{printable(str(file))!r} is damaged or was not written by convlens ({reason}); export "
        "the classifier again."
    )


# ---- what both say of the network ----------------------------------------------------------------


class _Facts:
    """What a file says of a network and its use, checked."""

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self._file = file
        self.kind: str = facts["kind"]
        if self.kind not in (CLASSES, LABELS, NUMBERS):
            _damaged(file, f"kind is {str(self.kind)[:40]!r}")
        self.classes = self._names(facts["classes"])
        try:
            self.transform = InputTransform.from_facts(facts["input"])
        except DataError as error:
            _damaged(file, str(error))
        self._architecture = self._checked(facts["architecture"])

    def classifier(self, model: nn.Module, device: torch.device) -> Classifier:
        """The classifier of a network that has its weights."""
        return Classifier(model.to(device).eval(), self.transform, self.classes, self.kind)

    def network(self, n_tensors: int = sys.maxsize) -> nn.Module:
        """The network with initial weights.

        Args:
            n_tensors: of its weights, which bounds the number of its layers.
        """
        if self._architecture is None:
            raise ArgumentError(
                f"{printable(str(self._file))!r} is of a network that convlens did not build by "
                "name; give it, with any weights, with model=…."
            )
        blocks: Any = self._architecture.arguments.get("blocks", ())
        if sum(blocks) > n_tensors:
            _damaged(self._file, f"architecture has {sum(blocks):,} blocks")
        return build(self._architecture)

    def _names(self, value: object) -> list[str]:
        names: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [0]
        if len(names) > MOST_CLASSES or not all(
            isinstance(name, str) and len(name) <= MOST_NAME for name in names
        ):
            _damaged(self._file, "classes must be a list of names")
        return names

    def _checked(self, value: object) -> Architecture | None:
        if value is None:
            return None
        given: Any = value if isinstance(value, dict) else {}
        name, arguments = given.get("name"), given.get("arguments")
        if given.keys() != {"name", "arguments"} or not (
            isinstance(name, str) and len(name) <= MOST_NAME and isinstance(arguments, dict)
        ):
            _damaged(self._file, "architecture must have a name and arguments")
        plain = cast("dict[str, object]", arguments)
        if not all(map(_is_plain, plain.values())):
            _damaged(self._file, "architecture has arguments that are no small plain numbers")
        shape, n_outputs = self.transform.input_shape, plain.get("n_classes")
        if self.classes and self.kind != NUMBERS and n_outputs not in (None, len(self.classes)):
            n = len(self.classes)
            _damaged(self._file, f"architecture has {n_outputs} outputs, classes {n} names")
        if shape is not None and plain.get("n_in") not in (None, shape[0]):
            _damaged(self._file, f"architecture has {plain['n_in']} channels, input {shape[0]}")
        return Architecture(name, plain)


def _is_plain(value: object, *, nested: bool = True) -> bool:
    if isinstance(value, list):
        values = cast("list[object]", value)
        return nested and len(values) <= MOST_NUMBERS and all(
            _is_plain(one, nested=False) for one in values
        )  # fmt: skip
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= MOST_NUMBER
    return value is None or (isinstance(value, str) and len(value) <= MOST_NAME)

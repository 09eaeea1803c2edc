"""`export`: a classifier as a folder that can be deployed, compared with `predict` first."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from convlens.core.argument_checks import check_path
from convlens.core.terminal import printable
from convlens.core.wording import n_bytes, plural
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.errors import ArgumentError, CheckpointError, MissingLibraryError, TrainingError
from convlens.execution import same_random, unwrapped
from convlens.inference.classifier import Classifier
from convlens.inference.compared_images import ENOUGH
from convlens.inference.loading import FILES, FORMAT, MANIFEST, ONNX, WEIGHTS, load_classifier
from convlens.models.architecture import architecture_of
from convlens.runs.checkpoints import check_state, sync_to_disk

OPSET = 18
"""The version of ONNX's operators that is written."""

TOLERANCE = 1e-4
"""The largest difference of a probability from that of `predict`; of numbers, as a share of those
above 1."""

BATCHES = (1, 2, 7)
"""Sizes of the first batches that are compared; the rest is one of 32 each."""

MOST_BYTES = 2_000_000_000
"""Protocol buffers, of which an ONNX file is made, have at most 2 GiB."""

MOST_SHOWN = 5

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Export:
    """What was written, and how it was compared.

    Attributes:
        path: the folder.
        n_images: the images on which ONNX Runtime and the reloaded folder agreed with `predict`.
        difference: the largest difference of a probability, or a number.
        n_bytes: size of the folder's files.
    """

    path: Path
    n_images: int
    difference: float
    n_bytes: int

    def __str__(self) -> str:
        few = self.n_images < ENOUGH
        fewer = f", fewer than {ENOUGH}" if few else ""
        return (
            f"{'written, but little compared:' if few else 'exported'} "
            f"{printable(str(self.path))}: {n_bytes(self.n_bytes)}; ONNX Runtime and the reloaded "
            f"folder agree with predict on {plural(self.n_images, 'image')}{fewer}, largest "
            f"difference {self.difference:.1e}"
        )


def export(
    classifier: Classifier,
    folder: str | Path,
    images: Pixels,
    *,
    names: list[str] | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a classifier to a folder; see `convlens.train.Learner.export`.

    Args:
        classifier: the network and its use; it is not changed.
        folder: a new or empty folder.
        images: (N, H, W, C) pixels of the input's size, real images on which results are compared.
        names: of the images, in messages; None for their numbers.
        overwrite: replace an earlier export in this folder.

    Raises:
        ArgumentError: if the folder is in use, or the network cannot be exported.
        CheckpointError: if the folder cannot be written.
        MissingLibraryError: if onnx, onnxscript or onnxruntime is not installed.
        TrainingError: if the export does not agree with `predict`; nothing is left of it.
    """
    _check_libraries()
    target = _checked_folder(check_path("folder", folder), overwrite=overwrite)
    check_input(classifier)
    height, width = (classifier.input_transform.input_shape or (0, 0, 0))[1:]
    if images.ndim != 4 or images.shape[1:3] != (height, width) or len(images) == 0:
        raise ArgumentError(
            f"images must be at least one of {height}×{width} pixels, (N, H, W, C), got shape "
            f"{images.shape}."
        )
    names = names or [f"image {i}" for i in range(len(images))]
    work = _on_cpu(classifier)
    wanted = work.predict(np.moveaxis(images, -1, 1), 32)
    temporary = target.with_name(f".{target.name}.writing-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        _write_files(work, temporary)
        found = _by_onnx_runtime(temporary / ONNX, images)
        difference = _compare("ONNX Runtime", _answers(wanted), found, names, work.kind)
        _write_manifest(work, temporary, len(images), difference)
        loaded = load_classifier(temporary, "cpu", _blank(work.model))
        again = loaded.predict(np.moveaxis(images, -1, 1), 32)
        difference = max(
            difference,
            _compare("The reloaded folder", _answers(wanted), _answers(again), names, work.kind),
        )
        size = sum(file.stat().st_size for file in temporary.iterdir())
        _put(temporary, target)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"folder={printable(str(target))!r} cannot be written ({error}); check that its parent "
            "folder exists and is writable, and that the disk is not full."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(Path(folder), len(images), difference, size)


# ---- what cannot be exported ---------------------------------------------------------------------


def _check_libraries() -> None:
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_module(name)
    except ImportError as error:
        raise MissingLibraryError(
            f"An export needs {error.name}, which is not installed; install it with: "
            "pip install 'convlens[export]'"
        ) from error


def _checked_folder(folder: Path, *, overwrite: bool) -> Path:
    """The folder, links resolved.

    Raises:
        ArgumentError: if it holds anything that is not to be replaced.
    """
    said = printable(str(folder))
    try:
        target = folder.resolve()
        if target == Path.cwd():
            raise ArgumentError(f"folder={said!r} is the current folder; name a new one in it.")
        if not os.path.lexists(target):
            if not target.parent.is_dir():
                raise ArgumentError(f"folder={said!r} lies in a folder that does not exist.")
            return target
        names = {entry.name for entry in target.iterdir()}
    except OSError as error:
        raise ArgumentError(
            f"folder={said!r} cannot be used ({error.strerror or error}); give a new folder."
        ) from error
    is_export = MANIFEST in names and names <= {MANIFEST, *FILES}
    if names and not is_export:
        raise ArgumentError(f"folder={said!r} is not empty; give a new folder.")
    if names and not overwrite:
        raise ArgumentError(
            f"folder={said!r} holds an earlier export; give a new folder, or overwrite=True to "
            "replace it."
        )
    return target


def check_input(classifier: Classifier) -> None:
    """Raises ArgumentError if the network's input cannot be that of an export."""
    transform = classifier.input_transform
    shape, scale = transform.input_shape, transform.scale
    why = None
    if scale is None or not scale.is_known:
        why = (
            "the normalization of pixels is not known; give the scale: "
            "cl.DataLoaders(…, scale=PixelScale(…))"
        )
    elif shape is None:
        why = (
            "the size of its input is not known; give it: "
            "cl.DataLoaders(…, preprocessing=Preprocessing((H, W), channels=3))"
        )
    elif shape[0] not in (1, 3):
        why = f"its input has {shape[0]} channels, and image files have one or three"
    if why is not None:
        raise _refused(why)
    n = sum(tensor.nbytes for tensor in check_state(unwrapped(classifier.model)).values())
    if n > MOST_BYTES:
        raise _refused(f"its weights have {n:,} bytes, and an ONNX file at most {MOST_BYTES:,}")


def _on_cpu(classifier: Classifier) -> Classifier:
    """A copy on the CPU, in evaluation mode, float32, not compiled."""
    inner = unwrapped(classifier.model)
    try:
        model = copy.deepcopy(inner)
    except Exception as error:
        raise _refused(f"it cannot be copied ({_first_line(error)})") from error
    model = model.to("cpu", torch.float32).requires_grad_(requires_grad=False).eval()
    transform, classes = classifier.input_transform, classifier.classes
    return Classifier(model, transform, classes, classifier.kind)


def _blank(model: nn.Module) -> nn.Module | None:
    """For a network that is not built by name: itself with other weights, for the comparison."""
    if architecture_of(model) is not None:
        return None
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    return other


def _refused(why: str) -> ArgumentError:
    return ArgumentError(f"The network cannot be exported: {why}.")


# ---- writing -------------------------------------------------------------------------------------


class _FromPixels(nn.Module):
    """The network from pixels to probabilities, or numbers, as it is written to ONNX."""

    factor: Tensor
    shift: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        scale = classifier.input_transform.scale
        assert scale is not None
        factor, shift = scale.factors(255.0, torch.device("cpu"))
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self.network, self.kind = classifier.model, classifier.kind

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, C) uint8 → (N, K) probabilities, or (N,) numbers."""
        x = images.permute(0, 3, 1, 2).to(torch.float32) * self.factor + self.shift
        scores = self.network(x)
        if self.kind == CLASSES:
            return scores.softmax(1)
        return scores.sigmoid() if self.kind == LABELS else scores.flatten()


def _write_files(classifier: Classifier, folder: Path) -> None:
    """Write weights and ONNX.

    Raises:
        ArgumentError: if torch cannot export the network.
    """
    state = check_state(classifier.model)
    save_file({name: value.clone().contiguous() for name, value in state.items()}, folder / WEIGHTS)
    shape = classifier.input_transform.input_shape
    assert shape is not None
    example = torch.zeros(2, *shape[1:], shape[0], dtype=torch.uint8)
    try:
        with same_random(), _silence(), torch.no_grad():
            torch.onnx.export(
                _FromPixels(classifier).eval(),
                (example,),
                folder / ONNX,
                dynamo=True,
                input_names=["images"],
                output_names=[_output_name(classifier.kind)],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:
        raise _refused(f"torch.onnx cannot follow it ({_cause(error)})") from error


def _output_name(kind: str) -> str:
    return "values" if kind == NUMBERS else "probabilities"


@contextmanager
def _silence() -> Generator[None]:
    """Keep what torch.onnx prints, logs and warns of from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The first line of the innermost error, which says what the network does."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    line = next((one for one in str(error).splitlines() if one.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:300].rstrip('.')}".removesuffix(": ")


def _write_manifest(classifier: Classifier, folder: Path, n: int, difference: float) -> None:
    architecture = architecture_of(classifier.model)
    facts = {
        "format": FORMAT,
        "kind": classifier.kind,
        "classes": list(classifier.classes),
        "architecture": None if architecture is None else asdict(architecture),
        "network": type(classifier.model).__name__,
        "input": classifier.input_transform.facts(),
        "onnx": {
            "opset": OPSET,
            "input": "images: uint8 (N, H, W, C), decoded, resized and cut as input says",
            "output": _output_name(classifier.kind),
        },
        "compared": {"images": n, "largest_difference": difference},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("convlens", "torch", "onnx", "onnxruntime")},
        },
        "files": {name: _digest(folder / name) for name in FILES},
    }
    text = json.dumps(facts, indent=1, ensure_ascii=True, allow_nan=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size}


def _put(temporary: Path, target: Path) -> None:
    """Give the finished folder its name, in place of what is there."""
    mode = temporary.stat().st_mode & 0o666  # safetensors makes its files private
    for file in temporary.iterdir():
        file.chmod(mode)
        sync_to_disk(file)
    if not target.exists():
        temporary.rename(target)
        return
    old = temporary.with_name(f"{temporary.name}-old")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


# ---- comparing -----------------------------------------------------------------------------------


def _by_onnx_runtime(file: Path, images: Pixels) -> NDArray[np.float32]:
    """What ONNX Runtime says of the images, in batches of several sizes."""
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        found: list[NDArray[np.float32]] = []
        starts = np.cumsum([0, *BATCHES])
        edges = [*starts[starts < len(images)], len(images)]
        edges = sorted({*edges, *range(int(edges[-2]), len(images), 32)})
        for start, stop in pairwise(edges):
            part = np.ascontiguousarray(images[start:stop])
            found.append(session.run(None, {"images": part})[0])
    except Exception as error:
        raise TrainingError(
            f"ONNX Runtime cannot run the exported network ({_first_line(error)}); nothing is "
            "exported."
        ) from error
    return np.concatenate(found)


def _answers(said: Any) -> NDArray[np.float32]:  # noqa: ANN401
    return (said.values if said.kind == NUMBERS else said.probabilities).numpy()


def _compare(
    what: str,
    wanted: NDArray[np.float32],
    found: NDArray[np.float32],
    names: list[str],
    kind: str,
) -> float:
    """The largest difference.

    Raises:
        TrainingError: if it is above `TOLERANCE`, or another class is the most probable one.
    """
    if wanted.shape != found.shape:
        raise TrainingError(
            f"{what} gives {found.shape}, predict {wanted.shape}; nothing is exported."
        )
    n = len(wanted)
    difference = np.abs(wanted - found).reshape(n, -1).max(1)
    allowed = TOLERANCE * (np.maximum(1, np.abs(wanted)) if kind == NUMBERS else 1)
    bad = ~(difference <= allowed)  # also where it is NaN
    if kind == CLASSES:
        bad |= wanted.argmax(1) != found.argmax(1)
    if bad.any():
        worst = np.flatnonzero(bad)
        worst = worst[np.argsort(-np.nan_to_num(difference[worst], nan=np.inf))]
        said = [f"{printable(names[i])} by {difference[i]:.2g}" for i in worst[:MOST_SHOWN]]
        raise TrainingError(
            f"{what} does not agree with predict on {len(worst)} of {plural(n, 'image')}: "
            f"{', '.join(said)}{', …' if len(worst) > MOST_SHOWN else ''}; nothing is exported."
        )
    return float(difference.max())

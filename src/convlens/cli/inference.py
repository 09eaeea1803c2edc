"""``convlens predict`` and ``convlens export``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlens.cli.options import Commands, add_command, whole_number
from convlens.cli.output import interruptible, print_line
from convlens.core.terminal import printable
from convlens.core.wording import plural
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from convlens.inference import Classifier, Prediction

WIDEST = 60
"""Characters of a file's name in the table; of longer ones the end is shown."""


def add_commands(commands: Commands) -> None:
    """Add the commands of this module to the parser."""
    add = add_command(commands, "predict", predict).add_argument
    add("classifier", metavar="RUN|FOLDER", type=Path,
        help="a run's directory, whose best checkpoint is used, or an exported folder")  # fmt: skip
    add("files", metavar="FILE", nargs="+",
        help="image files, and folders, of which all images are taken; what cannot be read is "
        "listed on standard error")  # fmt: skip
    add("--top", type=whole_number(1), default=3, help="classes for each image, best first")
    add("--format", choices=["table", "json", "csv"], default="table",
        help="json is one document: kind, images, skipped; csv has a header and a row for each "
        "image")  # fmt: skip
    add("--tta", choices=["flip"], help="average each image and its mirror image")
    add("--batch-size", type=whole_number(1), default=64, help="images at a time")
    _add_shared(add)
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")

    add = add_command(commands, "export", export).add_argument
    add("run", metavar="RUN", type=Path, help="the run's directory; its best checkpoint is used")
    add("folder", metavar="FOLDER", type=Path, help="a new or empty folder")
    add("--images", type=Path, metavar="FOLDER",
        help="images on which the export is compared with the network (default: those of the run's "
        "data, if they are still there)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier export")
    _add_shared(add)


def _add_shared(add: Any) -> None:  # noqa: ANN401
    add("--model", metavar="file.py:object",
        help="the network, if convlens cannot build it by name; the file is run")  # fmt: skip


def predict(arguments: argparse.Namespace) -> None:
    """Say what is on images; exits with 1 if none of them could be read."""
    classifier = _classifier(arguments.classifier, arguments.model, arguments.device)
    said = classifier.predict(
        arguments.files, arguments.batch_size, tta=arguments.tta, strict=False
    )
    for line in _FORMATS[arguments.format](said, arguments.top):
        print_line(line)
    for skipped in said.skipped:
        print_line(f"convlens: skipped {skipped.file}: {skipped.why}", sys.stderr)


def export(arguments: argparse.Namespace) -> None:
    """Write a run's network to a folder from which it can be deployed: safetensors, JSON, ONNX."""
    from convlens.inference.compared_images import of_folder, of_run
    from convlens.inference.export import export as write
    from convlens.runs import open_run

    if not (arguments.run / "run.db").is_file():
        raise ArgumentError(f"{str(arguments.run)!r} is not the directory of a run.")
    with interruptible():
        classifier = _classifier(arguments.run, arguments.model, "cpu")
        transform = classifier.input_transform
        if arguments.images is None:
            images, names = of_run(open_run(arguments.run).meta.get("data", {}), transform)
        else:
            images, names = of_folder(arguments.images, transform)
        found = write(
            classifier, arguments.folder, images, names=names, overwrite=arguments.overwrite
        )
    print_line(str(found))


def _classifier(folder: Path, spec: str | None, device: str) -> Classifier:
    """The classifier of a run or an exported folder."""
    import torch

    from convlens.inference import load_classifier

    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: torch finds no such device here; give cpu, or auto.")
    return load_classifier(folder, None if device == "auto" else device, _model(spec))


def _model(spec: str | None) -> nn.Module | None:
    if spec is None:
        return None
    from convlens.models.by_name import model_of_file

    if ":" not in spec:
        raise ArgumentError(f"--model must be file.py:object, got {spec!r}.")
    return model_of_file(spec)


# ---- formats -------------------------------------------------------------------------------------


def _json(said: Prediction, top: int) -> Iterator[str]:
    yield json.dumps(said.to_dict(top))


def _csv(said: Prediction, top: int) -> Iterator[str]:
    """A header, and a row for each image; several labels are joined by semicolons."""
    word = "label" if said.kind == "labels" else "class"
    pairs = [(f"{word}_{i}", f"probability_{i}") for i in range(1, min(top, len(said.classes)) + 1)]
    header = [name for pair in pairs for name in pair]
    if said.kind == "classes":
        header[:2] = ["class", "probability"]
    first = {"classes": [], "labels": ["labels"], "numbers": ["value"]}[said.kind]
    yield _line(["file", *first, *header])
    for row in said.rows(top):
        said_of = [";".join(row["labels"])] if "labels" in row else [row[key] for key in first]
        best = [cell for one in row.get("top", ()) for cell in one.values()]
        yield _line([row["file"], *said_of, *best])


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    written = [f"{cell:.6g}" if isinstance(cell, float) else printable(str(cell)) for cell in cells]
    csv.writer(text, lineterminator="").writerow(written)
    return text.getvalue()


def _table(said: Prediction, top: int) -> Iterator[str]:
    """A line for each image, its file and what is on it, and a line that counts."""
    names = [printable(file) for file in said.files]
    names = [name if len(name) <= WIDEST else f"…{name[1 - WIDEST :]}" for name in names]
    width = max(map(len, names), default=0)
    for name, row in zip(names, said.rows(top), strict=True):
        if said.kind == "numbers":
            text = f"{row['value']:.6g}"
        else:
            shares = [list(one.values()) for one in row["top"]]
            text = "  ".join(f"{label} {share:.1%}" for label, share in shares)
        if said.kind == "labels":
            text = f"{', '.join(row['labels']) or 'none'}  ({text})"
        yield f"{name:<{width}}  {text}"
    left_out = f", {len(said.skipped):,} skipped" if said.skipped else ""
    yield f"{plural(len(said), 'image')}{left_out}"


_FORMATS = {"table": _table, "json": _json, "csv": _csv}

"""Exports of ten networks and more: ONNX Runtime and the reloaded folder against `predict`.

Each network is trained for some steps on real images, so that batch normalization has statistics of
its own, and exported; a table says how far apart the answers on real validation images are:

    python benchmarks/export.py [--images FOLDER] [--only NAME]

The images are those of CIFAR-10 from shared/data, or in a folder with train/CLASS and valid/CLASS;
without either, digits of MNIST in colours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

import convlens as cl
from convlens.data.embedded import read_idx
from convlens.inference.compared_images import of_loaders
from pairs import finish

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "cifar10-jpeg.tar.xz"
TRAIN, VALID = 32, 26
"""Images of each class."""

ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}


@dataclass(frozen=True)
class Case:
    """One network on one kind of data."""

    name: str
    spec: str
    size: int
    data: str = "classes"


CASES = (
    Case("simple_cnn, grey", "simple_cnn", 28, "grey"),
    Case("resnet (ours)", "resnet", 32),
    Case("torchvision resnet18", "torchvision:resnet18", 64),
    Case("torchvision mobilenet_v3_small", "torchvision:mobilenet_v3_small", 64),
    Case("torchvision efficientnet_b0", "torchvision:efficientnet_b0", 64),
    Case("torchvision convnext_tiny", "torchvision:convnext_tiny", 64),
    Case("torchvision regnet_y_400mf", "torchvision:regnet_y_400mf", 64),
    Case("timm mobilenetv4_conv_small", "timm:mobilenetv4_conv_small", 64),
    Case("timm vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", 224),
    Case("torchvision resnet18, grey", "torchvision:resnet18", 64, "grey"),
    Case("resnet (ours), several labels", "resnet", 32, "labels"),
    Case("resnet (ours), numbers", "resnet", 32, "numbers"),
)


@dataclass(frozen=True)
class Row:
    """What was found: the mean of the highest probability, or of the numbers; differences."""

    case: Case
    parameters: int
    images: int
    top: float
    onnx: float
    reloaded: float
    same_top: int
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        c = self.case
        return (
            f"| {c.name} | {c.size} | {self.parameters / 1e6:.2f} M | {self.images} | "
            f"{self.top:.2f} | {self.onnx:.1e} | {self.reloaded:.1e} | "
            f"{self.same_top} of {self.images} | {self.megabytes:.1f} MB | {self.seconds:.0f} s |"
        )


HEADER = (
    "| network | size | parameters | images | sure | ONNX Runtime | reloaded | same top-1 | "
    "folder | export |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def photos(to: Path) -> Path:
    """Folders train/CLASS and valid/CLASS of CIFAR-10, or of digits in colours."""
    if not CIFAR.is_file():
        return digits(to)
    parts, counts = {"train": ("train", TRAIN), "test": ("valid", VALID)}, Counter[Path]()
    with tarfile.open(CIFAR) as archive:
        for member in archive:
            *_, part, label, name = ["", "", *member.name.split("/")]
            source = archive.extractfile(member) if part in parts else None
            if source is None:
                continue
            folder = to / parts[part][0] / label
            counts[folder] += 1
            if counts[folder] <= parts[part][1]:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(source.read())
    return to


def digits(to: Path) -> Path:
    """The same of digits, each class in a colour of its own."""
    images, labels = read_idx("t10k-images-idx3-ubyte"), read_idx("t10k-labels-idx1-ubyte")
    for label in range(10):
        colour = np.random.default_rng(label).uniform(0.3, 1, 3)
        for i, pixels in enumerate(images[labels == label][: TRAIN + VALID]):
            folder = to / ("train" if i < TRAIN else "valid") / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels[..., None] * colour).astype(np.uint8)).save(folder / f"{i}.png")
    return to


def loaders(case: Case, folder: Path) -> cl.DataLoaders:
    """The images of a case."""
    settings = {"batch_size": 32, "device": "cpu", "size": case.size}
    with contextlib.redirect_stdout(io.StringIO()):
        if case.data == "grey":
            return grey(case.size)
        if case.data == "classes":
            return cl.from_folder(folder, **settings)
        files = sorted((folder / "valid").rglob("*.*")) + sorted((folder / "train").rglob("*.*"))
        names = [file.parent.name for file in files]
        kinds = ["animal" if name in ANIMALS else "thing" for name in names]
        labels = [list(pair) for pair in zip(names, kinds, strict=True)]
        classes = sorted(set(names))
        numbers = [classes.index(name) / 10 for name in names]
        given = labels if case.data == "labels" else numbers
        return cl.from_files(files, given, validation=0.45, **settings)


def grey(size: int) -> cl.DataLoaders:
    """Digits, scaled by Pillow."""
    images, labels = read_idx("t10k-images-idx3-ubyte"), read_idx("t10k-labels-idx1-ubyte")
    scaled = np.stack([np.asarray(Image.fromarray(x).resize((size, size))) for x in images[:580]])
    return cl.from_arrays(
        scaled[260:], labels[260:580], layout="NHW", valid=(scaled[:260], labels[:260]),
        batch_size=32, device="cpu", classes=[str(i) for i in range(10)],
    )  # fmt: skip


def measure(case: Case, folder: Path, target: Path) -> Row:
    """Train, export and compare one network."""
    torch.manual_seed(0)
    dls = loaders(case, folder)
    model = cl.model(case.spec, dls)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # or ten steps would leave most of the initial statistics
    learn = cl.Learner(dls, model, run=None, progress=False)
    learn.fit(1, 1e-3)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found = learn.export(target)
    seconds = time.perf_counter() - start
    pixels, _ = of_loaders(dls)
    x = np.moveaxis(pixels, -1, 1)
    session = onnxruntime.InferenceSession(target / "model.onnx")
    right = answers(learn.predict(x, 32))
    by_onnx = np.concatenate(
        [session.run(None, {"images": part})[0] for part in np.array_split(pixels, 8)]
    )
    again = answers(cl.load_classifier(target, "cpu").predict(x, 32))
    top: Callable[[np.ndarray], np.ndarray] = lambda p: p.argmax(1) if p.ndim == 2 else p.round(3)  # noqa: E731
    return Row(
        case,
        sum(p.numel() for p in learn.model.parameters()),
        len(pixels),
        float(right.max(1).mean() if right.ndim == 2 else right.mean()),
        float(np.abs(by_onnx - right).max()),
        float(np.abs(again - right).max()),
        int((top(by_onnx) == top(right)).sum()),
        found.n_bytes / 1e6,
        seconds,
    )


def answers(said: object) -> np.ndarray:
    """Probabilities (N, K), or numbers (N,)."""
    return (said.values if said.kind == "numbers" else said.probabilities).numpy()


def main() -> None:
    """Print the table, and all of it as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="train/CLASS and valid/CLASS")
    parser.add_argument("--only", default="", help="networks whose name has this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.images or photos(Path(temporary) / "photos")
        print(HEADER)
        rows: list[Row] = []
        for i, case in enumerate(CASES):
            if arguments.only in case.name:
                rows.append(measure(case, folder, Path(temporary) / f"export-{i}"))
                print(rows[-1], flush=True)
    finish([{**vars(row), "case": row.case.name} for row in rows])


if __name__ == "__main__":
    main()

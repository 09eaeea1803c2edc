"""Image files: decoding against other loaders, later epochs against memory, streaming.

Parts (``--parts decode epochs stream``):

- decode: MNIST as 70,000 PNG files and CIFAR-10 as 60,000 JPEG files, blocks of them in turn by
  every loader. convlens also hashes each file, checks it and writes the cache. The other loaders'
  time over that of convlens should be at least 0.9.
- epochs: an epoch after the first, from uint8, over the same from float32 in memory: at most 1.05,
  for the loader alone and with a training step.
- stream: 20,000 images of 224×224 with 512 MB of memory: streamed in shuffled order over gathering
  the same batches from the memory map, at most 1.25; and the process's memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import count, cycle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import convlens as cl
from convlens.data import TensorLoader
from convlens.data.embedded import read_idx
from convlens.data.image_cache import Decoded, decoded
from convlens.data.image_loader import ImageLoader, measured_scale
from convlens.data.items import Items
from convlens.data.preprocessing import Preprocessing
from pairs import compare, finish

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "cifar10-jpeg.tar.xz"
Result = dict[str, object]
N_CPUS = os.cpu_count() or 1
N_STREAMED, STREAMED_SHAPE, MEMORY = 20_000, (3, 224, 224), 512_000_000


def write_mnist(folder: Path) -> list[str]:
    """MNIST's 70,000 digits as PNG files."""
    parts = [read_idx("train-images-idx3-ubyte"), read_idx("t10k-images-idx3-ubyte")]
    folder.mkdir()
    paths = [str(folder / f"{i:05}.png") for i in range(70_000)]
    for path, digit in zip(paths, np.concatenate(parts), strict=True):
        Image.fromarray(digit).save(path)
    return paths


def write_cifar(folder: Path, archive: Path) -> list[str]:
    """CIFAR-10's 60,000 JPEG files."""
    folder.mkdir()
    subprocess.run(["tar", "xJf", str(archive), "-C", str(folder)], check=True)
    return sorted(map(str, folder.rglob("*.jpg")))


class Images(torch.utils.data.Dataset[Tensor]):
    """Image files as torchvision's examples read them."""

    def __init__(self, paths: Sequence[str], mode: str) -> None:
        self.paths, self.mode = paths, mode

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        """(C, H, W) uint8."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        with Image.open(self.paths[i]) as image:
            return pil_to_tensor(image.convert(self.mode))


class Blocks:
    """Batches of indices: each iteration gives those of the next block."""

    def __init__(self, n: int, block: int, batch: int = 256) -> None:
        self.starts, self.block, self.batch = cycle(range(0, n - block + 1, block)), block, batch

    def __iter__(self) -> Iterator[list[int]]:
        start = next(self.starts)
        rows = range(start, start + self.block)
        return (list(rows[i : i + self.batch]) for i in range(0, self.block, self.batch))


def in_threads(
    paths: Sequence[str],
    block: int,
    shape: tuple[int, ...],
    read: Callable[[str], np.ndarray],
    threads: int = 1,
) -> Callable[[], None]:
    """A side that reads the next block of files with so many threads for each processor."""
    starts = cycle(range(0, len(paths) - block + 1, block))
    out = np.empty((block, *shape), np.uint8)
    pool = ThreadPoolExecutor(threads * N_CPUS)

    def part(start: int, at: int) -> None:
        for i in range(at, min(at + 64, block)):
            out[i] = read(paths[start + i])

    def side() -> None:
        list(pool.map(partial(part, next(starts)), range(0, block, 64)))

    return side


def with_pillow(mode: str, path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def by_convlens(
    paths: Sequence[str], block: int, settings: Preprocessing, folder: Path
) -> Callable[[], None]:
    """A side that decodes the next block and writes it as an entry of a cache."""
    starts, numbers = cycle(range(0, len(paths) - block + 1, block)), count()

    def side() -> None:
        start, place = next(starts), folder / str(next(numbers))
        decoded(paths[start : start + block], settings, folder=place, progress=False)
        shutil.rmtree(place)

    return side


def by_workers(loader: DataLoader[Tensor]) -> Callable[[], None]:
    """A side that takes a block from a DataLoader whose two workers are running already."""

    def side() -> None:
        for _ in loader:
            pass

    return side


def decoders(paths: Sequence[str], mode: str, folder: Path, block: int) -> dict[str, Callable]:
    """Every loader that is installed."""
    channels = 1 if mode == "L" else 3
    size = (28, 28) if mode == "L" else (32, 32)
    shape = size if mode == "L" else (*size, 3)
    settings = Preprocessing(size, channels=channels)
    sides = {
        "convlens": by_convlens(paths, block, settings, folder / "a"),
        "A/A": by_convlens(paths, block, settings, folder / "b"),
        "Pillow threads": in_threads(paths, block, shape, partial(with_pillow, mode)),
        "Pillow, 2 x threads": in_threads(paths, block, shape, partial(with_pillow, mode), 2),
    }
    if find_spec("torchvision"):
        sampler = Blocks(len(paths), block)
        sides["torchvision, 2 workers"] = by_workers(
            DataLoader(
                Images(paths, mode), batch_sampler=sampler, num_workers=2, persistent_workers=True
            )
        )
    if find_spec("simplejpeg") and mode == "RGB":
        import simplejpeg

        def read(path: str) -> np.ndarray:
            return simplejpeg.decode_jpeg(Path(path).read_bytes())

        sides["simplejpeg threads"] = in_threads(paths, block, shape, read)
    if find_spec("fastai"):
        sides["fastai, 2 workers"] = with_fastai(paths, mode, block)
    missing = [name for name in ("torchvision", "simplejpeg", "fastai") if not find_spec(name)]
    print(f"not installed, so not measured: {', '.join(missing) or 'nothing'}")
    return sides


def with_fastai(paths: Sequence[str], mode: str, block: int) -> Callable[[], None]:
    from fastai.data.core import TfmdDL
    from fastai.vision.core import PILImage, PILImageBW, ToTensor

    kind = PILImageBW if mode == "L" else PILImage
    starts = cycle(range(0, len(paths) - block + 1, block))

    def side() -> None:
        start = next(starts)
        files = [Path(path) for path in paths[start : start + block]]
        loader = TfmdDL(
            files, bs=256, num_workers=2, after_item=[kind.create, ToTensor()], shuffle=False
        )
        for _ in loader:
            pass

    return side


def measure_decoding(
    name: str, paths: Sequence[str], mode: str, folder: Path, rounds: int
) -> Result:
    sides = decoders(paths, mode, folder, block=2048)
    title = f"{name}: decoding, time over that of convlens"
    return compare(title, sides, "convlens", 0.9, rounds, steps=2048)


def decode_all(name: str, paths: Sequence[str], folder: Path) -> Decoded:
    """Decode a whole set, then read it from the cache."""
    found = None
    for what in ("decoded", "from the cache"):
        start = time.perf_counter()
        found = decoded(
            paths, Preprocessing((32, 32) if name == "cifar" else (28, 28)), folder=folder
        )
        seconds = time.perf_counter() - start
        print(f"{name}: {len(paths):,} files {what} in {seconds:.2f} s")
    assert found is not None
    return found


def forever(loader: TensorLoader | ImageLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def take(batches: Iterator[tuple[Tensor, Tensor]], n: int, step: Callable[..., None]) -> None:
    for _ in range(n):
        step(*next(batches))


def nothing(x: Tensor, y: Tensor) -> None:
    pass


def training_step(channels: int) -> Callable[[Tensor, Tensor], None]:
    torch.manual_seed(0)
    model = cl.simple_cnn(channels, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(x: Tensor, y: Tensor) -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_epochs(
    name: str, paths: Sequence[str], folder: Path, rounds: int, batch_size: int
) -> list[Result]:
    """Later epochs: uint8 that is normalized batch by batch, over float32 in memory."""
    found = decode_all(name, paths, folder / "whole")
    scale = measured_scale(found.pixels, found.good)
    y = torch.arange(len(paths)) % 10
    items = Items(tuple(paths), y, tuple("0123456789"))
    x = scale.from_uint8(torch.from_numpy(np.array(found.pixels)))
    options = {"batch_size": batch_size, "shuffle": True}
    loaders = {
        "in memory": TensorLoader(x, y, **options),
        "A/A": TensorLoader(x, y, **options),
        "convlens": ImageLoader(found.pixels, items, scale=scale, device="cpu", **options),
    }
    results = []
    for what, make in (
        ("loading", lambda: nothing),
        ("training", lambda: training_step(x.shape[1])),
    ):
        n = 40 if what == "loading" else 2
        sides = {
            side: partial(take, forever(loader), n, make()) for side, loader in loaders.items()
        }
        title = f"{name}: {what}, batches of {batch_size}, later epochs over those in memory"
        results.append(compare(title, sides, "in memory", 1.05, rounds, steps=n))
    return results


def write_synthetic(path: Path, n: int) -> np.memmap:
    """Random pixels: 3 GB that are not compressed anywhere."""
    pixels = np.memmap(path, np.uint8, "w+", shape=(n, *STREAMED_SHAPE))
    rng = np.random.default_rng(0)
    for start in range(0, n, 100):
        pixels[start : start + 100] = rng.integers(0, 256, (100, *STREAMED_SHAPE), np.uint8)
    pixels.flush()
    del pixels
    return np.memmap(path, np.uint8, "r", shape=(n, *STREAMED_SHAPE))


def forget(path: Path) -> None:
    """Drop the file's pages from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def measure_streaming(folder: Path, rounds: int, n: int) -> list[Result]:
    path = folder / "pixels"
    pixels = write_synthetic(path, n)
    items = Items(tuple(map(str, range(n))), torch.arange(n) % 10)
    scale = measured_scale(pixels, np.arange(0, n, 100))
    loader = ImageLoader(
        pixels, items, batch_size=64, scale=scale, shuffle=True, max_memory=MEMORY, device="cpu"
    )
    print(loader)
    for state in ("cold", "warm"):  # before anything touches the map
        if state == "cold":
            forget(path)
        start, sizes = time.perf_counter(), []
        for i, _ in enumerate(loader):
            if i % 20 == 0:
                sizes.append(resident_kb())
        seconds = time.perf_counter() - start
        print(
            f"an epoch, page cache {state}: {n / seconds:,.0f} images/s; memory from "
            f"{min(sizes[1:]) / 1e6:.3f} to {max(sizes[1:]) / 1e6:.3f} GB"
        )
    factor, shift = scale.factors(255.0, torch.device("cpu"))
    buffer = np.empty((64, *STREAMED_SHAPE), np.uint8)
    orders = {side: count() for side in ("uint8", "float32", "A/A", "u", "f")}

    def parts(side: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(next(orders[side]))
        return list(torch.randperm(n, generator=generator)[: 64 * 40].split(64))

    def gathered(side: str, *, floats: bool) -> None:
        for part in parts(side):
            np.take(pixels, part.numpy(), axis=0, out=buffer, mode="clip")
            if floats:
                torch.from_numpy(buffer).to(torch.float32).mul_(factor).add_(shift)

    def streamed(side: str, *, floats: bool) -> None:
        chosen = parts(side)
        for i, raw in enumerate(loader._images.batches(chosen)):
            if floats:
                loader._batch(raw, chosen[i], 0, i)

    results = []
    for floats, what in ((False, "stored uint8"), (True, "normalized float32")):
        sides = {
            "gathered": partial(gathered, "f" if floats else "u", floats=floats),
            "A/A": partial(gathered, "A/A", floats=floats),
            "streamed": partial(streamed, "float32" if floats else "uint8", floats=floats),
        }
        title = f"streaming {n:,} images as {what}, page cache warm, over gathering alone"
        results.append(compare(title, sides, "gathered", 1.25, rounds, steps=40))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["decode", "epochs", "stream"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--files", type=int, default=None, help="of each set; all by default")
    parser.add_argument("--streamed", type=int, default=N_STREAMED, help="synthetic images")
    parser.add_argument("--cifar", type=Path, default=CIFAR, help="the archive of JPEG files")
    given = parser.parse_args()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"decode", "epochs"} & set(given.parts):
            mnist = write_mnist(folder / "mnist")[: given.files]
            cifar = write_cifar(folder / "cifar", given.cifar)[: given.files]
            for title, paths, mode in (("mnist", mnist, "L"), ("cifar", cifar, "RGB")):
                if "decode" in given.parts:
                    results.append(
                        measure_decoding(title, paths, mode, folder / "caches", given.rounds)
                    )
                if "epochs" in given.parts:
                    results += measure_epochs(
                        title, paths, folder / "caches", 10 * given.rounds, 64
                    )
        if "stream" in given.parts:
            results += measure_streaming(folder, given.rounds, given.streamed)
    finish(results)


if __name__ == "__main__":
    main()

"""Decodes many image files into one array: threads, where the rows are kept, what was skipped."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from convlens.core.terminal import printable
from convlens.data.image_files import FORMATS, TURNED, as_data_error, decoding, orientation
from convlens.data.preprocessing import Picture, Preprocessing
from convlens.errors import ConvlensError, DataError

WAITING, GOOD, FAILED = 0, 1, 2

ROW = np.dtype(
    [
        ("state", "u1"),
        ("crc", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("format", "S8"),
        ("hash", "V16"),
    ]
)
"""What is known of each file: whether its pixels are there, and their CRC-32; the image's own size,
upright; its format; the BLAKE2b hash of the file's content."""

CHUNK_BYTES, MOST_IN_CHUNK = 4_000_000, 128
"""Rows are written together: about so many bytes, at most so many."""

THREADS = 2
"""For each processor: some wait for files or for Python's lock."""

READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""How a file is opened; it may have become a pipe, which is not waited for."""

SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the system that say nothing of the file: too many open files, no memory."""

BAR_AFTER_S, BAR_EVERY_S = 1.0, 0.25


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when the files were listed.

    Attributes:
        path: absolute.
        facts: size in bytes, time of its last change in ns, mode; None if it cannot be read.
        why_not: why it cannot be read.
    """

    path: str
    facts: tuple[int, int, int] | None
    why_not: str = ""

    @classmethod
    def listed(cls, path: str | Path) -> Self:
        """The file of this name, now."""
        absolute = os.path.abspath(path)  # noqa: PTH100 - links are kept
        try:
            found = os.stat(absolute)  # noqa: PTH116 - many files
        except (OSError, ValueError) as error:
            return cls(absolute, None, _reason(error))
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            return cls(absolute, None, "is not a file")
        return cls(absolute, _facts(found))

    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            DataError: if it cannot be read, or is not the file that was listed.
        """
        if self.facts is None:
            raise DataError(f"{printable(self.path)} {self.why_not}.")
        try:
            handle = os.open(self.path, READ)  # open() makes twice as many calls of the system
            try:
                if _facts(os.fstat(handle)) != self.facts:
                    raise DataError(f"{printable(self.path)} was changed while images were read.")
                return _whole(handle, self.facts[0])
            finally:
                os.close(handle)
        except OSError as error:
            raise as_data_error(error, printable(self.path)) from error


class Store(Protocol):
    """Where decoded rows are kept.

    Attributes:
        shape: (N, C, H, W).
        rows: (N,) of `ROW`.
    """

    shape: tuple[int, int, int, int]
    rows: NDArray[Any]

    def write(self, start: int, pixels: NDArray[np.uint8], rows: NDArray[Any]) -> None:
        """Keep the rows from ``start`` on."""


class MemoryStore:
    """Keeps the rows in memory."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self.pixels = np.zeros(shape, np.uint8)
        self.rows = np.zeros(shape[0], ROW)

    def write(self, start: int, pixels: NDArray[np.uint8], rows: NDArray[Any]) -> None:
        """Keep the rows from ``start`` on."""
        self.pixels[start : start + len(rows)] = pixels
        self.rows[start : start + len(rows)] = rows


class FolderStore:
    """Keeps the rows in two files of a folder, ``pixels`` and ``rows``; goes on with what is there.

    Args:
        folder: an existing folder that nobody else writes.
        shape: (N, C, H, W).

    Raises:
        OSError: if the files cannot be written, or the disk has too little space for all rows.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        self.shape, self._lock = shape, Lock()
        self.rows = np.zeros(shape[0], ROW)
        n_bytes = int(np.prod(shape))
        paths = folder / "pixels", folder / "rows"
        sizes = [path.stat().st_size if path.exists() else -1 for path in paths]
        if sizes == [n_bytes, self.rows.nbytes]:
            self.rows = np.fromfile(paths[1], ROW)
            self.rows["state"][damaged_rows(paths[0], self.rows, n_bytes // shape[0])] = WAITING
            self._pixels_file, self._rows_file = (open(path, "r+b") for path in paths)  # noqa: SIM115
        else:
            self._pixels_file, self._rows_file = (open(path, "w+b") for path in paths)  # noqa: SIM115
            try:
                _allocate(self._pixels_file.fileno(), n_bytes)
                _allocate(self._rows_file.fileno(), self.rows.nbytes)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, start: int, pixels: NDArray[np.uint8], rows: NDArray[Any]) -> None:
        """Keep the rows from ``start`` on; their states are written after their pixels."""
        self.rows[start : start + len(rows)] = rows
        with self._lock:
            self._pixels_file.seek(start * pixels[0].nbytes)
            self._pixels_file.write(pixels.data)
            self._pixels_file.flush()
            self._rows_file.seek(start * ROW.itemsize)
            self._rows_file.write(rows.tobytes())
            self._rows_file.flush()

    def close(self) -> None:
        """Close the files."""
        self._pixels_file.close()
        self._rows_file.close()


class ColourFoundError(Exception):
    """Not all images are grey."""


class OtherSizeError(Exception):
    """Not all images have one size; the file with another one."""


@dataclass
class Decoder:
    """Decodes files into a store, in threads that let go of Python's lock while Pillow works.

    Args:
        files: the files, one for each row of the store.
        preprocessing: how each is read; it gives the store's shape.
        store: where the rows go. Rows that are there already are not decoded again.
        only_grey: stop at the first image with colours.

    Attributes:
        failures: row → why its file is left out.
    """

    files: Sequence[SourceFile]
    preprocessing: Preprocessing
    store: Store
    only_grey: bool = False
    failures: dict[int, str] = field(default_factory=dict[int, str])
    _stop: Event = field(default_factory=Event)

    def run(self, *, progress: bool) -> None:
        """Decode all rows that are missing.

        Raises:
            ColourFoundError: with ``only_grey``, if an image has colours.
            OtherSizeError: if an image has another size than the store's rows.
            OSError: if the store cannot be written.
            DataError: if there is no memory to read a file, or too many files are open.
        """
        row_bytes = int(np.prod(self.store.shape[1:]))
        missing = np.flatnonzero(self.store.rows["state"] != GOOD)
        chunks = _chunks(missing, max(1, min(MOST_IN_CHUNK, CHUNK_BYTES // row_bytes)))
        pool = ThreadPoolExecutor(THREADS * (os.cpu_count() or 1), "convlens-decoding")
        try:
            with _bar(len(missing), shown=progress) as advance:
                for future in as_completed([pool.submit(self._chunk, *one) for one in chunks]):
                    advance(future.result())
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _chunk(self, start: int, stop: int) -> int:
        """Decode the rows of one chunk and write those that were reached."""
        files = self.files[start:stop]
        pixels = np.zeros((len(files), *self.store.shape[1:]), np.uint8)
        rows = np.zeros(len(files), ROW)
        for i, file in enumerate(files):
            if self._stop.is_set():
                break
            try:
                picture, digest = self._read(file)
            except DataError as error:
                if is_shortage(error):  # the file may be good: it must not be kept as damaged
                    raise
                self.failures[start + i] = _without_name(str(error), file)
                rows["state"][i] = FAILED
                continue
            pixels[i] = picture.pixels
            crc = zlib.crc32(picture.pixels.data)
            name = picture.format.encode("ascii")
            rows[i] = GOOD, crc, picture.width, picture.height, name, digest
        self.store.write(start, pixels, rows)
        return len(files)

    def _read(self, file: SourceFile) -> tuple[Picture, bytes]:
        data = file.content()
        picture = self.preprocessing.decode(data, printable(file.path))
        if self.only_grey and not picture.grey:
            raise ColourFoundError
        if picture.pixels.shape != self.store.shape[1:]:
            raise OtherSizeError(printable(file.path))
        return picture, hashlib.blake2b(data, digest_size=16).digest()


def is_shortage(error: BaseException) -> bool:
    """Whether an error of reading a file, or its cause, is that this process lacks something.

    >>> is_shortage(OSError(errno.EMFILE, "Too many open files")), is_shortage(ValueError())
    (True, False)
    """
    cause = error.__cause__ or error
    if isinstance(cause, MemoryError) or "out of memory" in str(cause):  # Pillow's words
        return True
    return isinstance(cause, OSError) and cause.errno in SHORTAGES


def _chunks(rows: NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """The parts of adjacent rows, at most so long: (start, stop)."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    parts = [run[i : i + most] for run in runs for i in range(0, len(run), most)]
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]


def first_picture(files: Sequence[SourceFile], preprocessing: Preprocessing) -> Picture | None:
    """The first of the files that can be read."""
    for file in files:
        try:
            return preprocessing.decode(file.content(), printable(file.path))
        except ConvlensError as error:
            if is_shortage(error):
                raise
    return None


def size_in_header(file: SourceFile) -> tuple[int, int] | None:
    """Width and height, upright, without decoding the pixels; None if they cannot be read."""
    from PIL import Image

    with suppress(DataError), decoding(""), Image.open(file.path, formats=FORMATS) as opened:
        width, height = opened.size
        return (height, width) if orientation(opened) in TURNED else (width, height)
    return None


def damaged_rows(pixels: Path, rows: NDArray[Any], row_bytes: int) -> list[int]:
    """The images whose pixels in a file are not those that were written, by their CRC-32.

    Raises:
        OSError: if the file cannot be read.
    """
    length = max(1, CHUNK_BYTES // row_bytes)

    def damaged(start: int) -> list[int]:
        part = rows[start : start + length]
        with open(pixels, "rb", buffering=0) as file:
            file.seek(start * row_bytes)
            view = memoryview(file.read(len(part) * row_bytes))
        crcs = [zlib.crc32(view[i * row_bytes : (i + 1) * row_bytes]) for i in range(len(part))]
        return [
            start + int(i) for i in np.flatnonzero((part["crc"] != crcs) & (part["state"] == GOOD))
        ]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [i for found in pool.map(damaged, range(0, len(rows), length)) for i in found]


def _whole(handle: int, size: int) -> bytes:
    data = os.read(handle, size)
    while len(data) < size:  # more than the system gives at once
        part = os.read(handle, size - len(data))
        if not part:
            break
        data += part
    return data


def _facts(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_mode


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a link that leads back to itself"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _without_name(sentence: str, file: SourceFile) -> str:
    return sentence.removeprefix(printable(file.path)).strip().removesuffix(".")


def _allocate(handle: int, n_bytes: int) -> None:
    """Take the space now: a full disk is noticed before anything is decoded."""
    if sys.platform == "linux":
        os.posix_fallocate(handle, 0, n_bytes)
        return
    zeros = bytes(1 << 20)
    for start in range(0, n_bytes, len(zeros)):
        os.write(handle, zeros[: n_bytes - start])


def _nothing(_: int) -> None:
    pass


@contextmanager
def _bar(total: int, *, shown: bool) -> Generator[Callable[[int], None]]:
    """A progress bar on a terminal, if it takes longer than a second; gives a function to advance.

    It is redrawn by its caller: rich's own thread would slow the others.
    """
    if not (shown and sys.stderr is not None and sys.stderr.isatty()):  # pyright: ignore[reportUnnecessaryComparison]
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("decoding images"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
    task, done, next_draw = bar.add_task("", total=total), 0, time.monotonic() + BAR_AFTER_S

    def advance(n: int) -> None:
        nonlocal done, next_draw
        done += n
        if time.monotonic() >= next_draw:
            bar.start()
            bar.update(task, completed=done, refresh=True)
            next_draw = time.monotonic() + BAR_EVERY_S

    try:
        yield advance
    finally:
        bar.stop()

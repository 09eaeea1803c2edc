"""Image files → decoded pixels, each file decoded once: the cache and what is in it.

An entry of the cache is a folder, whose name is a hash of the files' paths, sizes and times and of
the settings: ``pixels`` (one row a file, raw uint8), ``rows`` (`convlens.data.decoding.ROW`) and
``items.json`` (the shape, the settings, what was skipped, a checksum of ``rows``). It is written as
``NAME.partial``, which its process keeps locked, and renamed when it is whole. A process that wants
an entry that another is writing waits for it. What a killed process left is gone on with by the
next one that wants the same, and removed by any after a day.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.core.file_locks import lock_folder
from convlens.core.terminal import printable
from convlens.core.wording import n_bytes, plural
from convlens.data.decoding import (
    FAILED,
    GOOD,
    ROW,
    ColourFoundError,
    Decoder,
    FolderStore,
    MemoryStore,
    OtherSizeError,
    SourceFile,
    Store,
    damaged_rows,
    first_picture,
    size_in_header,
)
from convlens.data.free_memory import free_memory
from convlens.data.items import Skipped
from convlens.data.preprocessing import Preprocessing
from convlens.errors import ArgumentError, DataError, warn

VERSION = 1
"""Of the cache's files; raised where a file would be decoded to other pixels."""

MOST_SKIPPED = 0.01
"""A larger share of files that cannot be read is refused."""

MOST_LISTED = 20

PARTIAL = ".partial"

PARTIAL_DAYS, ENTRY_DAYS = 1, 30
"""Partial entries that nobody writes, and entries that nobody used, are removed after so long."""


@dataclass(frozen=True)
class Decoded:
    """The pixels of image files.

    Attributes:
        pixels: (N, C, H, W) uint8, a row for each file that was given, in memory or a read-only
            memory map; the rows of skipped files are not to be used.
        good: (M,) the rows, in order, whose files could be read.
        skipped: the others.
        rows: (M,) what is known of the good ones: see `convlens.data.decoding.ROW`.
        preprocessing: the settings, with the channels that were found.
        entry: the entry of the cache; None if the pixels lie in memory.
    """

    pixels: NDArray[np.uint8]
    good: NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    rows: NDArray[Any]
    preprocessing: Preprocessing
    entry: Path | None

    @property
    def hashes(self) -> list[str]:
        """Of each good file: the BLAKE2b hash of its content, 32 hexadecimal digits."""
        return [one.tobytes().hex() for one in self.rows["hash"]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Of each good file: the image's own (width, height), upright."""
        return np.stack([self.rows["width"], self.rows["height"]], 1).astype(np.int64)

    @property
    def formats(self) -> list[str]:
        """Of each good file: the name of its format, such as "JPEG"."""
        return [one.decode("ascii") for one in self.rows["format"].tolist()]


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Attributes:
        path: its folder.
        what: what is in it, in words.
        n_bytes: its size.
        used: when it was last used, in seconds since 1970.
    """

    path: Path
    what: str
    n_bytes: int
    used: float


def decoded(
    files: Sequence[str | Path],
    preprocessing: Preprocessing,
    *,
    strict: bool = False,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Decoded:
    """Decode image files, or read what an earlier call with the same files made of them.

    Files that cannot be read are left out and listed; no file is ever changed. Where neither the
    cache's folder nor a temporary one can be written, the pixels are kept in memory, which a
    `convlens.errors.ConvlensWarning` says.

    Args:
        files: the image files.
        preprocessing: how they are read. Without ``channels``, all are grey if all files are, else
            all have three.
        strict: refuse if any file cannot be read.
        folder: of the cache; None for `cache_folder`.
        progress: show a progress bar on a terminal.

    Raises:
        ArgumentError: if there are no files.
        DataError: if more than 1 % of the files cannot be read; if the size is to be that of the
            files, and they have several; or if there is neither disk nor memory for the pixels.
    """
    listed = [SourceFile.listed(file) for file in files]
    if not listed:
        raise ArgumentError("files is empty; give at least one image file.")
    name = _entry_name(listed, preprocessing)
    build = _Build(listed, preprocessing, progress)
    for place in _places(folder):
        try:
            place.mkdir(0o700, parents=True, exist_ok=True)
            found = _from_folder(place, name, build)
        except OSError as error:
            warn(f"The image cache {place} cannot be written ({error.strerror or error}).")
        else:
            return _checked(found, listed, strict=strict)
    return _checked(_in_memory(build), listed, strict=strict)


def cache_folder() -> Path:
    """The folder of the image cache: ``CONVLENS_CACHE``, else the user's cache folder."""
    given = os.environ.get("CONVLENS_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "convlens" / "images"


def cache_entries(folder: str | Path | None = None) -> list[CacheEntry]:
    """What is in the image cache, the last used first; also what was left by killed processes."""
    place = cache_folder() if folder is None else Path(folder)
    with suppress(OSError):
        found = [_described(path) for path in place.iterdir() if _is_entry(path)]
        return sorted(found, key=lambda entry: -entry.used)
    return []


def clear_cache(folder: str | Path | None = None) -> list[CacheEntry]:
    """Remove all entries but those that are being written; gives the removed ones."""
    return [entry for entry in cache_entries(folder) if _removed(entry.path)]


@dataclass
class _Build:
    """Decodes the files into a store that is made for them."""

    files: Sequence[SourceFile]
    preprocessing: Preprocessing
    progress: bool

    def plan(self, *, grey: bool = True) -> tuple[Preprocessing, tuple[int, int, int, int]]:
        """The settings with their channels, and the shape (N, C, H, W) of all rows."""
        first = first_picture(self.files, self.preprocessing)
        settings = self.preprocessing
        if settings.channels is None:
            grey = grey and (first is None or first.grey)
            settings = replace(settings, channels=1 if grey else 3)
        height, width = settings.stored or ((1, 1) if first is None else first.pixels.shape[1:])
        return settings, (len(self.files), settings.channels or 3, height, width)

    def run(self, settings: Preprocessing, store: Store) -> dict[int, str]:
        """Decode; gives the rows that failed and why."""
        only_grey = self.preprocessing.channels is None and settings.channels == 1
        decoder = Decoder(self.files, settings, store, only_grey)
        try:
            decoder.run(progress=self.progress)
        except OtherSizeError as error:
            raise DataError(_several_sizes(self.files, *error.args)) from None
        return dict(sorted(decoder.failures.items()))


def _from_folder(place: Path, name: str, build: _Build) -> Decoded:
    """Open an entry of the cache, or make it.

    Raises:
        OSError: if the cache cannot be written.
    """
    entry, partial = place / name, place / (name + PARTIAL)
    while True:
        found = _opened(entry, build)
        if found is not None:
            return found
        partial.mkdir(exist_ok=True)
        try:
            handle = _locked(partial)
        except FileNotFoundError:
            continue  # another process removed it, or made it the entry
        except OSError:  # no locks here: a folder of our own, and nobody waits
            handle, partial = -1, place / f"{name}.{os.getpid()}{PARTIAL}"
            partial.mkdir(exist_ok=True)
        try:
            if handle == -1 or _is_at(handle, partial):
                found = _opened(entry, build)  # another process may have made it meanwhile
                if found is not None:
                    shutil.rmtree(partial, ignore_errors=True)
                    return found
                _sweep(place)
                return _made(entry, partial, build)
        finally:
            if handle != -1:
                os.close(handle)


def _locked(partial: Path) -> int:
    try:
        return lock_folder(partial)
    except BlockingIOError:
        warn(f"Another process is decoding the same images; waiting for it ({partial}).")
        return lock_folder(partial, wait=True)


def _is_at(handle: int, folder: Path) -> bool:
    """Whether a folder that was locked still has that name."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), folder.stat())
    return False


def _made(entry: Path, partial: Path, build: _Build) -> Decoded:
    """Decode into a folder that is locked, and rename it.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    if entry.exists():
        warn(f"The image cache {entry} is damaged; the images are decoded again.")
        shutil.rmtree(entry)
    try:
        settings, shape = build.plan()
        try:
            failures = _decode_to(partial, shape, settings, build)
        except ColourFoundError:
            settings, shape = build.plan(grey=False)
            failures = _decode_to(partial, shape, settings, build)
        _write_facts(partial, shape, settings, failures, build)
        partial.rename(entry)
    except (OSError, DataError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    found = _opened(entry, build)
    if found is None:
        raise OSError("what was written cannot be read back")
    return found


def _decode_to(
    partial: Path, shape: tuple[int, int, int, int], settings: Preprocessing, build: _Build
) -> dict[int, str]:
    with FolderStore(partial, shape) as store:
        return build.run(settings, store)


def _write_facts(
    partial: Path,
    shape: tuple[int, int, int, int],
    settings: Preprocessing,
    failures: dict[int, str],
    build: _Build,
) -> None:
    n, channels, height, width = shape
    folders = {os.path.dirname(file.path) for file in build.files}  # noqa: PTH120 - many files
    what = f"{plural(n, 'image')} of {channels}×{height}×{width} from {_common(folders)}"
    facts = {
        "version": VERSION,
        "what": printable(what),
        "shape": shape,
        "preprocessing": settings.facts(),
        "skipped": list(failures.items()),
        "rows_crc32": zlib.crc32((partial / "rows").read_bytes()),
    }
    (partial / "items.json").write_text(json.dumps(facts), encoding="utf-8")


def _common(folders: Iterable[str]) -> str:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # on several drives
        return "several folders"


def _opened(entry: Path, build: _Build) -> Decoded | None:
    """The entry of this name; None if there is none, or it is damaged."""
    try:
        facts = json.loads((entry / "items.json").read_text(encoding="utf-8"))
        shape, skipped = tuple(facts["shape"]), dict(facts["skipped"])
        settings = Preprocessing(**facts["preprocessing"])
        raw = (entry / "rows").read_bytes()
        rows = np.frombuffer(raw, ROW)
        size = (entry / "pixels").stat().st_size
        whole = (
            facts["version"] == VERSION
            and zlib.crc32(raw) == facts["rows_crc32"]
            and len(rows) == shape[0] == len(build.files)
            and size == np.prod(shape)
            and not damaged_rows(entry / "pixels", rows, size // shape[0])
        )
        if not whole:
            return None
        pixels = np.memmap(entry / "pixels", np.uint8, "r", shape=shape)
        found = _result(pixels, rows, skipped, build, settings, entry)
    except (OSError, ValueError, TypeError, KeyError, IndexError, ArgumentError):
        return None
    with suppress(OSError):
        os.utime(entry / "items.json")
    return found


def _in_memory(build: _Build) -> Decoded:
    settings, shape = build.plan()
    _check_memory(shape)
    warn("The images are kept in memory, and are decoded again by the next run.")
    store = MemoryStore(shape)
    try:
        failures = build.run(settings, store)
    except ColourFoundError:
        settings, shape = build.plan(grey=False)
        _check_memory(shape)
        store = MemoryStore(shape)
        failures = build.run(settings, store)
    return _result(store.pixels, store.rows, failures, build, settings, None)


def _check_memory(shape: tuple[int, int, int, int]) -> None:
    import torch

    needed, free = int(np.prod(shape)), free_memory(torch.device("cpu"))
    if needed > free:
        raise DataError(
            f"The decoded images take {n_bytes(needed)}, for which there is neither a cache folder "
            f"nor memory ({n_bytes(free)} are free); name a folder with enough space in the "
            "environment variable CONVLENS_CACHE, or give a smaller size."
        )


def _result(
    pixels: NDArray[np.uint8],
    rows: NDArray[Any],
    failures: dict[int, str],
    build: _Build,
    settings: Preprocessing,
    entry: Path | None,
) -> Decoded:
    good = np.flatnonzero(rows["state"] == GOOD)
    skipped = tuple(Skipped(build.files[i].path, why) for i, why in failures.items())
    if len(good) + len(skipped) != len(rows) or (rows["state"][list(failures)] != FAILED).any():
        raise ValueError("rows and skipped files do not agree")
    return Decoded(pixels, good, skipped, rows[good], settings, entry)


def _checked(found: Decoded, files: Sequence[SourceFile], *, strict: bool) -> Decoded:
    n_skipped = len(found.skipped)
    if n_skipped == 0 or (not strict and n_skipped <= MOST_SKIPPED * len(files)):
        return found
    lines = [f"  {printable(one.file)}: {one.why}" for one in found.skipped[:MOST_LISTED]]
    if n_skipped > MOST_LISTED:
        lines.append(f"  and {n_skipped - MOST_LISTED:,} more")
    limit = "strict=True allows none" if strict else "at most 1 % are left out"
    raise DataError(
        f"{n_skipped:,} of {plural(len(files), 'image file')} cannot be used, and {limit}; repair "
        "or remove them:\n" + "\n".join(lines)
    )


def _several_sizes(files: Sequence[SourceFile], path: str) -> str:
    known = [size for size in map(size_in_header, files) if size is not None]
    (lowest, highest), (low, high) = (
        (min(sides), max(sides)) for sides in zip(*known, strict=True)
    )
    return (
        f"Without a size, images need to have one size, but their widths go from {lowest} to "
        f"{highest} and their heights from {low} to {high} ({printable(path)} is the first of "
        "another size); give size=(H, W)."
    )


def _entry_name(files: Sequence[SourceFile], preprocessing: Preprocessing) -> str:
    settings = json.dumps([VERSION, preprocessing.facts()])
    digest = blake2b(settings.encode(), digest_size=16)
    for file in files:
        digest.update(os.fsencode(file.path) + b"\0" + repr(file.facts).encode() + b"\0")
    return digest.hexdigest()


def _places(folder: str | Path | None) -> list[Path]:
    """The folders to try, in this order."""
    first = cache_folder() if folder is None else Path(folder)
    user = os.getuid() if hasattr(os, "getuid") else 0
    second = Path(tempfile.gettempdir()) / f"convlens-images-{user}"
    with suppress(OSError):  # everybody can write there, also a folder of this name
        if second.lstat().st_uid != user or not second.is_dir() or second.is_symlink():
            return [first]
    return [first, second]


def _is_entry(path: Path) -> bool:
    digest = path.name.removesuffix(PARTIAL).partition(".")[0]
    return len(digest) == 32 and set(digest) <= set("0123456789abcdef") and path.is_dir()


def _described(path: Path) -> CacheEntry:
    size, used, what = 0, time.time(), "unfinished"
    with suppress(OSError, ValueError, KeyError, TypeError):
        used = path.stat().st_mtime
        for file in path.iterdir():
            found = file.stat()
            size, used = size + found.st_size, max(used, found.st_mtime)
        if not path.name.endswith(PARTIAL):
            what = printable(str(json.loads((path / "items.json").read_text("utf-8"))["what"]))
    return CacheEntry(path, what, size, used)


def _removed(path: Path) -> bool:
    """Remove an entry, if nobody is writing it and it can be removed."""
    handle = -1
    try:
        handle = lock_folder(path)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks here
    try:
        shutil.rmtree(path)
    except OSError:
        return False
    finally:
        if handle != -1:
            os.close(handle)
    return True


def _sweep(place: Path) -> None:
    """Remove what was left by killed processes, and what was not used for long."""
    now = time.time()
    for entry in cache_entries(place):
        days = PARTIAL_DAYS if entry.path.name.endswith(PARTIAL) else ENTRY_DAYS
        if now - entry.used > days * 86_400:
            _removed(entry.path)

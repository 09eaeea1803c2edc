"""The files of data sets with a name: found or downloaded, checked, read."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.data.downloads import download, file_digest
from convlens.data.idx_files import idx_array
from convlens.data.named_sources import RemoteFile, Source
from convlens.data.pickled_arrays import read_pickle
from convlens.errors import DataError

Images = tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]
"""Pixels (N, C, H, W) and labels (N,)."""


def data_folder() -> Path:
    """Where downloads go: the folder ``CONVLENS_DATA``, else ``~/.cache/convlens/data``."""
    if given := os.environ.get("CONVLENS_DATA"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "convlens" / "data"


@dataclass(frozen=True)
class Files:
    """The files of one data set.

    Attributes:
        name: of the data set.
        source: what belongs to it.
        given: the folder that the user named; None downloads to a folder of convlens.
    """

    name: str
    source: Source
    given: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.given or data_folder() / self.name

    def archive(self, file: RemoteFile) -> Path:
        """A file as it is downloaded, which is done if need be.

        Raises:
            DataError: if it is missing or damaged.
        """
        if found := self.found(file.name):
            path = found[0]
        elif self.given is None:
            return download(file.url, self.folder / file.name, f"md5:{file.md5}")
        else:
            path = self.folder / file.name
            raise DataError(
                f"folder={str(self.folder)!r} has neither {file.name} nor what is in it; download "
                f"{file.url} and put it to {path}, or leave folder out."
            )
        if (digest := file_digest(path, "md5")) != file.md5:
            raise DataError(
                f"{path} is damaged: it has the MD5 {digest}, expected {file.md5}; delete it, "
                f"download {file.url} again and put it there."
            )
        return path

    def found(self, *names: str) -> list[Path] | None:
        """Files that lie in the folder, or in the archive's folder in it; None if not all do."""
        for folder in (self.folder, self.folder / self.source.folder):
            paths = [folder / name for name in names]
            if all(path.is_file() for path in paths):
                return paths
        return None


def read_arrays(files: Files) -> tuple[Images, Images]:
    """The training and the test images.

    Raises:
        DataError: if a file is missing, damaged, or cannot be read or written.
    """
    with _reading(files.folder):
        train, test = _read_idx(files) if files.source.kind == "idx" else _read_cifar(files)
    return _checked(train, files, "training"), _checked(test, files, "test")


def _read_idx(files: Files) -> tuple[Images, Images]:
    arrays = [_read_idx_file(files, file) for file in files.source.files]
    if [array.ndim for array in arrays] != [3, 1, 3, 1]:
        raise DataError(
            f"{files.folder}: images and labels of {files.name} have "
            f"{[array.ndim for array in arrays]} axes; expected [3, 1, 3, 1]."
        )
    x, y, x_test, y_test = arrays
    return (x[:, None], y), (x_test[:, None], y_test)


def _read_idx_file(files: Files, file: RemoteFile) -> NDArray[np.uint8]:
    if plain := files.found(file.name.removesuffix(".gz")):
        return idx_array(plain[0].read_bytes(), str(plain[0]))
    path = files.archive(file)
    return idx_array(gzip.decompress(path.read_bytes()), str(path))


def _read_cifar(files: Files) -> tuple[Images, Images]:
    source = files.source
    names = (*source.train, *source.test)
    if plain := files.found(*names):
        contents = {path.name: path.read_bytes() for path in plain}
    else:
        contents = _members(files.archive(source.files[0]), source.folder)
    x, y = zip(*(_read_batch(files, name, contents) for name in source.train), strict=True)
    (name,) = source.test
    return (np.concatenate(x), np.concatenate(y)), _read_batch(files, name, contents)


def _members(archive: Path, folder: str) -> dict[str, bytes]:
    """The files of a folder in an archive, in memory: nothing is extracted."""
    contents: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None and member.name.startswith(f"{folder}/"):
                contents[member.name.removeprefix(f"{folder}/")] = file.read()
    return contents


def _read_batch(files: Files, name: str, contents: dict[str, bytes]) -> Images:
    what, key = f"{files.folder}: {name} of {files.name}", files.source.labels
    batch = read_pickle(contents.get(name, b""), what)
    x, y = (batch.get("data"), batch.get(key)) if isinstance(batch, dict) else (None, None)
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3 * 32 * 32:
        raise DataError(f"{what} has no array 'data' (N, 3072); download it again.")
    if not isinstance(y, list) or not all(type(label) is int for label in y):
        raise DataError(f"{what} has no list {key!r} of whole numbers; download it again.")
    return x.reshape(-1, 3, 32, 32), np.array(y, dtype=np.int64)


def _checked(images: Images, files: Files, part: str) -> Images:
    x, y = images
    if len(x) != len(y) or len(x) == 0:
        raise DataError(
            f"{files.folder}: {files.name} has {len(x):,} {part} images and {len(y):,} labels; "
            "download it again."
        )
    n = len(files.source.classes)
    if y.min() < 0 or y.max() >= n:
        raise DataError(
            f"{files.folder}: {files.name} has {part} labels from {y.min()} to {y.max()}; expected "
            f"0 to {n - 1}."
        )
    return images


def photograph_folder(files: Files) -> Path:
    """The folder with ``train/CLASS/FILE`` and ``val/CLASS/FILE``, extracted if need be.

    An archive is always extracted to the folder of convlens, since the user's may be read-only.

    Raises:
        DataError: if the archive is missing or damaged, or cannot be extracted.
    """
    target = data_folder() / files.name / files.source.folder
    for folder in (files.folder, files.folder / files.source.folder, target):
        if all((folder / part).is_dir() for part in ("train", "val")):
            return folder
    with _reading(target):
        _extract(files.archive(files.source.files[0]), target)
    return target


def _extract(archive: Path, target: Path) -> None:
    """Extract the photographs, and only them, to a temporary folder that is then renamed.

    Names are compared with a pattern that has no ``..``, and links are left out, so that nothing
    is written outside.
    """
    wanted = re.compile(rf"{re.escape(target.name)}/((?:train|val)/n\d+/[\w-]+\.JPEG)", re.ASCII)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = wanted.fullmatch(member.name)
                file = tar.extractfile(member) if name and member.isreg() else None
                if name and file is not None:
                    path = temporary / name[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.read())
        if not target.exists():  # another process may have been faster
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _reading(place: Path) -> Generator[None]:
    """Turn errors of files and archives into a sentence."""
    try:
        yield
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{place}: an archive is damaged ({error}); delete it and download it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{error.filename or place} cannot be read or written ({error.strerror or error}); "
            "make room, or set CONVLENS_DATA to another folder."
        ) from error

"""Files from the internet: resumed, checked, and under their name only when they are right."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, TextIO

from convlens.core.file_locks import lock_folder
from convlens.core.wording import n_bytes
from convlens.errors import ArgumentError, DataError

TIMEOUT_S = 30.0
"""Longest wait for a connection, and for the next bytes of it."""

MOST_TRIES = 5
"""A connection that breaks is opened again so often, as long as each brings some bytes."""

CHUNK = 1 << 18


def download(url: str, path: Path, checksum: str) -> Path:
    """Download a file, or go on where an earlier call stopped; a file that is there stays.

    The bytes go to ``NAME.part`` beside ``path``, which is renamed when the checksum is right, so
    that a file under its name is whole. Ctrl-C and a broken connection leave the part for the next
    call. Of several processes, one downloads and the others wait, where folders can be locked. A
    bar is shown on standard error if it is a terminal, else one line.

        >>> from convlens.data.downloads import download
        >>> download("ftp://example.org/a.tgz", Path("a.tgz"), "md5:0")
        Traceback (most recent call last):
        convlens.errors.ArgumentError: ...ftp://example.org/a.tgz...

    Args:
        url: an https address, or an http address of this machine (127.0.0.1).
        path: where the file is put; its folder is made.
        checksum: of the whole file, such as "md5:c58f30108f718f92721af3b95e74349a": the name of a
            hash that hashlib knows, and its hexadecimal digits.

    Returns:
        ``path``.

    Raises:
        ArgumentError: if the address is of another kind.
        DataError: if the file cannot be downloaded or written, or the checksum is wrong. A part
            with a wrong checksum is deleted.
    """
    if not is_allowed(url):
        raise ArgumentError(
            f"url must be an https address, or an http address of 127.0.0.1, got {url!r}."
        )
    if path.is_file():
        return path
    part = path.with_name(path.name + ".part")
    with _saying(url, path):
        with _writing():
            path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            if path.is_file():  # another process was faster
                return path
            with _bar(path.name, url) as show:
                _fetch(url, part, show)
            _check(url, part, path, checksum)
            return part.replace(path)


def is_allowed(url: str) -> bool:
    """Whether an address is one of https, or of http on this machine."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname == "127.0.0.1")


def file_digest(path: Path, algorithm: str) -> str:
    """The hexadecimal checksum of a file."""
    with path.open("rb") as file:
        # MD5 is what the sources publish: it finds damage, and nothing else is asked of it.
        new = hashlib.new(algorithm, usedforsecurity=False)
        while chunk := file.read(CHUNK):
            new.update(chunk)
    return new.hexdigest()


class _WriteError(Exception):
    """The part cannot be written; an OSError alone may be of the network too."""


class _CutError(Exception):
    """The connection ended before the file did."""


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    handle = -1
    with suppress(OSError):  # no locks here
        handle = lock_folder(folder, wait=True)
    try:
        yield
    finally:
        if handle != -1:
            os.close(handle)


@contextmanager
def _writing() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _WriteError(error.strerror or error) from error


@contextmanager
def _saying(url: str, path: Path) -> Generator[None]:
    """Turn what can go wrong into one sentence."""
    by_hand = f"download it in another way and put it to {path}"
    try:
        yield
    except _WriteError as error:
        raise DataError(
            f"{path} cannot be written ({error}); make room, or download {url} in another way and "
            "put it there."
        ) from error
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(
            f"{url} cannot be downloaded (HTTP {error.code} {error.reason}); {by_hand}."
        ) from error
    except (_CutError, OSError, http.client.HTTPException) as error:
        reason: Any = getattr(error, "reason", error)  # urllib wraps what the socket says
        why = f"no answer in {TIMEOUT_S:g} s" if isinstance(reason, TimeoutError) else reason
        raise DataError(
            f"{url} cannot be downloaded ({why}); try again, which goes on from where it stopped, "
            f"or {by_hand}."
        ) from error


def _check(url: str, part: Path, path: Path, checksum: str) -> None:
    """Delete a part that is whole and wrong."""
    algorithm, _, expected = checksum.partition(":")
    found = file_digest(part, algorithm)
    if found != expected:
        size = n_bytes(part.stat().st_size)
        part.unlink()
        raise DataError(
            f"{url} gave {size} with the {algorithm.upper()} {found}, expected {expected}; it was "
            f"deleted: try again, or download it in another way and put it to {path}."
        )


Show = Callable[[int, int | None], None]
"""Takes the bytes that are there and those of the whole file, None if not known."""


def _fetch(url: str, part: Path, show: Show) -> None:
    """Bring the part to its whole length."""
    for attempt in range(1, MOST_TRIES + 1):
        start = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, start, show)
        except (_CutError, ConnectionError, TimeoutError, http.client.HTTPException):
            if attempt == MOST_TRIES or not part.exists() or part.stat().st_size <= start:
                raise
        else:
            return


def _fetch_rest(url: str, part: Path, start: int, show: Show) -> None:
    """Add to the part what one connection brings, which ends at the file's end."""
    # A header of every HTTP server; without it, Range is about the compressed bytes.
    headers = {"Accept-Encoding": "identity", "User-Agent": "convlens"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return  # the part is as long as the file, or longer: the checksum tells
        raise
    with answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server does not know Range, and sends the whole file
        total = None if answer.length is None else start + answer.length
        done = _write(answer, part, start, lambda done: show(done, total))
    if total is not None and done < total:
        raise _CutError(f"it ended after {n_bytes(done)} of {n_bytes(total)}")


def _write(answer: IO[bytes], part: Path, start: int, show: Callable[[int], None]) -> int:
    """Append to the part from byte ``start`` on; gives its length."""
    with _writing():
        file = part.open("r+b" if start else "wb", buffering=0)
    with file:
        done = file.seek(start)
        while chunk := answer.read(CHUNK):
            rest = memoryview(chunk)
            while rest:  # a disk that is nearly full takes some of it
                with _writing():
                    written = file.write(rest)
                rest, done = rest[written:], done + written
            show(done)
    return done


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that are allowed only."""

    def redirect_request(  # noqa: D102, PLR6301, RUF100
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not is_allowed(newurl):
            raise urllib.error.URLError(f"it leads to {newurl}, which is not an https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _show_nothing(_done: int, _total: int | None) -> None:
    pass


@contextmanager
def _bar(name: str, url: str) -> Generator[Show]:
    """How far a download is: a bar in a terminal, elsewhere a line at its start."""
    stderr: TextIO | None = sys.stderr
    if stderr is None:  # it was closed when Python started
        yield _show_nothing
    elif not stderr.isatty():
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            print(f"downloading {name} from {url}", file=stderr, flush=True)
        yield _show_nothing
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(bar_width=40), DownloadColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

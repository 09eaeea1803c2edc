"""The process of the command: standard streams, Ctrl-C, exit code. The commands are in `cli`."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from convlens.core.terminal import encodable


def main() -> NoReturn:
    """Run the command ``convlens``.

    Its streams never fail, and Ctrl-C ends it with one line, also while modules are imported.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, _end_at_once)
    sys.stdout = sys.__stdout__ = out = _open("stdout")
    sys.stderr = sys.__stderr__ = _open("stderr")
    code: object = 1
    try:
        from convlens.cli import main as command

        command()
    except SystemExit as end:
        code = end.code
    out.flush()
    if out.problem:
        sys.stderr.write(f"convlens: standard output could not be written ({out.problem}).\n")
        code = code or 1
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python says nothing more while it ends
    sys.exit(code)  # pyright: ignore[reportArgumentType]


class Output(io.TextIOWrapper):
    """A standard stream that never raises: text that cannot be written is dropped.

    Characters that its encoding lacks are replaced by plain ones.

    Attributes:
        problem: why writing failed; empty if it did not, or if the reader has closed the pipe.
    """

    problem = ""

    def write(self, text: str) -> int:
        """Write, or drop it."""
        try:
            super().write(encodable(text, self.encoding))
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.problem = error.strerror or str(error)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())  # swallows the buffer and everything after
        os.close(nothing)


def _open(name: str) -> Output:
    stream: io.TextIOWrapper | None = getattr(sys, name)
    if stream is None:  # closed; without a replacement the next opened file would get its number
        return Output(open(os.devnull, "wb"), "utf-8")
    line_buffering = stream.line_buffering
    encoding = stream.encoding
    return Output(stream.detach(), encoding, "backslashreplace", line_buffering=line_buffering)


def _end_at_once(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    try:
        os.write(2, b"convlens: Interrupted.\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()

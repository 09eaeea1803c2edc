"""The command ``convlens``: parses its arguments, calls, prints. One module a group of commands."""

from __future__ import annotations

import re
import sys
import traceback
from typing import NoReturn

from convlens.cli import data, diagnosis, inference, recorded_runs, summary_and_field, training
from convlens.cli.options import Parser
from convlens.cli.output import print_line
from convlens.errors import ArgumentError, ConvlensError, LayerNotFoundError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as a shell gives it."""


def main() -> NoReturn:
    """Run the command and exit.

    0 done, 1 it failed, 2 its arguments cannot work, 3 a problem was found, 130 Ctrl-C.
    """
    arguments = _parser().parse_args()
    try:
        arguments.run_command(arguments)
    except KeyboardInterrupt:
        _fail("Interrupted.", INTERRUPTED)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        _fail(_sentence(error), 2 if isinstance(error, ArgumentError | LayerNotFoundError) else 1)
    sys.exit(0)


def _parser() -> Parser:
    from importlib.metadata import version

    parser = Parser(
        prog="convlens",
        description="Train convolutional networks and see inside them while they train.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"convlens {version('convlens')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for group in (training, data, inference, recorded_runs, diagnosis, summary_and_field):
        group.add_commands(commands)
    return parser


def _sentence(error: Exception) -> str:
    """The message for an error, without names of Python arguments, which a user has not written."""
    if isinstance(error, ConvlensError):
        said = re.sub(r"\bfolder=…", "--data", str(error))
        said = re.sub(
            r"\b(size|image|images|label|model|separator)=(?:…|'…'|\(H, W\))", r"--\1", said
        )
        said = said.replace("overwrite=True", "--overwrite")
        said = said.replace("kind='numbers'", "--kind numbers")
        said = said.replace("pretrained=True", "--pretrained")
        said = re.sub(r"^(image|label|loss|optimizer|pretrained)=(?=')", r"--\1 ", said)
        said = re.sub(r"^label_smoothing(?==| )", "--label-smoothing", said)
        return re.sub(r"^input_shape(?= )", "the input", re.sub(r"^\w+=(?=\S)", "", said))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be read or written ({error.strerror})."
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
        return "This takes more memory than there is; give a smaller image, batch or model."
    return f"{type(error).__name__}: {error} (--debug prints the traceback.)"


def _fail(message: str, code: int) -> NoReturn:
    print_line(f"convlens: {' '.join(message.split())}", sys.stderr)
    sys.exit(code)

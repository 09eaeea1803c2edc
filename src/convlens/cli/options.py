"""The command's parser, its messages for wrong options, and the types of option values."""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from convlens.core.terminal import printable

RUNS = Path("runs")
"""The default folder of runs."""

MANY = 10**9
"""The largest whole number that an option takes; more is taken for a typing error."""

LARGEST_SIDE = 10**6
"""The same for the pixels along one side of an image, and for its channels."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence, without the usage."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        args: Sequence[str] | None = None,
        namespace: Any = None,  # noqa: ANN401 — argparse's
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse an unknown option before anything else, and name the closest known one."""
        words = sys.argv[1:] if args is None else args
        for word in itertools.takewhile(self._is_own, words):
            name = word.partition("=")[0]
            if re.match("--?[a-zA-Z]", name) and name not in self._option_string_actions:
                known = [option for option in self._option_string_actions if option[:2] == "--"]
                close = [option for option in known if option.startswith(name)]
                close = close or difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                self.error(f"there is no option {name}{hint}")
        return super().parse_known_args(args, namespace)

    def _is_own(self, word: str) -> bool:
        """Whether a word comes before the subcommand or "--", after which options are not ours."""
        return word != "--" and (self._subparsers is None or word.startswith("-"))

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        sentence = " ".join(f"{message.rstrip('.')}; see {self.prog} --help.".split())
        self.exit(2, f"convlens: {printable(sentence)}\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # pyright: ignore[reportPrivateUsage]


def add_command(
    commands: Commands, name: str, run_command: Callable[[argparse.Namespace], None]
) -> Parser:
    """Add a subcommand that calls ``run_command``, whose docstring is its help."""
    command = commands.add_parser(
        name,
        help=run_command.__doc__,
        description=run_command.__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    command.add_argument("--debug", action="store_true", help="print the traceback of a failure")
    command.set_defaults(run_command=run_command)
    return command


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds an option's default to its help, unless it is empty or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, (), []) or action.default is False:  # 0 does say something
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {', '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def whole_number(least: int, most: int = MANY) -> Callable[[str], int]:
    """Reads a whole number in these bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {text}")
        return value

    return read


def positive_number(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number such as 0.01, got {text!r}")
    return value


def word_list(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def image_shape(text: str) -> tuple[int, ...]:
    """One image's sizes: 3x224x224."""
    try:
        sizes = tuple(int(size) for size in text.lower().replace("×", "x").split("x"))
    except ValueError:
        sizes = ()
    if not 1 <= len(sizes) <= 4 or min(sizes) < 1 or max(sizes) > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(
            f"must be a shape such as 3x224x224, without the batch, got {text!r}"
        )
    return sizes


def indices(text: str) -> tuple[int, ...]:
    """Indices between commas: 3,3."""
    try:
        return tuple(int(index) for index in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be indices such as 3,3, got {text!r}") from None

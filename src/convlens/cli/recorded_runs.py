"""``convlens runs``, ``convlens report``, ``convlens interpret`` and ``convlens view``."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from convlens.cli.options import RUNS, Commands, add_command, whole_number
from convlens.cli.output import check_out, interruptible, print_line
from convlens.core.terminal import printable
from convlens.core.wording import metric_value, plural, without_classes
from convlens.errors import ArgumentError, RunError

if TYPE_CHECKING:
    from convlens.runs import Run
    from convlens.web import Address

RECORD = "run.db"


def add_commands(commands: Commands) -> None:
    """Add the commands of this module to the parser."""
    add = add_command(commands, "report", make_report).add_argument
    add("run", type=Path, help="the run's directory")
    add("--out", type=Path, metavar="FILE", help="output file (default: RUN/report.html)")
    add(
        "--gif",
        type=Path,
        metavar="FILE",
        help="instead, write how a layer's feature maps change from epoch to epoch",
    )
    add("--layer", default="", help="the layer of --gif (default: the first convolution)")

    add = add_command(commands, "interpret", interpret).add_argument
    add("run", type=Path, help="the run's directory")
    add("--epoch", type=whole_number(1), metavar="N",
        help="of this epoch (default: the one that predict and export use: the best of a run that "
        "kept it, else the last)")  # fmt: skip

    add = add_command(commands, "view", view).add_argument
    add("runs", type=Path, nargs="*", default=[RUNS], help="folders of runs, or of one run each")
    add("--port", type=whole_number(0, 65535), default=5006, help="0 for a free one")
    add("--address", default="127.0.0.1", help="address to listen on")
    add("--token", help="secret that the browser's URL must contain; 'auto' generates one")
    add("--host-name", action="append", default=[], metavar="NAME",
        help="a name by which others reach this machine")  # fmt: skip
    add("--browser", action=argparse.BooleanOptionalAction, default=True, help="open the browser")

    add = add_command(commands, "runs", list_all).add_argument
    add("folder", type=Path, nargs="?", default=RUNS, help="where to look")
    add("--json", action="store_true", help="print JSON")


def make_report(arguments: argparse.Namespace) -> None:
    """Make a run's report anew, from its directory alone."""
    from convlens._api import report

    folder: Path = arguments.run
    run = _opened(folder)
    for option, out in (("--out", arguments.out), ("--gif", arguments.gif)):
        if out is not None:
            check_out(out, option)
    with interruptible():
        if arguments.gif is None:
            print_line(str(report(folder, arguments.out)))
        else:
            from convlens.web.gif import write_gif

            print_line(str(write_gif(run, arguments.gif, arguments.layer)))


def interpret(arguments: argparse.Namespace) -> None:
    """Print the recall and precision of each class, confused pairs and calibration of a run."""
    from convlens.core.snapshots import Confusion
    from convlens.data.items import CLASSES

    run = _opened(arguments.run)
    kind, best = run.meta.get("kind", CLASSES), run.meta.get("best", {}).get("epoch")
    if kind != CLASSES:
        raise ArgumentError(
            f"interpret is for classes, but this run was trained on {kind}; its metrics are in "
            "convlens runs and on its page."
        )
    if arguments.epoch is not None:
        epoch = arguments.epoch - 1
    else:
        epoch = best if best in run.snapshot_epochs(Confusion) else None
    found = run.interpret(epoch)
    last = found.counted.epoch
    if epoch is not None and last != epoch:
        raise ArgumentError(
            f"--epoch {epoch + 1}: no confusion matrix was recorded of that epoch; the last before "
            f"it is {last + 1}."
        )
    note = ", the best" if last == best else ""
    if best is not None and epoch is None:
        note = f"; of epoch {best + 1}, the best, no confusion matrix was recorded"
    print_line(f"after epoch {last + 1}{note}")
    for line in str(found).splitlines():
        print_line(line)


def list_all(arguments: argparse.Namespace) -> None:
    """List the runs in a folder."""
    from convlens.runs import list_runs

    folder: Path = arguments.folder
    _check_folder(folder, "the folder that keeps the runs")
    if os.path.isfile(folder / RECORD):  # noqa: PTH113 - Path.is_file raises where one may not look
        raise ArgumentError(
            f"{str(folder)!r} is one run; give the folder that keeps it, "
            f"{str(folder.resolve().parent)!r}."
        )
    found = list_runs(folder)
    if arguments.json:
        rows = [
            {"path": str(info.path), "status": info.status, "created": info.created,
             "epochs": info.n_epochs, "metrics": dict(info.metrics), "problem": info.problem}
            for info in found
        ]  # fmt: skip
        print_line(json.dumps(rows))
        return
    if not found:
        print_line(f"No runs in {folder}; make one with: convlens train mnist")
    for info in found:
        metrics = "  ".join(
            f"{name} {metric_value(name, value)}"
            for name, value in without_classes(info.metrics).items()
        )
        name, when = printable(info.name), info.created[:16].replace("T", " ")
        print_line(
            f"{name:<20}  {info.status:<10}  {when:<16}  {plural(info.n_epochs, 'epoch'):>10}  "
            f"{info.problem or metrics}"
        )


def view(arguments: argparse.Namespace) -> None:
    """Show runs in the browser, also while they are trained."""
    from convlens.web import make_address
    from convlens.web.server import serve

    address = make_address(
        arguments.address, arguments.port, arguments.token, tuple(arguments.host_name)
    )
    for place in arguments.runs:
        _check_folder(place, "the folder that keeps the runs, or the folder of one run")

    def ready(served: Address) -> None:
        import webbrowser

        print_line(f"The page is at {served.url_with_token} (Ctrl+C ends it).")
        if arguments.browser:
            webbrowser.open(served.url_with_token)

    with interruptible(), suppress(KeyboardInterrupt):
        serve(arguments.runs or [RUNS], address, ready)


def _opened(folder: Path) -> Run:
    """The run in a folder; ArgumentError if there is none, unlike a damaged one."""
    from convlens.runs import open_run

    _check_folder(folder, "the folder of one run")
    try:
        return open_run(folder)
    except RunError as error:
        if os.path.isfile(folder / RECORD):  # noqa: PTH113 - Path.is_file raises where one may not look
            raise
        raise ArgumentError(str(error)) from error


def _check_folder(folder: Path, give: str) -> None:
    """Raise ArgumentError unless it is a folder; the default one need not exist yet."""
    if folder.exists() and not folder.is_dir():
        what = "a file, not a folder"
        if folder.name == RECORD:
            what, give = "the file inside a run", f"its folder, {str(folder.parent)!r}"
        raise ArgumentError(f"{str(folder)!r} is {what}; give {give}.")
    if not folder.exists() and folder != RUNS:
        raise ArgumentError(f"{str(folder)!r} does not exist; give {give}.")

"""``convlens diagnose``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from convlens.cli.options import Commands, add_command
from convlens.cli.output import print_line
from convlens.errors import ArgumentError, RunError

PROBLEM = 3
"""The exit code of ``--json`` where a problem was found."""


def add_commands(commands: Commands) -> None:
    """Add the command of this module to the parser."""
    command = add_command(commands, "diagnose", diagnose)
    command.add_argument("run", type=Path, help="the run's directory")
    command.add_argument(
        "--json",
        action="store_true",
        help=f"print JSON, findings and facts; exit with {PROBLEM} where there is a problem",
    )


def diagnose(arguments: argparse.Namespace) -> None:
    """Say what is wrong with a run, worst first, and what to try."""
    from convlens.doctor import diagnose as findings_of
    from convlens.doctor import facts_of
    from convlens.runs import open_run

    folder: Path = arguments.run
    try:
        run = open_run(folder)
    except RunError as error:
        if (folder / "run.db").is_file() or folder.is_file():
            raise
        raise ArgumentError(str(error)) from error  # the wrong folder, unlike a damaged run
    record = run.record()
    findings = findings_of(record)
    if not arguments.json:
        for finding in findings:
            print_line(str(finding))
        return
    print_line(json.dumps(facts_of(record, findings, str(folder)), ensure_ascii=False))
    if any(finding.severity == "problem" for finding in findings):
        sys.exit(PROBLEM)

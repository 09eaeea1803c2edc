"""The benchmark of the doctor runs from end to end on two programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "benchmarks/doctor.py", "--clinic", "nowhere", "--seeds", "0"]


def test_the_benchmark_judges_two_programs_and_resumes(tmp_path: Path) -> None:
    arguments = ["--only", "linear_regression", "rmsprop", "--seconds", "1"]
    kept = tmp_path / "rows.jsonl"

    def run() -> tuple[list[str], dict[str, object]]:
        done = subprocess.run(
            [*COMMAND, *arguments, "--out", str(kept)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stdout.splitlines()
        return lines, json.loads(lines[-1])

    lines, result = run()
    assert lines[0].startswith("There is no clinic at ")
    assert lines[1] == "2 runs, 0 of them measured before"
    assert result["runs"] == 2
    assert result["raised"] == {}
    assert result["not_learned"] == []
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert {row["name"] for row in rows} == {"linear_regression", "rmsprop"}
    assert all(row["check"]["findings"] and row["diagnose"]["findings"] for row in rows)

    lines, again = run()
    assert lines[1] == "2 runs, 2 of them measured before"
    assert again == result


def test_an_unknown_program_is_said() -> None:
    done = subprocess.run(
        [*COMMAND, "--only", "no_such_program"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "No program has these names" in done.stderr

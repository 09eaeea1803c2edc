"""Looking at a run needs no torch: its report is made in an environment that lacks it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from views_data import Run


class Environment:
    """A virtual environment of its own, which sees nothing of the one that the tests run in."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def install(self, *packages: str) -> None:
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """This convlens, and of all that it can use only what pages are made of."""
    found = Environment(tmp_path_factory.mktemp("environment") / "venv")
    found.install(
        *(f"{name}=={version(name)}" for name in ("numpy", "bokeh", "lazy-loader", "pillow"))
    )
    found.install("--no-deps", str(Path(__file__).parents[2]))
    return found


def parts(report: Path) -> tuple[str, dict[str, str]]:
    """A report's markup, and the figures in it with Bokeh's random names replaced."""
    html = report.read_text(encoding="utf-8")
    figures = re.findall(
        r'<script type="application/json" id="item-([^"]+)">(.*?)</script>', html, re.DOTALL
    )
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    return markup, {name: renamed(text) for name, text in figures}


def renamed(figure: str) -> str:
    """The same with the identifiers, which are random or counted, in the order of appearance."""
    names: dict[str, str] = {}
    return re.sub(
        r'"(p\d+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"',
        lambda match: names.setdefault(match[1], f'"{len(names)}"'),
        figure,
    )


def test_the_report_is_the_same_without_torch(
    without_torch: Environment, healthy: Run, healthy_report: Path, tmp_path: Path
) -> None:
    missing = without_torch.run("-c", "import torch", check=False)
    assert "ModuleNotFoundError: No module named 'torch'" in missing.stderr
    there = tmp_path / "there.html"
    without_torch.run("-m", "convlens", "report", str(healthy.path), "--out", str(there))
    markup, figures = parts(there)
    expected_markup, expected_figures = parts(healthy_report)
    assert markup == expected_markup
    assert len(figures) > 3
    assert figures == expected_figures


def test_what_reads_and_shows_runs_is_imported_without_torch(without_torch: Environment) -> None:
    source = "import convlens.views, convlens.runs.follower; print(convlens.views.__file__)"
    place = Path(without_torch.run("-c", source).stdout.strip())
    assert place.is_relative_to(without_torch.folder), "the installed one, not this folder's"

"""A real Chromium for the tests of this room, and the runs and reports that several files read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mnist_runs import part, train
from views_data import Run, open_run, write_collapsed, write_healthy

from convlens.views import write_report

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(what: str) -> None:
    if os.environ.get("CONVLENS_NO_SKIP"):
        pytest.fail(f"{what}, and CONVLENS_NO_SKIP is set")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:  # not for longer: it keeps an event loop running
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed (pip install playwright)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield chromium
        chromium.close()


# ---- read by many tests, written by none --------------------------------------------------------


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five epochs of nine layers, with nothing wrong."""
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="session")
def healthy_report(healthy: Run) -> Path:
    return write_report(healthy)


@pytest.fixture(scope="session")
def collapsed_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose layers die one after the other."""
    return write_report(write_collapsed(tmp_path_factory.mktemp("collapsed")))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short training of the chapter's network, recorded with everything on."""
    return open_run(train(tmp_path_factory.mktemp("trained"), part(1000, 300), 2))


@pytest.fixture(scope="session")
def trained_report(trained: Run) -> Path:
    return write_report(trained)

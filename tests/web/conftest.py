"""Recorded runs, and a real Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_runs import RUNS

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


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``recorded("demo")`` is the directory of that run of `sample_runs`, recorded once."""
    found: dict[str, Path] = {}

    def record(name: str) -> Path:
        if name not in found:
            found[name] = RUNS[name](tmp_path_factory.mktemp(name, numbered=True))
        return found[name]

    return record


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


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab in which every error on the console fails the test."""
    tab = browser.new_page(viewport={"width": 1366, "height": 768})
    errors: list[str] = []
    tab.on("console", lambda message: message.type == "error" and errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    found = list(errors)
    tab.close()  # which hears of requests that came after the test's server had stopped
    assert not found

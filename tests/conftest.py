"""Fixtures for all tests."""

import os

import pytest
import torch

# Before anything loads matplotlib: tests have no screen.
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs and decoded images of a test land in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / ".image-cache"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

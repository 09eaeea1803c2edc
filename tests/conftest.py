"""Fixtures for all tests."""

import os

import pytest
import torch

# Before anything loads matplotlib: tests have no screen.
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs that a test makes by default land in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

"""`check`: what would go wrong in a training, found before it, on copies and in seconds."""

from __future__ import annotations

from convlens.checking.checker import CheckResult, check
from convlens.checking.first_batch import findings_of_batch

__all__ = ["CheckResult", "check", "findings_of_batch"]

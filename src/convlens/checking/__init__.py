"""`check`: what would go wrong in a training, found before it, on copies and in seconds."""

from __future__ import annotations

from convlens.checking.check import CheckResult, check

__all__ = ["CheckResult", "check"]

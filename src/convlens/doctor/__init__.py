"""From a record to findings in words: what was measured, what it means, what to try."""

from __future__ import annotations

from convlens.doctor.diagnosis import diagnose
from convlens.doctor.facts import facts_of

__all__ = ["diagnose", "facts_of"]

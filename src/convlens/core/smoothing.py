"""How much a drawn training loss is smoothed, wherever it is drawn."""

from __future__ import annotations

SMOOTH = 0.98
"""The share of its weight that the exponential mean of the loss keeps from step to step."""

REACH = 20.0
"""The mean extends over a twentieth of the steps to either side at most."""

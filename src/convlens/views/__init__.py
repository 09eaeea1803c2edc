"""What people look at: the report of a run, one HTML file that opens offline.

Everything is read from the run's directory; torch is never imported.
"""

from __future__ import annotations

from convlens.views.report import write_report

__all__ = ["write_report"]

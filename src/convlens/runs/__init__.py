"""The run directory: written while training, read at any time, by anyone, without torch.

``runs/NAME/`` holds ``run.db`` (SQLite: everything measured), ``checkpoints/`` (weights, see
`convlens.runs.checkpoints`, which is never imported from here) and ``report.html``. Nothing in it
is pickle, so nothing in it can run.
"""

from __future__ import annotations

from convlens.runs.folder import RunInfo, list_runs
from convlens.runs.reader import Run, open_run
from convlens.runs.writer import RunWriter, create_run, join_run

__all__ = ["Run", "RunInfo", "RunWriter", "create_run", "join_run", "list_runs", "open_run"]

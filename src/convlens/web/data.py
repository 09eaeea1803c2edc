"""What the server answers to programs, as plain JSON values; documented in docs/page.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from convlens.runs import RunInfo
from convlens.web.run_data import RunData
from convlens.web.view import View


def runs(found: Mapping[str, RunInfo]) -> dict[str, Any]:
    """The list of runs."""
    return {
        "runs": [
            {
                "key": key,
                "name": info.name,
                "created": info.created,
                "status": info.status,
                "epochs": info.n_epochs,
                "metrics": finite(dict(info.metrics)),
                "problem": info.problem,
            }
            for key, info in found.items()
        ]
    }


def facts(run: RunData, view: View) -> dict[str, Any]:
    """What is known of a run, its epochs and its findings."""
    del view
    return {
        "key": run.key,
        "name": run.name,
        "status": run.status,
        "meta": finite(dict(run.meta)),
        "epochs": [finite(asdict(epoch)) for epoch in run.epochs],
        "layers": [{"name": info.name, "kind": info.kind} for info in run.layers],
        "findings": None if run.findings is None else [asdict(one) for one in run.findings],
    }


def finite(value: Any) -> Any:  # noqa: ANN401 — JSON
    """The same with None for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


OF_RUN: Mapping[str, Callable[[RunData, View], dict[str, Any]]] = {"facts": facts}
"""What can be asked of a run, by its name in addresses."""

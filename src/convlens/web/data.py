"""What the server answers to programs, as plain JSON values; documented in docs/page.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from convlens.core.layers import find_layer
from convlens.core.records import Finding
from convlens.core.steps import Band, StepCurves
from convlens.web.panels.runs import count
from convlens.web.run_data import RunData
from convlens.web.run_summary import RunSummary
from convlens.web.view import View


def runs(listed: Sequence[tuple[RunSummary, Sequence[Finding] | None]]) -> dict[str, Any]:
    """The list of runs, each with how many findings there are of each severity."""
    return {
        "runs": [
            {
                "key": run.key, "name": run.path.name, "folder": run.folder,
                "created": run.created, "status": run.status, "problem": run.problem,
                "epochs": run.n_epochs, "metrics": finite(dict(run.metrics)),
                "best_accuracy": run.best, "valid_loss": run.valid_loss,
                "learning_rate": run.rate, "model": run.model, "parameters": run.parameters,
                "seconds": run.wall_s, "findings": count(findings),
            }
            for run, findings in listed
        ]
    }  # fmt: skip


def facts(run: RunData, _view: View) -> dict[str, Any]:
    """What is known of a run, its epochs, layers and findings."""
    return {
        "key": run.key,
        "name": run.name,
        "status": run.status,
        "meta": finite(dict(run.meta)),
        "epochs": [finite(asdict(epoch)) for epoch in run.epochs],
        "layers": [{"name": info.name, "kind": info.kind} for info in run.layers],
        "findings": None if run.findings is None else [finite(asdict(one)) for one in run.findings],
    }


def findings(run: RunData, _view: View) -> dict[str, Any]:
    """What the doctor found, worst first."""
    return {"key": run.key, "findings": [finite(asdict(one)) for one in run.findings or ()]}


def curves(run: RunData, _view: View) -> dict[str, Any]:
    """Loss and hyperparameters by step, in at most `run_data.POINTS` entries."""
    hypers = {name: _band(band) for name, band in run.hypers.hypers.items()}
    return {
        "key": run.key,
        "loss": {**_steps(run.curves), **_band(run.curves.loss)},
        "hyperparameters": {**_steps(run.hypers), "of": hypers},
    }


def layer(run: RunData, view: View) -> dict[str, Any]:
    """The statistics of one layer's activations by column of steps; ``layer=NAME``.

    Raises:
        LayerNotFoundError: if there is no such layer.
    """
    index = find_layer(view.layer or run.first_layer, run.names)
    figures, info = run.figures(), run.layers[index]
    return {
        "key": run.key,
        "layer": {"name": info.name, "kind": info.kind, "feeds_relu": info.feeds_relu},
        "first_step": figures.first_step.tolist(),
        "last_step": figures.last_step.tolist(),
        **{name: finite(values[index].tolist()) for name, values in figures.values.items()},
        "findings": [finite(asdict(o)) for o in run.findings or () if o.layer == info.name],
    }


def finite(value: Any) -> Any:  # noqa: ANN401 — JSON
    """The same with None for what JSON has no number for."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _steps(curves: StepCurves) -> dict[str, Any]:
    return {
        "first_step": curves.first_step.tolist(),
        "last_step": curves.last_step.tolist(),
        "seconds": finite(curves.wall_s.tolist()),
    }


def _band(band: Band) -> dict[str, Any]:
    values = {"low": band.low, "mean": band.mean, "high": band.high}
    return {name: finite(value.tolist()) for name, value in values.items()}


OF_RUN: Mapping[str, Callable[[RunData, View], dict[str, Any]]] = {
    "facts": facts, "findings": findings, "curves": curves, "layer": layer,
}  # fmt: skip
"""What can be asked of a run, by its name in addresses."""

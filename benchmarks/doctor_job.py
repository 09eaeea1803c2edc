"""One program, checked, watched and diagnosed, in a process of its own.

The doctor is given the model, the loader, the loss, the optimizer and the run; never a name or a
label.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convlens as cl
from convlens.checking import check
from healthy import LearnerProgram, Program, programs

EARLY = 0.25
"""The share of the steps after which a second recording is stopped."""


def program_of(job: Mapping[str, Any]) -> Any:  # noqa: ANN401 — the clinic's Program or one of ours
    """A new program: ``sick``, ``repaired`` and ``healthy`` are the clinic's, ``own`` ours."""
    name, seed = job["name"], job["seed"]
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 — what a program may draw from
    torch.manual_seed(seed)
    if job["set"] == "own":
        return programs()[name](seed)
    from clinic.run import load  # type: ignore[import-not-found]

    return load(name).build(seed, **({"fixed": True} if job["set"] == "repaired" else {}))


def plain(findings: Iterable[Any]) -> list[dict[str, Any]]:
    """Findings as JSON."""
    return [
        {
            "kind": f.kind,
            "severity": f.severity,
            "confidence": f.confidence,
            "layer": f.layer,
            "evidence": f.evidence,
            "fix": f.fix,
        }
        for f in findings
    ]


def checked(program: Any, seconds: float) -> dict[str, Any]:  # noqa: ANN401
    """What `check` says, how long it took, and what it had no time for."""
    if isinstance(program, LearnerProgram):
        with tempfile.TemporaryDirectory() as folder:
            learn = program.make(Path(folder) / "run")
            given = learn.model, learn.dls.train, learn.loss_function, None
    else:
        usual = isinstance(program.optimizer, torch.optim.Optimizer)
        optimizer = program.optimizer if usual else None
        given = program.model, program.train_loader, program.loss_fn, optimizer
    begun = time.perf_counter()
    found = check(*given, seconds=seconds)
    return {
        "findings": plain(found),
        "s": round(time.perf_counter() - begun, 2),
        "not_tried": found.not_tried,
    }


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What ``evaluate()`` returned, under the names that a user logs it by."""
    found = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
    return {("valid_loss" if k == "loss" else k): v for k, v in found.items()}


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def trained(program: Any, run: Path, share: float = 1.0) -> dict[str, Any]:  # noqa: ANN401
    """Train a share of the steps, watched and logged as a user would, and diagnose the run."""
    every, values = program.eval_every or max(1, program.n_steps // 4), dict[str, Any]()
    n = math.ceil(share * program.n_steps)
    begun = time.perf_counter()
    with cl.watch(program.model, gradients=True, updates=True, run=run) as stats:
        for i, batch in zip(range(n), endless(program.train_loader), strict=False):
            stats.log(loss=program.step(batch))
            if (i + 1) % every == 0 or i + 1 == program.n_steps:
                values = dict(program.evaluate())
                stats.log_epoch(**numbers(values))
    found = {"train_s": round(time.perf_counter() - begun, 2), "steps": n}
    found["metric"] = values.get(program.metric)
    return {**found, **diagnosed(run)}


def diagnosed(run: str | Path) -> dict[str, Any]:
    begun = time.perf_counter()
    found = plain(cl.diagnose(run))
    return {"findings": found, "s": round(time.perf_counter() - begun, 2)}


def learned(program: LearnerProgram, run: Path) -> dict[str, Any]:
    """Train with the learner, and diagnose the run that it records."""
    learn = program.make(run)
    begun = time.perf_counter()
    program.train(learn)
    found = {
        "train_s": round(time.perf_counter() - begun, 2),
        "steps": learn.step,
        "metric": learn.recorder.epochs[-1].metrics[program.metric],
    }
    return {**found, **diagnosed(learn.run_path or run)}


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """All that is asked of a program; what raises is said under ``errors``."""
    found: dict[str, Any] = {"errors": {}}

    def attempt(name: str, part: Callable[[], dict[str, Any]]) -> None:
        try:
            found[name] = part()
        except Exception as error:
            found["errors"][name] = f"{type(error).__name__}: {error}"[:500]

    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        attempt("check", lambda: checked(program_of(job), job["seconds"]))

        def whole() -> dict[str, Any]:
            program = program_of(job)
            if isinstance(program, LearnerProgram):
                result = learned(program, runs / "whole")
            else:
                result = trained(program, runs / "whole")
                if program.audit is not None:
                    result["audit"] = float(program.audit())
            if isinstance(program, LearnerProgram | Program):
                result["bar"] = program.bar
                better = 1 if program.higher_is_better else -1
                result["learned"] = better * result["metric"] >= better * program.bar
            return result

        attempt("diagnose", whole)
        if job["set"] == "sick":
            attempt("early", lambda: trained(program_of(job), runs / "early", EARLY))
    return found


def send(job: Mapping[str, Any], pipe: Connection) -> None:
    """Do a job in this process, and send what was found."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe.send(work(job))
    pipe.close()

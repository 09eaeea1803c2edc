"""Sample runs that broke: killed, damaged, or intact with facts that make no sense."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sample_trainings import digits, learner, sample, train_until

import convlens as cl
from convlens.errors import RunError
from convlens.runs.schema import DATABASE, TABLES
from convlens.runs.write_buffer import put_row, put_total


def small(path: Path) -> Path:
    """One short epoch, finished; its file."""
    learner(path, digits(600), cl.simple_cnn(1, 10, norm="batch")).fit(1, 0.01)
    return path / DATABASE


@sample("crashed")
def crashed(path: Path) -> None:
    """Its process was killed in the second epoch or a later one."""
    arguments = path, path / "never", 10_000
    child = multiprocessing.get_context("spawn").Process(target=train_until, args=arguments)
    child.start()
    try:
        while child.is_alive():
            time.sleep(0.05)
            with suppress(RunError):  # before it is made
                run = cl.open_run(path)
                if run.epochs and run.steps.step[-1] > run.epochs[-1].last_step + 20:
                    return
        raise RuntimeError(f"the training ended by itself: {child.exitcode}")
    finally:
        child.kill()
        child.join()


def _with_facts(path: Path, **facts: Any) -> None:
    """A run with other facts and their checksums: the file is intact, whatever they are."""
    with closing(sqlite3.connect(small(path))) as database, database:
        for key, value in facts.items():
            put_row(database, TABLES["meta"], (key,), (json.dumps(value),))
        put_total(database, TABLES["meta"])


@sample("damaged")
def damaged(path: Path) -> None:
    """Nothing can be read."""
    with small(path).open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 4_000)


@sample("damaged-columns")
def damaged_columns(path: Path) -> None:
    """Meta, steps and epochs can be read; the layers' statistics cannot."""
    with closing(sqlite3.connect(file := small(path))) as database:
        ((payload,),) = database.execute("SELECT payload FROM columns ORDER BY id LIMIT 1")
    content = file.read_bytes()
    assert content.count(payload[:64]) == 1
    file.write_bytes(content.replace(payload[:64], bytes(64)))


@sample("wrong-values")
def wrong_values(path: Path) -> None:
    """Facts of another kind than convlens writes."""
    _with_facts(
        path, summary=[1, 2.5, None], model="a model", classes=7, data=["mnist"], optimizer=3,
        schedule=[[]], seed={"a": 1}, n_epochs="many", n_steps=-1e300, wall_s="long", loss={},
        command=[1], torch=None, device=0, loss_at_every_step="no",
    )  # fmt: skip


@sample("wrong-inner-values")
def wrong_inner_values(path: Path) -> None:
    """The right kind outside, nonsense within."""
    _with_facts(
        path, status="walking", created="yesterday", error="\x00<b>", n_epochs=-3, n_steps=True,
        summary={"rows": [1, None, {}, {"name": []}], "totals": "no", "notes": 3},
        model={"class": 5, "text": ["x"], "n_parameters": "many"}, wall_s=float("nan"),
        data={"classes": 7, "name": None, "input_shape": "wide", "n_train": float("inf")},
        optimizer={"class": None, "groups": [{"lr": "fast"}, 4]},
    )  # fmt: skip

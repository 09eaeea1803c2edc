"""Reading a run: finished, crashed or still being written, without ever changing it.

Every property reads the file anew, so a growing run shows what is there now. No connection stays
open between reads: a reader never keeps the writer from closing its run.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convlens.errors import RunError, find_layer
from convlens.histories import FORWARD, OPTIMIZER_STEP, LayerHistory, LayerInfo, UpdateHistory
from convlens.packets import unpack
from convlens.plots import (
    POINTS,
    Interpretation,
    LayerHistories,
    TrainingCurves,
    UpdateHistories,
)
from convlens.records import Epoch, Picture, RunRecord, StepCurves, StepSeries
from convlens.runs.database import cannot_open, reading
from convlens.runs.histories import aligned, rank_files, read_histories, read_layers
from convlens.runs.schema import DATABASE
from convlens.runs.snapshots import read_epochs_of, read_layers_of, read_snapshot
from convlens.runs.steps import read_curves, read_steps
from convlens.series import check_points
from convlens.snapshots import S, Snapshot


def open_run(path: str | Path) -> Run:
    """Open a run's directory (or its ``run.db``) for reading.

    Raises:
        RunError: if there is nothing, no run, a damaged one, or one of a newer convlens.
    """
    path = Path(path)
    folder = path.parent if path.name == DATABASE else path
    try:
        if not folder.exists():
            raise RunError(
                f"path={str(path)!r} does not exist; give the folder of a run, such as "
                "'runs/mnist-0001'."
            )
        if not (folder / DATABASE).is_file():
            raise RunError(_no_run(folder))
    except OSError as error:
        raise RunError(
            f"path={str(path)!r} cannot be read ({error.strerror}); check that you may read the "
            "folder and what is in it."
        ) from error
    run = Run(folder)
    run.check()
    return run


class Run(Interpretation):
    """A recorded run, read from its directory; make one with `open_run`.

    Attributes:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / DATABASE
        self._closed = False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End reading; anything asked for afterwards is a `RunError`."""
        self._closed = True

    def check(self) -> None:
        """Raise a `RunError` if the file is not a run that this version reads."""
        with self._reading():
            pass

    @property
    def name(self) -> str:
        """The directory's own name, such as ``"mnist-0001"``."""
        return self.path.resolve().name

    @property
    def last_written(self) -> datetime:
        """When the record last grew, in UTC, as the file system says.

        Raises:
            RunError: if the file is gone or out of reach.
        """
        try:
            newest = self._file.stat().st_mtime
            with suppress(FileNotFoundError):  # the log goes when the writer closes
                log = self._file.with_name(DATABASE + "-wal")
                newest = max(newest, log.stat().st_mtime)
        except OSError as error:
            raise cannot_open(self._file, error.strerror) from error
        return datetime.fromtimestamp(newest, UTC)

    @property
    def meta(self) -> dict[str, Any]:
        """Facts by name, as they were written: versions, seed, command, data, model, status …."""
        with self._reading() as database:
            return read_meta(database)

    @property
    def steps(self) -> StepSeries:
        """Every recorded step."""
        with self._reading() as database:
            return read_steps(database)

    def curves(
        self, points: int = POINTS, first: int | None = None, last: int | None = None
    ) -> StepCurves:
        """The steps' series summed up in at most ``points`` entries, however long the run is.

        Args:
            points: as many as can be seen, at least 1.
            first: the first step of interest, None for the run's.
            last: the last one.

        Raises:
            ArgumentError: if ``points`` is not positive.
        """
        check_points(points)
        with self._reading() as database:
            return read_curves(database, points, first, last)

    @property
    def epochs(self) -> list[Epoch]:
        """Every finished epoch."""
        with self._reading() as database:
            return read_epochs(database)

    @property
    def layers(self) -> list[LayerInfo]:
        """The layers whose activations were watched, in order of their index."""
        return self.series("activation")

    def series(self, quantity: str) -> list[LayerInfo]:
        """What was watched of a quantity (see `LayerInfo`), in order of its index."""
        with self._reading() as database:
            return read_layers(database, quantity)

    @property
    def recorder(self) -> TrainingCurves:
        """The curves of the training, as ``learn.recorder`` has them."""
        return _RunCurves(self)

    @property
    def activation_stats(self) -> LayerHistories:
        """The watched layers, as ``learn.activation_stats`` has them."""
        return _RunLayers(self, "activation")

    @property
    def gradient_stats(self) -> LayerHistories:
        """The gradients of the watched parameters; empty if none were watched."""
        return _RunLayers(self, "gradient")

    @property
    def update_stats(self) -> UpdateHistories:
        """What the optimizer did to the watched parameters; empty if none were watched."""
        return _RunUpdates(self)

    def history(self, index: int, quantity: str = "activation") -> LayerHistory:
        """The history of the layer at this position among `layers` (negative from the end).

        Args:
            index: its position.
            quantity: of another series than the activations: its position among those.

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        with self._reading() as database:
            info = _pick(read_layers(database, quantity), index)
            return self._histories(database, [info])[0]

    def update_history(self, index: int) -> UpdateHistory:
        """What the optimizer did to the parameter at this position (negative from the end).

        Raises:
            LayerNotFoundError: if there is no such parameter.
        """
        with self._reading() as database:
            update = _pick(read_layers(database, "update"), index)
            parameter = replace(update, quantity="parameter")
            return aligned(*self._histories(database, [update, parameter]))

    def pictures(self, name: str | None = None) -> list[Picture]:
        """The images kept, by epoch; all of them or those of one name (``"batch"``, …)."""
        with self._reading() as database:
            return _pictures(database, name)

    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind taken at or before an epoch, None if there is none.

        ``run.snapshot(FeatureMaps, "0.0", epoch=-1)`` holds the layer's maps before training.

        Args:
            kind: one of the dataclasses of `convlens.snapshots`.
            layer: the module's qualified name; empty for what is about the whole network.
            epoch: None for the newest of all.
        """
        with self._reading() as database:
            return read_snapshot(database, kind, layer, epoch)

    def snapshot_epochs(self, kind: type[Snapshot], layer: str = "") -> list[int]:
        """The epochs, ascending, of which there is a snapshot of a kind and layer."""
        with self._reading() as database:
            return read_epochs_of(database, kind, layer)

    def snapshot_layers(self, kind: type[Snapshot]) -> list[str]:
        """The layers of which there is a snapshot of a kind, in the model's order."""
        with self._reading() as database:
            return read_layers_of(database, kind)

    def record(self) -> RunRecord:
        """The whole run as plain numbers, all of one moment."""
        with self._reading() as database:
            histories = self._histories(database, read_layers(database, "activation"))
            return RunRecord(
                read_meta(database), read_steps(database), read_epochs(database), histories
            )

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """One read transaction, for whoever asks for several things of one moment."""
        with self._reading() as database:
            yield database

    def _histories(
        self, database: sqlite3.Connection, series: Sequence[LayerInfo]
    ) -> list[LayerHistory]:
        meta = read_meta(database)
        complete = meta.get("status") != "running"
        others = rank_files(self.path, meta.get("ranks"), complete=complete)
        counted = FORWARD if meta.get("counted") == FORWARD else OPTIMIZER_STEP
        histories = read_histories(database, series, others)
        return [replace(history, counted=counted) for history in histories]

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        """One read transaction; whatever is wrong with the file becomes a sentence."""
        if self._closed:
            raise RunError(f"The run {str(self.path)!r} was closed; open it again with open_run.")
        with reading(self._file) as database:
            yield database


class _RunCurves(TrainingCurves):
    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def steps(self) -> StepSeries:
        return self._run.steps

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs

    def curves(
        self, points: int = POINTS, first: int | None = None, last: int | None = None
    ) -> StepCurves:
        return self._run.curves(points, first, last)


class _RunLayers(LayerHistories):
    def __init__(self, run: Run, quantity: str) -> None:
        self._run, self._quantity = run, quantity

    @property
    def layers(self) -> Sequence[LayerInfo]:
        return self._run.series(self._quantity)

    def history(self, index: int) -> LayerHistory:
        return self._run.history(index, self._quantity)

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs


class _RunUpdates(UpdateHistories):
    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def layers(self) -> Sequence[LayerInfo]:
        return self._run.series("update")

    def history(self, index: int) -> UpdateHistory:
        return self._run.update_history(index)

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs


def read_meta(database: sqlite3.Connection) -> dict[str, Any]:
    """Facts by name."""
    return {
        key: json.loads(value)
        for key, value in database.execute("SELECT key, value FROM meta ORDER BY key")
    }


def read_epochs(database: sqlite3.Connection) -> list[Epoch]:
    """Every finished epoch."""
    rows = database.execute("SELECT value FROM epochs ORDER BY epoch")
    return [Epoch(**json.loads(value)) for (value,) in rows]


def _pick(layers: Sequence[LayerInfo], index: int) -> LayerInfo:
    return layers[find_layer(index, [info.name for info in layers])]


def _pictures(database: sqlite3.Connection, name: str | None) -> list[Picture]:
    rows = database.execute(
        "SELECT name, epoch, captions, payload FROM pictures "
        "WHERE ?1 IS NULL OR name = ?1 ORDER BY epoch, name",
        (name,),
    )
    return [
        Picture(title, epoch, unpack(payload)["images"], json.loads(captions))
        for title, epoch, captions, payload in rows
    ]


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"path={str(folder)!r} is a file, not the folder of a run; give the folder."
    inside = sorted(entry.name for entry in folder.iterdir() if (entry / DATABASE).is_file())
    hint = (
        f"it holds the runs {', '.join(map(repr, inside[:3]))}: give one of those"
        if inside
        else "give the folder of a run, such as 'runs/mnist-0001'"
    )
    return f"path={str(folder)!r} has no {DATABASE}, so it is not a run; {hint}."

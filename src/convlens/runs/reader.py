"""`Run`: reads a run, be it finished, crashed or still being written, without ever changing it.

Every property reads the file anew, so a growing run shows what is there now. No connection stays
open between reads, so that a reader never keeps the writer from closing its run.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from convlens.core.argument_checks import check_path
from convlens.core.encoding import unpack
from convlens.core.histories import FORWARD, OPTIMIZER_STEP, LayerHistory, LayerInfo, UpdateHistory
from convlens.core.layer_histories import LayerHistories, UpdateHistories
from convlens.core.layers import find_layer
from convlens.core.records import Epoch, Picture, RunRecord
from convlens.core.snapshots import S, Snapshot, decode
from convlens.core.steps import StepCurves, StepSeries, check_points, cut_steps, sum_up
from convlens.core.training_curves import POINTS, TrainingCurves
from convlens.core.wording import plural
from convlens.errors import RunError
from convlens.plots import CurvePlots, LayerPlots, ValidationPlots
from convlens.runs.column_reader import (
    ColumnReader,
    Watched,
    rank_files,
    read_layers,
    read_watched,
)
from convlens.runs.database_reader import Transaction, cannot_open, is_record, reading
from convlens.runs.lock import how_it_ended
from convlens.runs.schema import DATABASE, epoch_of, parsed
from convlens.runs.step_chunks import read_steps

GROWING = ("running", "crashed")
"""Statuses of runs that may be incomplete."""

OF_PARAMETERS = ("gradient", "parameter", "update")
"""The quantities that a run has of parameters."""

META = dict.fromkeys(("created", "status", "error", "lost"), (str,)) | {"ranks": (int,)}
"""The types of the facts that reading relies on; all others may be any JSON."""


def open_run(path: str | Path) -> Run:
    """Open a run's directory (or its ``run.db``) for reading.

    >>> import tempfile
    >>> from convlens.runs import create_run
    >>> with tempfile.TemporaryDirectory() as base:
    ...     create_run("mnist", base).close()
    ...     cl.open_run(f"{base}/mnist-0001").meta["status"]
    'finished'

    Raises:
        ArgumentError: if ``path`` is not a path.
        RunError: if there is nothing, no run, a damaged one, or one of a newer convlens.
    """
    path = check_path("path", path)
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


class Run(ValidationPlots):
    """A recorded run, read from its directory; make one with `open_run`.

    Attributes:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / DATABASE
        self._closed = False

    def __repr__(self) -> str:
        path = repr(str(self.path))
        try:
            (meta, epochs), steps = self.facts(), self.steps
        except RunError:
            return f"Run({path}, {'closed' if self._closed else 'unreadable'})"
        n_steps, n_epochs = plural(len(steps), "step"), plural(len(epochs), "epoch")
        return f"Run({path}, {meta.get('status')}, {n_steps}, {n_epochs})"

    def _repr_html_(self) -> str | None:
        """The run's figures in a notebook's cell; its `repr` where they cannot be made."""
        from convlens.runs.notebook import run_html

        try:
            return run_html(self)
        except Exception:
            return None

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
        """When the record last grew, in UTC, as the file system says."""
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
        """Facts by name, as they were written: versions, seed, command, data, model, status ….

        The status is ``"crashed"`` if the process that wrote the run is gone without closing it.
        """
        with self._reading() as record:
            return read_meta(record)

    def facts(self) -> tuple[dict[str, Any], list[Epoch]]:
        """`meta` and `epochs`, of one moment."""
        with self._reading() as record:
            return read_meta(record), read_epochs(record)

    @property
    def steps(self) -> StepSeries:
        """Every recorded step."""
        with self._reading() as record:
            return read_steps(record)

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
        with self._reading() as record:
            return sum_up(cut_steps(read_steps(record, first or 0), first, last), points)

    @property
    def epochs(self) -> list[Epoch]:
        """Every finished epoch."""
        with self._reading() as record:
            return read_epochs(record)

    @property
    def layers(self) -> list[LayerInfo]:
        """The layers whose activations were watched, in order of their index."""
        return self.layers_of("activation")

    def layers_of(self, quantity: str) -> list[LayerInfo]:
        """What was watched of a quantity (see `LayerInfo`), in order of its index."""
        with self._reading() as record:
            return read_layers(record, quantity)

    @property
    def recorder(self) -> _RunCurves:
        """The curves of the training, as ``learn.recorder`` has them."""
        return _RunCurves(self)

    @property
    def activation_stats(self) -> _RunLayers:
        """The watched layers, as ``learn.activation_stats`` has them."""
        return _RunLayers(self, "activation")

    @property
    def gradient_stats(self) -> _RunLayers:
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
            quantity: ``"gradient"``, ``"parameter"`` or ``"update"`` for those series.

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        return self._read_histories(index, quantity)[0]

    def update_history(self, index: int) -> UpdateHistory:
        """What the optimizer did to the parameter at this position (negative from the end).

        Raises:
            LayerNotFoundError: if there is no such parameter.
        """
        return aligned(*self._read_histories(index, "update", "parameter"))

    def pictures(self, name: str | None = None) -> list[Picture]:
        """The images kept, by epoch; all of them or those of one name (``"batch"``, …)."""
        with self._reading() as record:
            return _pictures(record, name)

    def snapshot(self, kind: type[S], layer: str = "", epoch: int | None = None) -> S | None:
        """The newest snapshot of a kind taken at or before an epoch, None if there is none.

        ``run.snapshot(FeatureMaps, "0.0", epoch=-1)`` holds the layer's maps before training.

        Args:
            kind: one of the dataclasses of `convlens.core.snapshots`.
            layer: the module's qualified name; empty for what is about the whole network.
            epoch: None for the newest of all.
        """
        with self._reading() as record:
            epochs = [e for e in _epochs_of(record, kind, layer) if epoch is None or e <= epoch]
            if not epochs:
                return None
            facts, payload = record.values("snapshots", (kind.KIND, layer, epochs[-1]))
            return decode(kind, epochs[-1], layer, facts, payload)

    def snapshot_epochs(self, kind: type[Snapshot], layer: str = "") -> list[int]:
        """The epochs, ascending, of which there is a snapshot of a kind and layer."""
        with self._reading() as record:
            return _epochs_of(record, kind, layer)

    def snapshot_layers(self, kind: type[Snapshot]) -> list[str]:
        """The layers of which there is a snapshot of a kind, in the model's order."""
        with self._reading() as record:
            found = sorted((mark, key) for key, mark in record.keys("snapshots").items())
            names = [layer for _, (name, layer, _) in found if name == kind.KIND]
            return list(dict.fromkeys(names))

    def record(self, *, counts: bool = True) -> RunRecord:
        """The whole run as plain numbers, all of one moment.

        Args:
            counts: False leaves out the histories' bucket counts, most of what they take in memory.
        """
        with self.transactions() as records:
            main, meta = records[0], read_meta(records[0])
            watched = read_watched(main, "activation", counted_in(meta))
            histories = _histories(records, watched, watched.layers, counts=counts)
            parameters = {
                quantity: _without_counts(records, quantity) for quantity in OF_PARAMETERS
            }
            return RunRecord(meta, read_steps(main), read_epochs(main), histories, parameters)

    def _read_histories(self, index: int, *quantities: str) -> list[LayerHistory]:
        """The series at a position among those of the first quantity, and others like it."""
        with self.transactions() as records:
            watched = read_watched(records[0], quantities[0], counted_in(read_meta(records[0])))
            info = watched.layers[find_layer(index, [layer.name for layer in watched.layers])]
            series = [replace(info, quantity=quantity) for quantity in quantities]
            return _histories(records, watched, series)

    @contextmanager
    def transactions(self) -> Generator[list[Transaction]]:
        """A read transaction on the file of each rank, rank 0 first."""
        with ExitStack() as stack:
            main = stack.enter_context(self._reading())
            meta = read_meta(main)
            complete = meta.get("status") not in GROWING
            others = rank_files(self.path, meta.get("ranks"), complete=complete)
            yield [main, *(stack.enter_context(reading(file)) for file in others)]

    @contextmanager
    def _reading(self) -> Generator[Transaction]:
        """One read transaction; whatever is wrong with the file becomes a sentence."""
        if self._closed:
            raise RunError(f"The run {str(self.path)!r} was closed; open it again with open_run.")
        with reading(self._file) as record:
            yield record


class _RunCurves(CurvePlots, TrainingCurves):
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


class _RunLayers(LayerPlots, LayerHistories):
    def __init__(self, run: Run, quantity: str) -> None:
        self._run, self._quantity = run, quantity

    @property
    def _label(self) -> str:
        return f"{self._quantity}_stats"

    @property
    def layers(self) -> Sequence[LayerInfo]:
        return self._run.layers_of(self._quantity)

    def history(self, index: int) -> LayerHistory:
        return self._run.history(index, self._quantity)

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs


class _RunUpdates(UpdateHistories):
    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def _label(self) -> str:
        return "update_stats"

    @property
    def layers(self) -> Sequence[LayerInfo]:
        return self._run.layers_of("update")

    def history(self, index: int) -> UpdateHistory:
        return self._run.update_history(index)

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs


def read_meta(record: Transaction) -> dict[str, Any]:
    """Facts by name, with how the run ended where only its writer's absence says so."""
    return with_end(read_recorded(record), record)


def with_end(meta: dict[str, Any], record: Transaction) -> dict[str, Any]:
    """Recorded facts with how the run ended."""
    return meta | how_it_ended(meta, record.writer, record.file)


def read_recorded(record: Transaction) -> dict[str, Any]:
    """Facts by name, as they were recorded."""
    meta = {key: parsed(text) for (key,), (text,) in sorted(record.rows("meta"))}
    for name, kinds in META.items():
        if name in meta and type(meta[name]) not in kinds:
            raise ValueError(f"the fact {name} is {str(meta[name])[:80]!r}")
    return meta


def read_epochs(record: Transaction) -> list[Epoch]:
    """Every finished epoch."""
    return [epoch_of(number, text) for (number,), (text,) in sorted(record.rows("epochs"))]


def counted_in(meta: Mapping[str, Any]) -> str:
    """What the steps of a run's histories are, see `LayerHistory.counted`."""
    return FORWARD if meta.get("counted") == FORWARD else OPTIMIZER_STEP


def _histories(
    records: Sequence[Transaction],
    watched: Watched,
    layers: Sequence[LayerInfo],
    *,
    counts: bool = True,
) -> list[LayerHistory]:
    reader = ColumnReader(records)
    columns = (reader.read(info, watched.layout, counts=counts) for info in layers)
    return [watched.history(info, part) for info, part in zip(layers, columns, strict=True)]


def _without_counts(records: Sequence[Transaction], quantity: str) -> list[LayerHistory]:
    watched = read_watched(records[0], quantity)
    return _histories(records, watched, watched.layers, counts=False)


def aligned(update: LayerHistory, parameter: LayerHistory) -> UpdateHistory:
    """Both over the columns that both have."""
    first = update.first_step, parameter.first_step
    _, mine, its = np.intersect1d(*first, assume_unique=True, return_indices=True)
    return UpdateHistory(
        replace(update, columns=update.columns[mine]),
        replace(parameter, columns=parameter.columns[its]),
    )


def _epochs_of(record: Transaction, kind: type[Snapshot], layer: str) -> list[int]:
    """The epochs, ascending, of which there is a snapshot of a kind and layer."""
    keys = record.keys("snapshots")
    return sorted(epoch for name, its, epoch in keys if (name, its) == (kind.KIND, layer))


def _pictures(record: Transaction, name: str | None) -> list[Picture]:
    found: list[Picture] = []
    for title, epoch in sorted(record.keys("pictures"), key=lambda key: (key[1], key[0])):
        if name not in (None, title):
            continue
        text, payload = record.values("pictures", (title, epoch))
        captions, images = parsed(text), unpack(payload)["images"]
        if not isinstance(captions, list) or images.ndim not in (3, 4):
            raise ValueError(f"the picture {title!r} of epoch {epoch} is none")
        found.append(Picture(title, epoch, images, [str(caption) for caption in captions]))
    return found


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"path={str(folder)!r} is a file, not the folder of a run; give the folder."
    inside = sorted(entry.name for entry in folder.iterdir() if is_record(entry))
    hint = (
        f"it holds the runs {', '.join(map(repr, inside[:3]))}: give one of those"
        if inside
        else "give the folder of a run, such as 'runs/mnist-0001'"
    )
    return f"path={str(folder)!r} has no {DATABASE}, so it is not a run; {hint}."

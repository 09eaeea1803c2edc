"""Reading a run: finished, crashed or still being written, without ever changing it.

Every property reads the file anew, so a growing run shows what is there now. No connection stays
open between reads: a reader never keeps the writer from closing its run.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convlens.core.downsampling import check_points
from convlens.core.encoding import unpack
from convlens.core.histories import FORWARD, OPTIMIZER_STEP, LayerHistory, LayerInfo, UpdateHistory
from convlens.core.layer_histories import LayerHistories, UpdateHistories
from convlens.core.layers import find_layer
from convlens.core.records import Epoch, Picture, RunRecord, StepCurves, StepSeries
from convlens.core.snapshots import S, Snapshot
from convlens.core.training_curves import POINTS, TrainingCurves
from convlens.errors import RunError
from convlens.plots import CurvePlots, LayerPlots, ValidationPlots
from convlens.runs.database import Transaction, cannot_open, is_record, reading
from convlens.runs.histories import aligned, rank_files, read_histories, read_layers
from convlens.runs.lock import how_it_ended
from convlens.runs.schema import DATABASE, parsed
from convlens.runs.snapshots import read_epochs_of, read_layers_of, read_snapshot
from convlens.runs.steps import read_curves, read_steps


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
        """Facts by name, as they were written: versions, seed, command, data, model, status ….

        A run that says ``"running"`` though the process that wrote it is gone has status
        ``"crashed"``; see `convlens.runs.lock`.
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
            return read_curves(record, points, first, last)

    @property
    def epochs(self) -> list[Epoch]:
        """Every finished epoch."""
        with self._reading() as record:
            return read_epochs(record)

    @property
    def layers(self) -> list[LayerInfo]:
        """The layers whose activations were watched, in order of their index."""
        return self.series("activation")

    def series(self, quantity: str) -> list[LayerInfo]:
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
            quantity: of another series than the activations: its position among those.

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        with self._reading() as record:
            info = _pick(read_layers(record, quantity), index)
            return self._histories(record, [info])[0]

    def update_history(self, index: int) -> UpdateHistory:
        """What the optimizer did to the parameter at this position (negative from the end).

        Raises:
            LayerNotFoundError: if there is no such parameter.
        """
        with self._reading() as record:
            update = _pick(read_layers(record, "update"), index)
            parameter = replace(update, quantity="parameter")
            return aligned(*self._histories(record, [update, parameter]))

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
            return read_snapshot(record, kind, layer, epoch)

    def snapshot_epochs(self, kind: type[Snapshot], layer: str = "") -> list[int]:
        """The epochs, ascending, of which there is a snapshot of a kind and layer."""
        with self._reading() as record:
            return read_epochs_of(record, kind, layer)

    def snapshot_layers(self, kind: type[Snapshot]) -> list[str]:
        """The layers of which there is a snapshot of a kind, in the model's order."""
        with self._reading() as record:
            return read_layers_of(record, kind)

    def record(self) -> RunRecord:
        """The whole run as plain numbers, all of one moment."""
        with self._reading() as record:
            histories = self._histories(record, read_layers(record, "activation"))
            return RunRecord(read_meta(record), read_steps(record), read_epochs(record), histories)

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """One read transaction, for whoever asks for several things of one moment."""
        with self._reading() as record:
            yield record

    def _histories(self, record: Transaction, series: Sequence[LayerInfo]) -> list[LayerHistory]:
        meta = read_meta(record)
        complete = meta.get("status") not in GROWING
        others = rank_files(self.path, meta.get("ranks"), complete=complete)
        counted = FORWARD if meta.get("counted") == FORWARD else OPTIMIZER_STEP
        histories = read_histories(record, series, others)
        return [replace(history, counted=counted) for history in histories]

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


GROWING = ("running", "crashed")
"""How a run has not ended: there may be less of it than was to be."""


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


META = dict.fromkeys(("created", "status", "error", "lost"), (str,)) | {"ranks": (int,)}
"""The types of facts that reading relies on; all others may be any JSON."""


def read_epochs(record: Transaction) -> list[Epoch]:
    """Every finished epoch."""
    return [epoch_of(number, text) for (number,), (text,) in sorted(record.rows("epochs"))]


def epoch_of(number: int, text: str) -> Epoch:
    """The epoch in a row.

    Raises:
        ValueError: if it is not one.
    """
    facts = parsed(text)
    if not isinstance(facts, dict) or not isinstance(facts.get("metrics"), dict):
        raise ValueError(f"epoch {number} is {text[:80]!r}")
    numbers = [*facts["metrics"].values(), facts["train_loss"], facts["wall_s"]]
    numbers += [facts["valid_loss"]] if facts["valid_loss"] is not None else []
    whole = [facts["first_step"], facts["last_step"]]
    fits = all(type(n) in (int, float) for n in numbers) and all(type(n) is int for n in whole)
    if not fits or facts["epoch"] != number:
        raise ValueError(f"epoch {number} is {text[:80]!r}")
    return Epoch(**facts)


def _pick(layers: Sequence[LayerInfo], index: int) -> LayerInfo:
    return layers[find_layer(index, [info.name for info in layers])]


def _pictures(record: Transaction, name: str | None) -> list[Picture]:
    found: list[Picture] = []
    for title, epoch in sorted(record.keys("pictures"), key=lambda key: (key[1], key[0])):
        values = record.values("pictures", (title, epoch)) if name in (None, title) else None
        if values is not None:
            captions, images = parsed(values[0]), unpack(values[1])["images"]
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

"""Reading a run: finished, crashed or still being written, without ever changing it.

Every property reads the file anew, so a growing run shows what is there now. No connection stays
open between reads: a reader never keeps the writer from closing its run.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convlens.errors import RunError, find_layer
from convlens.packets import unpack
from convlens.plots import LayerHistories, TrainingCurves
from convlens.records import (
    Epoch,
    LayerHistory,
    LayerInfo,
    Picture,
    RunRecord,
    StepSeries,
    join_steps,
)
from convlens.runs.schema import APPLICATION_ID, DATABASE, SCHEMA_VERSION
from convlens.sketch import (
    BucketLayout,
    Columns,
    coarsen,
    concatenate,
    decode,
    empty_columns,
)


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


class Run:
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
            raise _cannot_open(self._file, error.strerror) from error
        return datetime.fromtimestamp(newest, UTC)

    @property
    def meta(self) -> dict[str, Any]:
        """Facts by name, as they were written: versions, seed, command, data, model, status …."""
        with self._reading() as database:
            return _meta(database)

    @property
    def steps(self) -> StepSeries:
        """Every recorded step."""
        with self._reading() as database:
            return _steps(database)

    @property
    def epochs(self) -> list[Epoch]:
        """Every finished epoch."""
        with self._reading() as database:
            return _epochs(database)

    @property
    def layers(self) -> list[LayerInfo]:
        """The watched layers, in order of their index."""
        with self._reading() as database:
            return _layers(database)

    @property
    def recorder(self) -> TrainingCurves:
        """The curves of the training, as ``learn.recorder`` has them."""
        return _RunCurves(self)

    @property
    def activation_stats(self) -> LayerHistories:
        """The watched layers, as ``learn.activation_stats`` has them."""
        return _RunLayers(self)

    def history(self, index: int) -> LayerHistory:
        """The history of the layer at this position among `layers` (negative from the end).

        Raises:
            LayerNotFoundError: if there is no such layer.
        """
        with self._reading() as database:
            layers = _layers(database)
            position = find_layer(index, [info.name for info in layers])
            return _history(database, layers[position])

    def pictures(self, name: str | None = None) -> list[Picture]:
        """The images kept, by epoch; all of them or those of one name (``"batch"``, …)."""
        with self._reading() as database:
            return _pictures(database, name)

    def record(self) -> RunRecord:
        """The whole run as plain numbers, all of one moment."""
        with self._reading() as database:
            histories = [_history(database, info) for info in _layers(database)]
            return RunRecord(_meta(database), _steps(database), _epochs(database), histories)

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        """One read transaction; whatever is wrong with the file becomes a sentence."""
        if self._closed:
            raise RunError(f"The run {str(self.path)!r} was closed; open it again with open_run.")
        try:
            with closing(_connect(self._file)) as database:
                yield database
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
                raise _cannot_open(self._file, str(error)) from error
            raise RunError(
                f"{str(self._file)!r} is damaged or incomplete ({error}); restore it from a copy."
            ) from error


class _RunCurves(TrainingCurves):
    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def steps(self) -> StepSeries:
        return self._run.steps

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs


class _RunLayers(LayerHistories):
    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def layers(self) -> Sequence[LayerInfo]:
        return self._run.layers

    def history(self, index: int) -> LayerHistory:
        return self._run.history(index)

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._run.epochs


def _connect(file: Path) -> sqlite3.Connection:
    """A read-only connection inside a transaction, to a file that was found to be a run."""
    uri = file.absolute().as_uri() + "?mode=ro"
    log = file.with_name(file.name + "-wal")
    try:
        database = _begin(uri, file)
    except sqlite3.OperationalError as error:
        if log.exists() and log.stat().st_size:
            raise RunError(
                f"{str(file)!r} was not closed, and its log {log.name!r} cannot be read in this "
                f"place ({error}); copy the whole folder to one that you may write to."
            ) from error
        # Left in write-ahead mode without a log, in a read-only folder: nobody can be writing.
        database = _begin(uri + "&immutable=1", file)
    return database


def _begin(uri: str, file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        database.execute("BEGIN")
        (mark,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        _check_mark(file, mark, version)
    except BaseException:
        database.close()
        raise
    return database


def _check_mark(file: Path, mark: int, version: int) -> None:
    if mark != APPLICATION_ID:
        raise RunError(
            f"{str(file)!r} is a database, but not of a run (application id {mark}, expected "
            f"{APPLICATION_ID}); give the folder of a run that convlens wrote."
        )
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{str(file)!r} was written by a newer convlens (schema {version}, this one reads up "
            f"to {SCHEMA_VERSION}); upgrade with: pip install --upgrade convlens."
        )


def _meta(database: sqlite3.Connection) -> dict[str, Any]:
    return {
        key: json.loads(value)
        for key, value in database.execute("SELECT key, value FROM meta ORDER BY key")
    }


def _steps(database: sqlite3.Connection) -> StepSeries:
    rows = database.execute("SELECT payload FROM steps ORDER BY id")
    return join_steps([_series(unpack(payload)) for (payload,) in rows])


def _series(arrays: dict[str, Any]) -> StepSeries:
    prefix = "hyper/"
    hypers = {
        name.removeprefix(prefix): values
        for name, values in arrays.items()
        if name.startswith(prefix)
    }
    return StepSeries(arrays["step"], arrays["epoch"], arrays["loss"], arrays["wall_s"], hypers)


def _epochs(database: sqlite3.Connection) -> list[Epoch]:
    rows = database.execute("SELECT value FROM epochs ORDER BY epoch")
    return [Epoch(**json.loads(value)) for (value,) in rows]


def _layers(database: sqlite3.Connection) -> list[LayerInfo]:
    rows = database.execute("SELECT layer, name, kind, feeds_relu FROM layers ORDER BY layer")
    return [LayerInfo(index, name, kind, bool(relu)) for index, name, kind, relu in rows]


def _history(database: sqlite3.Connection, info: LayerInfo) -> LayerHistory:
    layout_text, eps = database.execute("SELECT layout, eps FROM watch").fetchone()
    layout = BucketLayout(**json.loads(layout_text))
    return LayerHistory(info, _columns(database, info.index, layout), layout, eps)


def _columns(database: sqlite3.Connection, layer: int, layout: BucketLayout) -> Columns:
    """All columns of a layer, at the one level of the run, so that layers agree in time."""
    (level,) = database.execute("SELECT max(level) FROM columns").fetchone()
    rows = database.execute("SELECT payload FROM columns WHERE layer = ? ORDER BY id", (layer,))
    to_level = partial(coarsen, level=level or 0)
    # Chunk by chunk, so that a long run never lies in memory at full width.
    parts = [to_level(_chunk(payload, layout)) for (payload,) in rows]
    return to_level(concatenate(parts)) if parts else empty_columns(layout.size, 0)


def _chunk(payload: bytes, layout: BucketLayout) -> Columns:
    columns = decode(payload)
    if columns.counts.shape[1] != layout.size:
        raise ValueError(f"{columns.counts.shape[1]} buckets where {layout.size} are expected")
    return columns


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


def _cannot_open(file: Path, reason: str | None) -> RunError:
    return RunError(
        f"{str(file)!r} cannot be opened ({reason}); check that it is still there and that you may "
        "read it and its folder."
    )


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

"""Tables of image files and labels: CSV files, and lists in memory."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convlens.core.argument_checks import check_path
from convlens.core.wording import closest, plural
from convlens.data.items import Items, Skipped
from convlens.data.listing import Listing, closest_path, is_image_name, is_junk, some
from convlens.data.splitting import Groups, check_keys
from convlens.data.targets import Place, plain, read_targets
from convlens.errors import ArgumentError, DataError

DELIMITERS = (",", ";", "\t")

IMAGE_COLUMNS = frozenset(
    ["file", "file_name", "filename", "file_path", "filepath", "path", "image", "image_file",
     "image_name", "image_path", "img", "img_path", "name"]
)  # fmt: skip
LABEL_COLUMNS = frozenset(
    ["class", "class_name", "label", "labels", "category", "target", "tags", "y"]
)


@dataclass(frozen=True)
class Table:
    """A CSV file: its columns' names, its rows and the line in the file that each ends on."""

    file: str
    columns: tuple[str, ...]
    rows: tuple[list[str], ...]
    lines: tuple[int, ...]


def read_listing(
    file: str | os.PathLike[str],
    image: str | None,
    label: str | None,
    folder: str | os.PathLike[str] | None,
    separator: str | None = None,
    kind: str | None = None,
    groups: Groups = None,
) -> Listing:
    """The images that a CSV file names, with their labels.

    Args:
        file: the CSV file, with a header.
        image: the column of file names; None for the one that must be it.
        label: the column of labels; None for the one that must be it.
        folder: where the files lie; None for the folder of the CSV file.
        separator: of several labels in one cell; None for one label of each image.
        kind: "classes" or "numbers" for labels that are numbers.
        groups: the column of the images' groups, or a list of them, one for each row.

    Raises:
        ArgumentError: if there is no such file or column, files are not there, labels are missing,
            or a file has two different labels.
        DataError: if the file is not a CSV file in UTF-8.
    """
    table = read_table(file)
    root = Path(table.file).parent if folder is None else check_path("folder", folder)
    if not os.path.isdir(root):  # noqa: PTH112
        raise ArgumentError(f"folder={str(root)!r} is not a folder.{closest_path(root)}")
    names, labels = _two_columns(table, root, image, label)

    def place(i: int) -> str:
        return f"row {table.lines[i]}"

    values = [row[labels] for row in table.rows]
    cells = [row[names].strip() for row in table.rows]
    unnamed = [place(i) for i, cell in enumerate(cells) if not cell]
    if unnamed:
        raise ArgumentError(f"{table.file!r} names no file in {some(unnamed)}; complete the table.")
    files = _files(cells, root, place, table.file)
    keep, notes = _without_repeats(files, values, place)
    if isinstance(groups, str):
        column = _column(table, "groups", groups)
        groups = [row[column].strip() for row in table.rows]
    skipped = tuple(Skipped(one, f"no label in {Path(table.file).name}") for one in _others(files))
    listing = _listed(files, values, keep, place, kind, separator, groups)
    notes += listing.notes
    return replace(listing, skipped=skipped, notes=tuple(notes), source=table.file)


def _listed(
    files: Sequence[str],
    labels: Sequence[Any],
    keep: Sequence[int],
    place: Place,
    kind: str | None,
    separator: str | None,
    groups: Groups,
) -> Listing:
    """Files with their labels, at the positions to keep."""
    labels = [labels[i] for i in keep]
    targets = read_targets(labels, lambda i: place(keep[i]), kind, separator)
    kept = tuple(files[i] for i in keep)
    items = Items(kept, targets.values, targets.classes, targets.kind)
    keys = None
    if groups is not None and not callable(groups):
        given = _given_groups(groups, len(files))
        check_keys(given, place)
        keys = tuple(given[i] for i in keep)
    return Listing(items, None, (), targets.notes, "paths", keys)


def _given_groups(groups: object, n: int) -> list[Any]:
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise ArgumentError(
            "groups must be a function of a path that gives its group, or a list with the group "
            f"of each image, got {groups!r}."
        )
    given = [plain(one) for one in groups]
    if len(given) != n:
        raise ArgumentError(
            f"groups has {plural(len(given), 'group')} for {plural(n, 'image')}; give one for "
            "each, or a function of a path."
        )
    return given


def given_listing(
    paths: Any,  # noqa: ANN401
    labels: Any,  # noqa: ANN401
    kind: str | None = None,
    groups: Groups = None,
) -> Listing:
    """The listing of files and labels in memory.

    Raises:
        ArgumentError: if they are not as many, files are not there, or a file has two labels.
    """
    if isinstance(paths, str | os.PathLike) or isinstance(labels, str):
        raise ArgumentError(
            "paths and labels must be lists, one label for each path, got one text."
        )
    try:
        given, values = [os.fspath(path) for path in paths], list(labels)
    except TypeError as error:
        raise ArgumentError(
            f"paths must be a list of paths, labels one of labels: {error}."
        ) from error
    if len(given) != len(values) or not given:
        raise ArgumentError(
            f"paths has {plural(len(given), 'file')} and labels {len(values):,}; give one label "
            "for each path, and at least one."
        )

    def place(i: int) -> str:
        return f"labels[{i}]"

    files = _files(given, Path(), lambda i: f"paths[{i}]", "paths")
    keep, notes = _without_repeats(files, values, place)
    listing = _listed(files, values, keep, place, kind, None, groups)
    return replace(listing, notes=(*notes, *listing.notes))


def read_table(file: str | os.PathLike[str]) -> Table:
    """Read a CSV file with a header; commas, semicolons or tabs, in UTF-8.

    Raises:
        ArgumentError: if there is no such file.
        DataError: if it is not such a table.
    """
    path = check_path("file", file)
    if not os.path.isfile(path):  # noqa: PTH113
        what = "is a folder; read it with cl.from_folder" if os.path.isdir(path) else (  # noqa: PTH112
            "does not exist"
        )  # fmt: skip
        raise ArgumentError(f"file={str(path)!r} {what}.{closest_path(path)}")
    text = _decoded(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=lambda one: len(next(csv.reader([header], delimiter=one), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(row, reader.line_num) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r} is not a CSV file: line {reader.line_num}: {error}."
        ) from error
    if len(rows) < 2:
        raise DataError(f"{str(path)!r} has no rows below a header; give one for each image.")
    columns = tuple(cell.strip() for cell in rows[0][0])
    odd = [f"row {line}" for row, line in rows[1:] if len(row) != len(columns)]
    if odd:
        raise DataError(
            f"{str(path)!r} has {plural(len(columns), 'column')} in its header, but another number "
            f"in {some(odd)}; put cells that hold a {delimiter!r} in quotes."
        )
    body = rows[1:]
    return Table(str(path), columns, tuple(row for row, _ in body), tuple(line for _, line in body))


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{str(path)!r} is not UTF-8 text: line {line} has the byte 0x{raw[error.start]:02x}; "
            "save it as CSV UTF-8."
        ) from error


def _two_columns(table: Table, root: Path, image: str | None, label: str | None) -> tuple[int, int]:
    """The positions of the columns of files and of labels."""
    if any(is_image_name(cell) for cell in table.columns) and image is None:
        raise ArgumentError(
            f"{table.file!r} has no header: its first row names the file "
            f"{next(filter(is_image_name, table.columns))!r}; write names of the columns above it."
        )
    if image is not None:
        names = _column(table, "image", image)
    else:
        fits = [
            i for i in range(len(table.columns)) if all(is_image_name(row[i]) for row in table.rows)
        ]
        named = [i for i, name in enumerate(table.columns) if name.lower() in IMAGE_COLUMNS]
        found = fits if len(fits) == 1 else named
        names = _only(table, "image", found or _columns_of_files(table, root), root)
    if label is not None:
        labels = _column(table, "label", label)
    else:
        others = [i for i in range(len(table.columns)) if i != names]
        named = [i for i in others if table.columns[i].lower() in LABEL_COLUMNS]
        labels = _only(table, "label", others if len(others) == 1 else named)
    if names == labels:
        raise ArgumentError(f"image and label are the same column, {table.columns[names]!r}.")
    return names, labels


def _columns_of_files(table: Table, root: Path) -> list[int]:
    """The columns whose first cells name files, as ids without an ending do."""
    return [
        i
        for i in range(len(table.columns))
        if table.rows and all(_spellings(_joined(root, row[i])) for row in table.rows[:10])
    ]


def _column(table: Table, argument: str, name: object) -> int:
    if not isinstance(name, str):
        raise ArgumentError(
            f"{argument} must be the name of one column, got {name!r}; several columns of labels "
            "are not supported: join them in one, with a separator."
        )
    found = [i for i, column in enumerate(table.columns) if column == name.strip()]
    if len(found) == 1:
        return found[0]
    what = "more than one column" if found else "no column"
    raise ArgumentError(
        f"{argument}={name!r}, but {table.file!r} has {what} of that name; its columns are "
        f"{some(list(map(repr, table.columns)), 20)}.{closest(name, table.columns)}"
    )


def _only(table: Table, argument: str, found: Sequence[int], root: Path | None = None) -> int:
    if len(found) == 1:
        return found[0]
    none = f" None names files in {str(root)!r}." if root is not None and not found else ""
    what = {"image": "the file names", "label": "the labels"}[argument]
    raise ArgumentError(
        f"It is not clear which column of {table.file!r} has {what}; say {argument}='…', one of "
        f"{some(list(map(repr, table.columns)), 20)}.{none}"
    )


def _files(names: Sequence[str], root: Path, place: Place, source: str) -> list[str]:
    """The paths of named files; names may lack their ending, as in many competitions' tables."""
    files: list[str] = []
    missing: list[int] = []
    for i, name in enumerate(names):
        path = _joined(root, name)
        found = _spellings(path)
        if len(found) > 1:
            raise ArgumentError(
                f"{source} names {name!r} ({place(i)}), which may be each of "
                f"{some([repr(os.path.basename(one)) for one in found])}; write its ending."  # noqa: PTH119
            )
        if not found:
            missing.append(i)
        files.append(found[0] if found else path)
    if missing:
        first = [f"{names[i]!r} ({place(i)})" for i in missing]
        where = "" if source == "paths" else f" in {str(root)!r}"
        one = len(missing) == 1
        raise ArgumentError(
            f"{source} names {plural(len(missing), 'file')} that {'is' if one else 'are'} not "
            f"there{where}: {some(first)}.{closest_path(Path(files[missing[0]]))}"
            + (
                " Give the folder of the files with folder=…."
                if len(missing) == len(names) and where
                else ""
            )
        )
    return files


def _joined(root: Path, name: str) -> str:
    return os.path.normpath(os.path.join(root, name))  # noqa: PTH118 - many of them


def _spellings(path: str) -> list[str]:
    """The file of this name, or else those that have it with an ending."""
    slashes = path.replace("\\", os.sep)  # as Windows writes paths
    for group in ((path,), (slashes,), [slashes + end for end in (".jpg", ".jpeg", ".png")]):
        if found := [one for one in group if os.path.isfile(one)]:  # noqa: PTH113
            return found
    return []


def _without_repeats(
    files: Sequence[str], labels: Sequence[Any], place: Place
) -> tuple[list[int], list[str]]:
    """The positions of all files, each once.

    Raises:
        ArgumentError: if a file comes with two different labels.
    """
    first: dict[str, int] = {}
    wrong: list[str] = []
    for i, file in enumerate(files):
        known = first.setdefault(file, i)
        if known != i and str(labels[known]).strip() != str(labels[i]).strip():
            wrong.append(f"{Path(file).name!r} in {place(known)} and {place(i)}")
    if wrong:
        raise ArgumentError(
            f"{plural(len(wrong), 'file')} with two different labels: {some(wrong)}; keep one. "
            "For several labels of an image, write them in one cell and give separator=…."
        )
    n_repeated = len(files) - len(first)
    notes = [f"{plural(n_repeated, 'row')} dropped: file and label of an earlier one again."]
    return list(first.values()), notes if n_repeated else []


def _others(files: Sequence[str]) -> list[str]:
    """Image files beside the named ones that are not named."""
    known = set(files)
    found: list[str] = []
    for folder in sorted({os.path.dirname(file) for file in files}):  # noqa: PTH120
        paths = [os.path.join(folder, name) for name in os.listdir(folder or ".")  # noqa: PTH118, PTH208
                 if is_image_name(name) and not is_junk(name)]  # fmt: skip
        found += [path for path in sorted(paths) if path not in known]
    return found

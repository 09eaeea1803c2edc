"""Labels as people write them → targets: classes, several labels of an image, or numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from convlens.core.wording import plural, type_name
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.data.listing import natural, some
from convlens.errors import ArgumentError

MANY_CLASSES = 100
"""With more, whole numbers may have been meant as numbers, which is said."""

Place = Callable[[int], str]


@dataclass(frozen=True)
class Targets:
    """Targets and what they mean; see `Items` for the shapes.

    Attributes:
        values: the targets.
        classes: the names of classes or labels, in natural order; empty for numbers.
        kind: "classes", "labels" or "numbers".
        notes: sentences to print.
    """

    values: Tensor
    classes: tuple[str, ...]
    kind: str
    notes: tuple[str, ...] = ()


def check_kind(kind: object) -> None:
    """Raises ArgumentError if it is neither None nor a kind that can be asked for."""
    if kind not in (None, CLASSES, NUMBERS):
        raise ArgumentError(
            f"kind must be None, {CLASSES!r} or {NUMBERS!r}, got {kind!r}; for several labels of "
            "an image give a separator, or lists."
        )


def read_targets(
    labels: Sequence[Any], place: Place, kind: str | None = None, separator: str | None = None
) -> Targets:
    """The targets of N images.

    Text is a class, unless a separator splits it into several labels; whole numbers are classes,
    other numbers are numbers; lists are several labels.

    Args:
        labels: N strings, numbers, or lists of strings.
        place: where the label of a position was written, for messages.
        kind: "classes" or "numbers" to choose for numbers, None for what they look like.
        separator: of several labels in one text.

    Raises:
        ArgumentError: if a label is missing, or they are not of one sort.
    """
    check_kind(kind)
    values = [one.strip() if isinstance(one, str) else plain(one) for one in labels]
    several = [isinstance(one, list | tuple | set | frozenset) for one in values]
    if separator is not None or any(several):
        if kind is not None:
            raise ArgumentError(f"kind={kind!r} is for one label of each image; leave it out.")
        return _labels(values, several, place, separator)
    _refuse("no label", [i for i, one in enumerate(values) if _is_missing(one)], place)
    parsed = [_number(one) for one in values]
    if kind == NUMBERS or (kind is None and _are_numbers(values, parsed)):
        return _numbers(values, parsed, place)
    return _classes(values, None not in parsed, place)


def plain(label: Any) -> Any:  # noqa: ANN401
    """A scalar of NumPy's or torch's as Python's."""
    item = getattr(label, "item", None)
    return item() if item is not None and getattr(label, "ndim", 0) == 0 else label


def _is_missing(label: object) -> bool:
    if isinstance(label, str):
        return label.lower() in ("", "nan")
    return label is None or (isinstance(label, float) and math.isnan(label))


def _refuse(what: str, wrong: Sequence[int], place: Place) -> None:
    if wrong:
        raise ArgumentError(
            f"{plural(len(wrong), 'image')} {'has' if len(wrong) == 1 else 'have'} {what}: "
            f"{some([place(i) for i in wrong])}; complete the labels, or leave these images out."
        )


def _number(label: object) -> float | None:
    if isinstance(label, bool) or not isinstance(label, str | numbers.Real):
        return None
    try:
        return float(label)
    except (ValueError, OverflowError):
        return None


def _is_whole(label: object) -> bool:
    if isinstance(label, str):
        return label.removeprefix("-").isdecimal()
    return isinstance(label, int)


def _are_numbers(values: Sequence[Any], parsed: Sequence[float | None]) -> bool:
    return None not in parsed and not all(map(_is_whole, values))


def _numbers(values: Sequence[Any], parsed: Sequence[float | None], place: Place) -> Targets:
    _refuse(
        "a label that is no finite number",
        [i for i, one in enumerate(parsed) if one is None or not math.isfinite(one)],
        lambda i: f"{values[i]!r} in {place(i)}",
    )
    return Targets(torch.tensor(parsed, dtype=torch.float32), (), NUMBERS)


def _classes(values: Sequence[Any], are_numbers: bool, place: Place) -> Targets:
    for i, one in enumerate(values):
        if not isinstance(one, str | int):
            raise ArgumentError(
                f"The label in {place(i)} is {one!r}, of type {type_name(one)}; give text or whole "
                "numbers for classes, floats for numbers, lists of text for several labels."
            )
    texts = [str(one) for one in values]
    by_name = sorted(set(texts), key=natural)  # -1 comes before 1, unlike in natural order
    classes = sorted(by_name, key=float) if are_numbers else by_name
    if len(classes) < 2:
        raise ArgumentError(
            f"All images have the label {some(classes)}; classification needs at least two classes."
        )
    index = {name: i for i, name in enumerate(classes)}
    notes = _alike(classes)
    if len(classes) > MANY_CLASSES and all(map(_is_whole, values)):
        notes += (
            f"The {len(classes):,} different whole numbers are taken for classes; give the kind "
            "'numbers' where they are numbers.",
        )
    return Targets(torch.tensor([index[one] for one in texts]), tuple(classes), CLASSES, notes)


def _labels(
    values: Sequence[Any], several: Sequence[bool], place: Place, separator: str | None
) -> Targets:
    if separator == "":
        raise ArgumentError("separator must be the text between two labels, such as ' ', got ''.")
    missing = [i for i, one in enumerate(values) if one != "" and _is_missing(one)]
    _refuse("no label", missing, place)
    split: list[set[str]] = []
    for i, (one, is_several) in enumerate(zip(values, several, strict=True)):
        if not is_several and (separator is None or not isinstance(one, str)):
            raise ArgumentError(
                f"The label in {place(i)} is {one!r}; where one image has a list of labels, each "
                "needs a list."
            )
        parts = one if is_several else cast("str", one).split(separator)
        split.append({part for label in parts if (part := str(plain(label)).strip())})
    classes = sorted(set[str]().union(*split), key=natural)
    if not classes:
        raise ArgumentError("No image has any label; give at least one.")
    index = {name: i for i, name in enumerate(classes)}
    targets = torch.zeros(len(split), len(classes))
    for row, found in enumerate(split):
        targets[row, [index[name] for name in found]] = 1.0
    n_none = sum(not found for found in split)
    none = (f"{plural(n_none, 'image')} with none of the labels.",) if n_none else ()
    return Targets(targets, tuple(classes), LABELS, _alike(classes) + none)


def _alike(classes: Sequence[str]) -> tuple[str, ...]:
    """A sentence on names that differ in case only, which is usually a typing error."""
    first: dict[str, str] = {}
    pairs = [
        f"{known!r} and {name!r}"
        for name in classes
        if (known := first.setdefault(name.casefold(), name)) != name
    ]
    return (f"Classes that differ in case only: {some(pairs, 3)}.",) if pairs else ()

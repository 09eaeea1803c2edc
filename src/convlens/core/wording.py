"""Small parts of sentences: counts with their nouns, names of types."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from functools import partial


def plural(count: int, word: str) -> str:
    """A count and its noun.

    >>> from convlens.core.wording import plural
    >>> plural(1, "epoch"), plural(1200, "step")
    ('1 epoch', '1,200 steps')
    """
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def type_name(value: object) -> str:
    """The name of a value's type in an error message, "None" for None."""
    return "None" if value is None else type(value).__name__


def function_name(function: object) -> str:
    """The name of a metric, a loss or an optimizer factory in records, tables and messages."""
    inner: object = function.func if isinstance(function, partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def n_bytes(count: int) -> str:
    """Bytes with three digits: 1.57 kB, 102 MB."""
    if count < 1000:
        return f"{count} B"
    size, unit = float(count), ""
    for unit in ("kB", "MB", "GB", "TB", "PB"):  # noqa: B007 — the unit that was reached
        size /= 1000
        if size < 999.5:
            break
    return f"{size:.{max(0, 3 - len(str(int(size))))}f} {unit}"


def is_share(metric: str) -> bool:
    """Whether a metric is shown as a percentage: an accuracy, or the share within the top k."""
    return metric.lower().endswith("accuracy") or re.fullmatch(r"top\d+", metric) is not None


def metric_value(metric: str, value: float) -> str:
    """A metric's value as text; a dash where there is none, as for a class without items.

    >>> from convlens.core.wording import metric_value
    >>> metric_value("accuracy", 0.98765), metric_value("f1", 0.5), metric_value("f1", math.nan)
    ('98.77%', '0.5000', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:.2%}" if is_share(metric) else f"{value:.4f}"


def without_classes(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics by name, those of each class replaced by their mean.

    >>> from convlens.core.wording import without_classes
    >>> without_classes({"accuracy": 0.5, "recall[cat]": 0.25, "recall[dog]": 0.75})
    {'accuracy': 0.5, 'recall': 0.5}
    """
    found: dict[str, list[float]] = {}
    for name, value in metrics.items():
        key, bracket, _ = name.partition("[")
        one = key if bracket and name.endswith("]") else name
        if one == name or one not in metrics:
            found.setdefault(one, []).append(value)
    known = {name: [v for v in values if not math.isnan(v)] for name, values in found.items()}
    return {name: sum(v) / len(v) if v else math.nan for name, v in known.items()}


def closest(name: str, known: Iterable[str]) -> str:
    """A hint with the closest known names, beginning with a space; empty if none is close.

    >>> from convlens.core.wording import closest
    >>> closest("cta", ["cat", "dog"])
    " Closest: 'cat'."
    """
    by_folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.6)
    return f" Closest: {', '.join(repr(by_folded[one]) for one in close)}." if close else ""

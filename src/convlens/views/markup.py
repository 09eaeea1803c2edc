"""Values as text for people, and text as HTML that cannot be anything else than text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from types import NoneType
from typing import Any

NONE = "–"
MAX_DEPTH = 3
MAX_LISTED = 24


def text(value: object) -> str:
    """Any value as HTML text, also fit for a quoted attribute."""
    return escape(str(value), quote=True)


def say(sentence: object) -> str:
    """A sentence as a paragraph."""
    return f'<p class="note">{text(sentence)}</p>'


def number(value: float) -> str:
    """A number with thousands separators; floats with four significant digits."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        return f"{value:.3g}".replace("-", "−")
    return (f"{value:,.0f}" if size >= 1e4 else f"{value:,.4g}").replace("-", "−")


def loss(value: float) -> str:
    """A loss with four decimals, so that they align below each other."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else number(value)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.2f} %" if math.isfinite(share) else number(share)


def metric(name: str, value: float) -> str:
    """A metric's value; an accuracy is a percentage."""
    return percent(value) if name.lower().endswith("accuracy") else number(value)


def duration(seconds: float) -> str:
    """Seconds, in the units that suit them."""
    if not math.isfinite(seconds) or seconds < 0:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        whole = int(seconds)
        return f"{whole // 60} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def label(key: str) -> str:
    """A key of the record as words, such as ``n_parameters`` and ``wall_s``."""
    words = key.removeprefix("n_").replace("_", " ")
    return words.removesuffix(" s") + " (s)" if words.endswith(" s") else words


def plain(value: object) -> str:
    """A plain JSON value in one line of text: shapes as 8 × 14 × 14, truth as yes and no."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list) and value and all(type(item) in (int, NoneType) for item in value):
        return " × ".join(NONE if item is None else str(item) for item in value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False) if value else NONE
    return str(value)


def rich(value: object, depth: int = 0) -> str:
    """Any JSON value as HTML: dictionaries as definition lists, long texts as they are."""
    if isinstance(value, dict) and value and depth < MAX_DEPTH:
        return definitions(value, depth + 1)
    if isinstance(value, list) and value and depth < MAX_DEPTH:
        return _listed(value, depth)
    if isinstance(value, str) and "\n" in value:
        return f"<pre>{text(value)}</pre>"
    return text(plain(value))


def definitions(values: Mapping[str, Any], depth: int = 0) -> str:
    """Names and values, one below the other."""
    rows = (f"<dt>{text(label(k))}</dt><dd>{rich(v, depth)}</dd>" for k, v in values.items())
    return f"<dl>{''.join(rows)}</dl>"


def _listed(values: Sequence[object], depth: int) -> str:
    if any(isinstance(value, dict | list) for value in values):
        items = [f"<li>{rich(value, depth + 1)}</li>" for value in values[:MAX_LISTED]]
        more = f"<li>{_more(values)}</li>" if len(values) > MAX_LISTED else ""
        return f"<ol>{''.join(items)}{more}</ol>"
    listed = ", ".join(text(plain(value)) for value in values[:MAX_LISTED])
    return listed + (f", {_more(values)}" if len(values) > MAX_LISTED else "")


def _more(values: Sequence[object]) -> str:
    return f"… and {len(values) - MAX_LISTED:,} more"

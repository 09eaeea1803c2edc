"""Values as text for people."""

from __future__ import annotations

import json
import math
from types import NoneType

from convlens.core.wording import is_share

NONE = "–"


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


def loss(value: float | None) -> str:
    """A loss with four decimals, so that they align below each other."""
    if value is None:
        return NONE
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else number(value)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.2f} %" if math.isfinite(share) else number(share)


def metric(name: str, value: float | None) -> str:
    """A metric's value; an accuracy is a percentage, a class without items has none."""
    if value is None or math.isnan(value):
        return NONE
    return percent(value) if is_share(name) else number(value)


def duration(seconds: float | None) -> str:
    """Seconds, in the units that suit them."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
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


def harmless(words: str) -> str:
    """Text of a run that Bokeh does not take for a formula, whose fonts it would fetch.

    An invisible space parts the characters that open one.
    """
    for sign, bracket in (("$", "$"), ("\\", "["), ("\\", "(")):
        words = words.replace(sign + bracket, f"{sign}\u200b{bracket}")
    return words


def short(name: str, length: int = 26) -> str:
    """A long name without its middle: both ends tell layers apart."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"

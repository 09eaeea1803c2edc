"""The controls of a run's screen that are made anew as it changes, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from convlens.core.histories import LayerInfo
from convlens.views.markup import text


def layer_head(info: LayerInfo, index: int, n_layers: int) -> str:
    """A layer's name, and the way to its neighbours."""
    return (
        f'<div class="controls"><h2>{text(info.name or info.kind)} <span class="soft">'
        f"{text(info.kind)}, layer {index + 1} of {n_layers}</span></h2>"
        + _button("previous-layer", "‹ previous", index == 0)
        + _button("next-layer", "next ›", index == n_layers - 1)
        + "</div>"
    )


def _button(do: str, label: str, off: bool) -> str:
    state = " disabled" if off else ""
    return f'<button type="button" data-do="{do}" data-key="{do}"{state}>{label}</button>'


def chooser(do: str, label: str, options: Sequence[str], chosen: str = "") -> str:
    """A list to choose from, where there is anything to choose."""
    if len(options) < 2:
        return ""
    inside = "".join(
        f'<option value="{text(one)}"{" selected" if one == chosen else ""}>{text(one)}</option>'
        for one in options
    )
    return f'<label>{label} <select data-do="{do}" data-key="{do}">{inside}</select></label>'


def no_layers() -> str:
    """What to do where there is nothing to see inside."""
    return (
        '<h2>No layer was watched</h2><p class="note">Train with the callback ActivationStats, or '
        "with cl.watch around a loop of your own, to see inside.</p>"
    )

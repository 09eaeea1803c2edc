"""In what two runs were set up differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convlens.views.markup import NONE, label, plain, text
from convlens.views.panels.elements import panel

TOLD = ("data", "model", "loss", "optimizer", "schedule", "n_epochs", "seed", "device", "torch")
"""The facts that are compared: how a run was set up, not how it went."""

MOST = 12
LONGEST = 80


def differences(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]) -> str:
    """A table of what two runs' settings differ in, or that they do not.

    Args:
        a: what one run knows of itself.
        b: what the other does.
        names: the runs'.
    """
    mine, its = _flat(a), _flat(b)
    keys = [key for key in dict.fromkeys([*mine, *its]) if mine.get(key) != its.get(key)]
    if not keys:
        return panel("differences", '<p class="note">Both were set up in the same way.</p>')
    heads = "".join(f'<th scope="col" class="words">{text(name)}</th>' for name in names)
    rows = "".join(_row(key, mine.get(key), its.get(key)) for key in keys[:MOST])
    more = f'<p class="note">And {len(keys) - MOST} more.</p>' if len(keys) > MOST else ""
    table = f'<table><thead><tr><th class="words">set up with</th>{heads}</tr></thead>'
    return panel(
        "differences", f'<div class="scroll">{table}<tbody>{rows}</tbody></table></div>', more
    )


def _flat(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values by their whole name, such as ``optimizer groups 1 lr``."""
    found: dict[str, Any] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name} {label(str(key))}", inner)
        elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
            for i, inner in enumerate(value):
                add(name if len(value) == 1 else f"{name} {i + 1}", inner)
        else:
            found[name] = value

    for key in TOLD:
        if key in meta:
            add(label(key), meta[key])
    return found


def _row(key: str, mine: object, its: object) -> str:
    cells = "".join(f'<td class="words">{text(_brief(value))}</td>' for value in (mine, its))
    return f'<tr><th scope="row" class="words">{text(key)}</th>{cells}</tr>'


def _brief(value: object) -> str:
    shown = NONE if value is None else plain(value)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"

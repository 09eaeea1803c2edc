"""The run in one line: name, how it stands, and its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convlens.web import formatting

if TYPE_CHECKING:
    from convlens.web.pages import Page


def header(page: Page) -> dict[str, Any]:
    """Status and the numbers of the newest epoch."""
    run = page.run
    newest = run.epochs[-1] if run.epochs else None
    shown = [(n, formatting.metric(n, v)) for n, v in (newest.metrics if newest else {}).items()]
    if newest is not None and newest.valid_loss is not None:
        shown.append(("validation loss", formatting.loss(newest.valid_loss)))
    shown.append(("epochs", str(len(run.epochs))))
    shown.append(("steps", formatting.number(run.span[1] + 1)))
    return {"numbers": shown}

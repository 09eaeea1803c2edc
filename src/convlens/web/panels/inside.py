"""Everything of what a layer makes of images, in one part: for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.web.pages import Page


def inside(page: Page) -> dict[str, Any]:
    """Its parts are asked for by the template."""
    del page
    return {}

"""To be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.web.pages import Page


def images(page: Page) -> dict[str, Any]:
    """To be written."""
    del page
    return {}

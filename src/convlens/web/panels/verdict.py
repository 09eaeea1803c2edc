"""What the doctor found, in one line each, worst first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.web.pages import Page


def verdict(page: Page) -> dict[str, Any]:
    """The findings, or None while they are worked out."""
    return {"findings": page.run.findings}

"""From a run and a view to HTML: the parts of a page, which the report has too."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from convlens.errors import ConvlensError
from convlens.web import formatting
from convlens.web.figures.registry import FIGURES
from convlens.web.figures.style import DARK, embed
from convlens.web.panels.registry import PANELS
from convlens.web.run_data import RunData
from convlens.web.static import version
from convlens.web.view import View


class Page:
    """What the templates of a run's page are given; `Report` gives them the same names.

    Args:
        run: the run.
        view: what of it is looked at.

    Attributes:
        live: whether links and controls lead anywhere.
    """

    live = True

    def __init__(self, run: RunData, view: View) -> None:
        self.run = run
        known = view.layer in run.names
        self.view = view if known else view.but(layer=run.first_layer)

    def url(self, **changes: Any) -> str:  # noqa: ANN401 — fields of View
        """The address of this page with some fields of the view changed."""
        return self._url(f"/run/{self.run.key}", self.view.but(**changes))

    def layer_url(self, layer: str) -> str:
        """The address that shows a layer."""
        return self.url(layer=layer, maps="", channel=None, row=None, col=None) + "#layer"

    def at(self, **changes: Any) -> Page:  # noqa: ANN401 — fields of View
        """The same page with some fields of the view changed."""
        return type(self)(self.run, self.view.but(**changes))

    def figure(self, name: str, height: int, words: str, **changes: Any) -> Markup:  # noqa: ANN401
        """The place of a figure: as high as the figure, so that nothing jumps.

        Args:
            name: one of `FIGURES`.
            height: in pixels.
            words: what it shows, for screen readers.
            changes: of the view.
        """
        source = f"/figure/{name}?run={self.run.key}&{self.view.but(**changes).query}"
        return figure_place(f"figure-{name}", height, words, src=source)

    def panel(self, name: str, **changes: Any) -> Markup:  # noqa: ANN401 — fields of View
        """A part of the page; whatever a record holds, one part that fails leaves the others."""
        page = self.at(**changes) if changes else self
        try:
            return Markup(
                render(
                    f"panels/{name}.html",
                    page=page,
                    run=page.run,
                    view=page.view,
                    **PANELS[name](page),
                )
            )
        except Exception as error:
            return Markup('<p class="note">{}</p>').format(cannot_show(error))

    @staticmethod
    def _url(path: str, view: View) -> str:
        return f"{path}?{view.query}" if view.query else path


def figure_place(key: str, height: int, words: str, **data: str) -> Markup:
    """The element that ``site.js`` draws a figure in; ``data`` says where its JSON is."""
    kept = Markup(" ").join(Markup('data-{}="{}"').format(*pair) for pair in data.items())
    return Markup(
        '<div class="figure" id="{}" {} style="min-height:{}px" role="img" aria-label="{}"></div>'
    ).format(key, kept, height, words)


def draw(page: Page, name: str) -> str:
    """A figure of a run as JSON."""
    return embed(FIGURES[name](page))


def render(template: str, **context: Any) -> str:  # noqa: ANN401
    """A template as HTML."""
    return environment().get_template(template).render(dark=DARK, version=version(), **context)


def cannot_show(error: Exception) -> str:
    """A sentence for what a record holds and nobody can show."""
    if isinstance(error, ConvlensError):
        return str(error)
    return (
        "The record of this run holds values that cannot be shown here "
        f"({type(error).__name__}: {error})."
    )


@cache
def environment() -> Environment:
    """Jinja's, with the project's templates; everything is escaped."""
    made = Environment(
        loader=PackageLoader("convlens.web"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    names = ("number", "loss", "percent", "metric", "duration", "label", "plain", "short")
    made.filters.update({name: getattr(formatting, name) for name in names})
    return made

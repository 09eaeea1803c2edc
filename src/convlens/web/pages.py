"""From a run and a view to HTML: the parts of a page, which the report has too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from convlens.errors import ConvlensError
from convlens.web import formatting
from convlens.web.distances import Comparison, names_of
from convlens.web.figures.registry import COMPARED, FIGURES
from convlens.web.figures.style import DARK, embed
from convlens.web.panels.registry import COMPARED_PANELS, PANELS
from convlens.web.run_data import RunData
from convlens.web.static import version
from convlens.web.view import View

_OF_PICTURES = dict.fromkeys(
    ("epoch", "channel", "row", "col", "pixel_row", "pixel_col", "true", "predicted")
) | {"maps": "", "scale": "", "probe": 0}
"""Figures do not depend on these, but the layer's on the epoch: another unit draws none anew."""


class Page:
    """What the templates of a run's page are given; `Report` gives them the same names.

    Args:
        run: the run.
        view: what of it is looked at.

    Attributes:
        live: whether links and controls lead anywhere.
    """

    live = True
    panels: ClassVar[Mapping[str, Callable[..., Mapping[str, Any]]]] = PANELS

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
        view = self.view.but(**{**_OF_PICTURES, **changes})
        source = f"/figure/{name}?run={self.run.key}&{view.query}"
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
                    **self.panels[name](page),
                )
            )
        except Exception as error:
            return Markup('<p class="note">{}</p>').format(cannot_show(error))

    @staticmethod
    def _url(path: str, view: View) -> str:
        return f"{path}?{view.query}" if view.query else path


class ComparePage(Page):
    """What the templates of a comparison are given.

    Args:
        runs: those that can be read, at least one.
        view: what of them is looked at.
        comparison: the distances of two runs, None while they are worked out.
        problems: a sentence for each run that cannot be read, by its key.

    Attributes:
        pages: a page of each run.
        names: what each run is called; see `names_of`.
    """

    panels: ClassVar[Mapping[str, Callable[..., Mapping[str, Any]]]] = COMPARED_PANELS

    def __init__(
        self,
        runs: Sequence[RunData],
        view: View,
        comparison: Comparison | None = None,
        problems: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(runs[0], view)
        self.view, self.comparison, self.problems = view, comparison, problems or {}
        self.pages = [Page(run, view) for run in runs]
        self.names = names_of([run.run for run in runs])

    @cached_property
    def layers(self) -> list[str]:
        """The watched layers that all of the runs have, by name."""
        return [name for name in self.run.names if all(name in p.run.names for p in self.pages)]

    @property
    def layer(self) -> str:
        """The chosen one of them, empty for none."""
        known = self.view.layer in self.layers
        return self.view.layer if known else next(iter(self.layers), "")

    def url(self, **changes: Any) -> str:  # noqa: ANN401 — fields of View
        """The address of this page with some fields of the view changed."""
        return f"/compare?{self._query(**changes)}"

    def figure(self, name: str, height: int, words: str, **changes: Any) -> Markup:  # noqa: ANN401
        """The place of a figure of `COMPARED`; see `Page.figure`."""
        source = f"/figure/{name}?{self._query(**changes)}"
        return figure_place(f"figure-{name}", height, words, src=source)

    def _query(self, **changes: Any) -> str:  # noqa: ANN401 — fields of View
        keys = [*(page.run.key for page in self.pages), *self.problems]
        given = self.view.but(**changes).query
        return "&".join(
            [*(f"run={quote(key, safe='')}" for key in keys), *([given] if given else [])]
        )


def figure_place(key: str, height: int, words: str, **data: str) -> Markup:
    """The element that ``site.js`` draws a figure in; ``data`` says where its JSON is."""
    kept = Markup(" ").join(Markup('data-{}="{}"').format(*pair) for pair in data.items())
    return Markup(
        '<div class="figure" id="{}" {} style="min-height:{}px" role="img" aria-label="{}"></div>'
    ).format(key, kept, height, words)


def draw(page: Page, name: str) -> str:
    """A figure of a run, or of several, as JSON."""
    return embed(COMPARED[name](page) if isinstance(page, ComparePage) else FIGURES[name](page))


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

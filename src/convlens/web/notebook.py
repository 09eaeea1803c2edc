"""`show`: runs in the cell of a notebook, inline or as the whole page from the local server."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from convlens.runs import list_runs, open_run
from convlens.runs.notebook import run_html, runs_html
from convlens.web.address import Address, make_address
from convlens.web.server import serve
from convlens.web.store import key_of


def show(place: Path, *, iframe: bool, port: int, height: int) -> None:
    """Show a run, or a folder of runs; outside a notebook, print where the page is.

    Args:
        place: the directory of a run, or a folder that keeps runs.
        iframe: whether the whole page is shown.
        port: of the page's server, 0 for a free one.
        height: of the frame in pixels.

    Raises:
        RunError: if there is nothing to show.
        ArgumentError: if the port cannot be served on.
    """
    is_run = (place / "run.db").is_file()
    if not place.is_dir():
        open_run(place)  # which says what is wrong
    # A notebook's kernel has loaded IPython; importing it here would slow down every script.
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        url = served(place.resolve(), port).url
        print(f"The page is at {url} until this process ends.")  # noqa: T201
        return
    from IPython.display import HTML, IFrame, display  # pyright: ignore[reportMissingImports]

    if iframe:
        address = served(place.resolve(), port)
        page = f"run/{key_of(place)}" if is_run else ""
        source = f"{address.url}{page}?frame={address.frame_token}"
        display(IFrame(source, width="100%", height=height))
    else:
        display(HTML(run_html(open_run(place)) if is_run else runs_html(list_runs(place))))


@cache
def served(place: Path, port: int) -> Address:
    """Where the page of a folder is served, by a thread that ends with the process.

    Raises:
        ArgumentError: if the port cannot be served on.
    """
    address = replace(make_address(port=port), frame_token=secrets.token_urlsafe(24))
    ready: SimpleQueue[Address | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            serve([place], address, ready.put)
        except BaseException as error:
            ready.put(error)

    Thread(target=work, name="convlens view", daemon=True).start()
    found = ready.get()
    if isinstance(found, BaseException):
        raise found
    return found

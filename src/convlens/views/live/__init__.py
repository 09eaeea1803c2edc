"""The live page: runs in the browser, also while they grow. It never writes, and needs no torch.

`serve` answers on one address; a `server.LiveServer` stands behind `guard.Guard`. Each open page
has a `session.Session`, which shows one of the screens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from convlens.views.live.address import Address, make_address

__all__ = ["Address", "make_address", "serve"]


def serve(
    places: Sequence[Path], address: Address, ready: Callable[[Address], None] | None = None
) -> None:
    """Show runs in the browser until interrupted.

    Args:
        places: folders that keep runs, and directories of runs. A folder that does not exist yet
            is looked at again and again: a run that begins there is shown.
        address: where to serve, from `make_address`.
        ready: called once requests are answered, with the address: its port is the real one.

    Raises:
        RunError: if a place is no folder.
        ArgumentError: if the address cannot be served on.
    """
    from bokeh.settings import settings

    from convlens.views.live.server import LiveServer
    from convlens.views.live.store import RunStore

    store = RunStore(places)
    server = LiveServer(store, address)
    try:
        # Of arrays in messages: counts hardly shrink, and most browsers are on this machine.
        settings.compression_level = 0
        if ready is not None:
            ready(server.address)
        server.run()
    finally:
        del settings.compression_level
        server.close()
        store.close()

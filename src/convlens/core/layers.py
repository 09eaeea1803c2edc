"""Finding a layer by its index, name or kind."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Integral

from convlens.errors import LayerNotFoundError


def find_layer(layer: int | str, names: Sequence[str], kinds: Sequence[str] = ()) -> int:
    """Position of ``layer`` in ``names``: an index (negative from the end), a name or a kind.

    A kind is ``"first conv"``, ``"last norm"``: the first or last layer whose class name contains
    the word, in any case.

    >>> find_layer("last conv", ["0", "1", "2"], ["Conv2d", "Conv2d", "Linear"])
    1

    Args:
        layer: what to find.
        names: the layers' names.
        kinds: their class names; empty if layers are not to be found by kind.

    Raises:
        LayerNotFoundError: with the closest names, the kinds, or the range of indices.
    """
    if isinstance(layer, str):
        if layer in names:
            return list(names).index(layer)
        end, _, kind = layer.partition(" ")
        if kinds and kind and end in ("first", "last"):
            return _find_kind(layer, end, kind, kinds)
        close = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or list(names)[:3]
        known = ", ".join(repr(name) for name in close) or "none, there are no layers"
        raise LayerNotFoundError(
            f"layer={layer!r} is not among the {len(names)} layers; closest: {known}."
        )
    if not isinstance(layer, Integral):
        raise LayerNotFoundError(
            f"layer={layer!r} is neither a module's name nor an index; give one of them."
        )
    layer = int(layer)
    if -len(names) <= layer < len(names):
        return layer % len(names)
    raise LayerNotFoundError(
        f"layer={layer} is out of range: there are {len(names)} layers; "
        f"use an index from {-len(names)} to {len(names) - 1} or a module's name."
        if names
        else f"layer={layer} was asked for, but no layers are recorded; train with watching on."
    )


def _find_kind(layer: str, end: str, kind: str, kinds: Sequence[str]) -> int:
    found = [i for i, known in enumerate(kinds) if kind.lower() in known.lower()]
    if not found:
        known = ", ".join(sorted({known for known in kinds if known}))
        raise LayerNotFoundError(
            f"layer={layer!r}: no layer's class name contains {kind!r}; there are: {known}."
        )
    return found[0 if end == "first" else -1]

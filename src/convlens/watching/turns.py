"""`Turn`: which forwards of a model are recorded."""

from __future__ import annotations

from threading import get_ident


class Turn:
    """Of several threads that run one model, the one whose forward is recorded.

    Forwards of the others are left out meanwhile. There is no lock, which a fork might leave taken:
    ``dict.setdefault`` does it in one operation.

    Attributes:
        inside: the thread that is in a forward whose layers are sketched, None if there is none.
        n_taken: how many forwards had the turn.
        n_passed: how many were of a mode that is not recorded.
    """

    def __init__(self) -> None:
        self.inside: int | None = None
        self.n_taken = self.n_passed = 0
        self._thread: dict[None, int] = {}
        self._refused: set[int] = set()

    def take(self) -> bool:
        """Begin a forward in this thread, unless another thread is in one."""
        me = get_ident()
        if self._thread.setdefault(None, me) != me:
            self._refused.add(me)
            return False
        self.n_taken += 1
        return True

    def leave(self) -> bool:
        """End a forward in this thread; whether it had the turn."""
        me = get_ident()
        self._refused.discard(me)
        if self._thread.get(None) != me:
            return False
        self.inside = None
        self._thread.pop(None, None)
        return True

    def clear(self) -> None:
        """No thread is in a forward."""
        self.inside = None
        self._thread.clear()
        self._refused.clear()

    @property
    def elsewhere(self) -> bool:
        """Whether another thread is in a forward."""
        me = get_ident()
        return self._thread.get(None, me) != me

    @property
    def refused(self) -> bool:
        """Whether this thread is in a forward that is left out."""
        return get_ident() in self._refused

"""`ForwardLock`: of several threads that run one model, one forward at a time is recorded."""

from __future__ import annotations

from threading import get_ident


class ForwardLock:
    """A lock that is never waited for; forwards of other threads meanwhile are left out.

    It is a ``dict.setdefault``, which is one operation, and no `threading.Lock`, which a fork may
    leave locked.

    Attributes:
        inside: the thread that is in a forward whose layers are sketched, None if there is none.
        n_taken: how many forwards took the lock.
        n_passed: how many forwards were in a mode that is not recorded.
    """

    def __init__(self) -> None:
        self.inside: int | None = None
        self.n_taken = self.n_passed = 0
        self._thread: dict[None, int] = {}
        self._refused: set[int] = set()

    def acquire(self) -> bool:
        """Begin a forward in this thread, unless another thread is in one."""
        me = get_ident()
        if self._thread.setdefault(None, me) != me:
            self._refused.add(me)
            return False
        self.n_taken += 1
        return True

    def release(self) -> bool:
        """End a forward in this thread; whether it had the lock."""
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

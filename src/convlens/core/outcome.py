"""How a run ended: its status and the text of its error."""

from __future__ import annotations


def outcome_of(error: BaseException | None) -> tuple[str, str | None]:
    """How a run ended: its status, and the text of its error.

    ``"stopped"`` is Ctrl-C and an exit without an error code; any other error is ``"failed"``.

    >>> from convlens.core.outcome import outcome_of
    >>> outcome_of(None), outcome_of(KeyError("x"))
    (('finished', None), ('failed', "KeyError: 'x'"))
    >>> outcome_of(KeyboardInterrupt())
    ('stopped', 'interrupted from the keyboard')
    """
    if error is None:
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted from the keyboard"
    name = type(error).__name__
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "stopped", name
    try:
        text = str(error)
    except Exception:  # a user's error may fail to describe itself
        text = ""
    return "failed", f"{name}: {text}" if text else name

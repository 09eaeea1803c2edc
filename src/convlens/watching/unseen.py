"""What a watcher says, at the end, of forwards and layers that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from convlens.watching.aggregator import Slot
from convlens.watching.arguments import MODES
from convlens.watching.forward_lock import ForwardLock
from convlens.watching.notes import Notes, named

FEWEST_FORWARDS = 30
"""In shorter loops nothing is said of forwards that are no iterations."""


def note_unseen(
    notes: Notes,
    model: nn.Module,
    watched: Sequence[tuple[Slot, nn.Module]],
    lock: ForwardLock,
    *,
    modes: Sequence[bool],
    counted: int,
    count_forwards: bool,
) -> None:
    """Note layers that put out nothing or are no longer there, or why nothing was recorded at all.

    Args:
        notes: where to say it.
        model: the watched model, as it is now.
        watched: its layers when watching began, with what was recorded of them.
        lock: which forwards were seen.
        modes: the values of ``module.training`` for which forwards are counted.
        counted: the steps.
        count_forwards: whether each forward is a step.
    """
    unseen = [slot.info for slot, _ in watched if not (slot.seen or notes.left_out(slot.info))]
    now = set(model.modules())
    gone = [slot.info.name for slot, module in watched if module not in now]
    if gone:
        notes.say("replaced", replaced=len(gone), names=named(gone))
    if lock.n_taken and not counted:
        notes.say("no step")
    elif lock.n_taken and unseen:
        names = named([info.name for info in unseen])
        notes.say("layers", unseen=len(unseen), all=len(watched), names=names)
    elif lock.n_passed and not lock.n_taken:
        mode, call = ("eval", "train") if True in modes else ("train", "eval")
        notes.say("mode", mode=mode, passed=lock.n_passed, call=call)
    elif not lock.n_taken and (count_forwards or counted):
        notes.say("no forward")


def note_forwards(notes: Notes, modes: Sequence[bool], forwards: int, steps: int) -> None:
    """Note that columns are forwards and not iterations, as in the loop of a GAN."""
    if modes == MODES["train"] and FEWEST_FORWARDS <= 3 * steps <= forwards:
        notes.say("forwards", forwards=forwards, steps=steps)

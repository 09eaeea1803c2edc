"""`Notes`: what a watcher could not record, in sentences with counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from convlens.core.histories import LayerInfo
from convlens.core.records import RecordSink
from convlens.errors import warn

T = TypeVar("T")

NAMED = 3  # so many names are in one sentence

FACTS = {
    "threads": "{n} forwards were left out: another thread was in a forward of the same model, and "
    "only one at a time is recorded.",
    "outputs": "{n} outputs of layers were left out: they were computed in another thread than the "
    "model's forward, as torch.nn.DataParallel does on several devices.",
    "steps": "{n} optimizer steps were left out: the forward that they belong to was, or another "
    "thread has begun a forward since.",
    "layers": "{unseen} of {all} watched layers put out nothing in the forwards that were "
    "recorded: {names}.",
    "no step": "Nothing was recorded: stats.step() was never called.",
    "no forward": "Nothing was recorded: no forward of the model was seen; call the model itself, "
    "or call stats.enter() before and stats.leave() after your forward pass.",
    "mode": "Nothing was recorded: the model was in {mode} mode in all of its {passed} forwards; "
    "call model.{call}() before, or watch with mode={mode!r} or 'both'.",
    "optimizer": "No gradients or updates were recorded: in the first {begun} steps no "
    "torch.optim.Optimizer with a parameter of this model made its step. Call optimizer.step() in "
    "the loop; optimizers of another kind cannot be watched.",
    "parameters": "Of the parameters that need a gradient {unseen} had none in any optimizer step: "
    "{names}.",
    "replaced": "Of the watched layers {replaced} are no longer part of the model, and nothing was "
    "recorded of what took their place: {names}. Watch the model again after changing it.",
    "relus": "Which layers a ReLU follows could not be found ({why}), so no dead channels are "
    "counted.",
    "fork": "This process was forked while watching: it goes on recording in memory and writes no "
    "run; {lost} chunks of columns that were being compressed are missing in it.",
    "sink": "Writing what is watched to the run failed {n} times, so it is kept in memory only: "
    "{why}.",
    "kept": "{n} chunks of columns could not be kept: {why}.",
    "hooks": "{n} forwards could not be recorded completely: {why}.",
    "parameter hooks": "{n} optimizer steps could not be recorded: {why}.",
    "closed": "{n} calls of stats.log or stats.log_epoch were not written to the run: {why}.",
    "forwards": "Each column is a forward, and there were {forwards} for {steps} optimizer steps. "
    "For a column for each iteration use count_forwards=False and stats.step().",
    "log": "{n} logged numbers could not be recorded: {why}.",
}
"""What is said, by what it is about; ``{n}`` is how often."""


class CannotSketchError(Exception):
    """A value that has no sketch; the text says what it is."""


@dataclass
class _LeftOut:
    """How many values of a series could not be sketched, and why the first one."""

    info: LayerInfo
    why: str
    count: int = 0


class Notes:
    """Sentences about what a watcher could not record; each kind is warned of once.

    Nothing here raises: it is called in the middle of a user's training step.

    Args:
        key: the name under which they are in the meta of a run.

    Attributes:
        sink: the run that they are written to, None for none.
    """

    def __init__(self, key: str = "notes") -> None:
        self.key = key
        self.sink: RecordSink | None = None
        self._facts: dict[str, dict[str, object]] = {}
        self._counts: dict[str, int] = {}
        self._left_out: dict[tuple[str, int], _LeftOut] = {}

    def sentences(self) -> tuple[str, ...]:
        """What has been noted so far."""
        groups: dict[tuple[str, str], list[_LeftOut]] = {}
        for one in list(self._left_out.values()):
            groups.setdefault((one.info.quantity, one.why), []).append(one)
        told = [_told(quantity, why, members) for (quantity, why), members in groups.items()]
        return (*told, *(self._sentence(about) for about in list(self._facts)))

    def say(self, about: str, **values: object) -> None:
        """Note one of `FACTS`, with the current values of its fields; the same again counts."""
        new = about not in self._facts
        self._counts[about] = self._counts.get(about, 0) + 1
        self._facts[about] = values
        if new:
            warn(self._sentence(about))
            self.write()

    def _sentence(self, about: str) -> str:
        return FACTS[about].format(n=self._counts[about], **self._facts[about])

    def leave_out(self, info: LayerInfo, error: Exception, value: object = None) -> None:
        """Note that ``value`` of a series could not be sketched, because of ``error``."""
        key = info.quantity, info.index
        if key not in self._left_out:
            why = _reason(error, value)
            known = {(one.info.quantity, one.why) for one in self._left_out.values()}
            self._left_out[key] = _LeftOut(info, why)
            if (info.quantity, why) not in known:
                warn(
                    f"The {info.quantity} of {info.name!r} ({info.kind}) cannot be sketched and is "
                    f"left out: {why}. stats.notes counts how often."
                )
        self._left_out[key].count += 1
        if self._left_out[key].count == 1:
            self.write()

    def guard(self, work: Callable[..., T], *args: object) -> T | None:
        """Do a part of a hook's work; None, and a note, if it fails."""
        try:
            return work(*args)
        except Exception as error:
            self.failed(error)
            return None

    def failed(self, error: Exception) -> None:
        """Note that a part of a hook's work has failed."""
        self.say("hooks", why=described(error))

    def left_out(self, info: LayerInfo) -> bool:
        """Whether something of this series was left out."""
        return (info.quantity, info.index) in self._left_out

    def write(self) -> None:
        """Write what has been noted to the run, if there is one and something to say."""
        sentences = self.sentences()
        if self.sink is not None and sentences:
            with suppress(Exception):  # whoever writes the run says that it cannot be written
                self.sink.write_meta({self.key: list(sentences)})


def named(names: Sequence[str]) -> str:
    """Names for a sentence: the first ones, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def described(error: Exception) -> str:
    """An error's class and the first line of its text, if it has one."""
    name = type(error).__name__
    try:
        said = (str(error).splitlines() or [""])[0][:160].rstrip(".")
    except Exception:
        said = ""
    return f"{name}: {said}" if said else name


def _reason(error: Exception, value: object) -> str:
    if isinstance(error, CannotSketchError):
        return str(error)
    gave = described(error)
    try:
        if isinstance(value, Tensor):
            return f"a {type(value).__name__} of {value.dtype}, {value.layout} gave {gave}"
    except Exception:  # a tensor that does not say even this
        return f"a {type(value).__name__} gave {gave}"
    return gave


def _told(quantity: str, why: str, members: Sequence[_LeftOut]) -> str:
    times = sum(one.count for one in members)
    names = named([one.info.name for one in members])
    return f"{times} × {quantity} left out, of {names}: {why}."

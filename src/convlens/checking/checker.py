"""`check`: the doctor's rules on a trial training, before the real one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from convlens.checking import probes
from convlens.checking.batches import cloned, first_items, has_items, n_items, split
from convlens.checking.failures import not_copied, raised
from convlens.checking.first_batch import look
from convlens.checking.labels import other_labels, out_of_range, with_all_labels
from convlens.checking.loaders import batches_of, device_of
from convlens.checking.setup import Loss, Setup, Step
from convlens.checking.trial import MADE, Deadline, prepare, train
from convlens.core.records import Finding, Findings, RunRecord
from convlens.core.wording import plural, type_name
from convlens.doctor.diagnosis import judge_trial, worst_first
from convlens.errors import ArgumentError
from convlens.execution import copy_of, preserved, unwrapped
from convlens.watching.module_facts import unregistered
from convlens.watching.optimizer_hooks import step_hooks

FEWEST = 2
"""Items of a batch at least, where a network is too slow for the whole batch."""

PROBED = 4
"""Items at least of an experiment: one that is replaced, and others that it must not change."""

MEASURED = 32
"""Items at most of the step that is timed."""

STEP_SHARE = 1 / 80
"""The share of the seconds that one step may take; of slower networks fewer items are taken."""

TRIAL, PROBES, GIVEN = 0.4, 0.5, 0.75
"""The shares of the seconds after which the trial, the experiments, and the memorizing of one batch
with the given optimizer end."""

TRIAL_STEPS = 24
"""Steps of the trial on several batches at most: three passes over eight."""

MEMORIZING_STEPS = 40
"""Steps on one batch at most: the same few items nearly any network learns in so many."""

MEMORIZED = 15
"""In fewer steps a network that learns may not have lost a fifth of its loss."""

PREPARING_S = 1.0
"""Seconds of compiling, once on a machine, that count."""


OF_OPTIMIZERS = (
    *("learning-rate-too-high", "learning-rate-too-low", "momentum-too-high"),
    *("weight-decay-too-high", "parameters-not-in-optimizer"),
)
"""What is not said where no optimizer was given."""


FEW_LABELS = 20
"""Of two classes, fewer items than these may all be of one by chance."""

OF_LABELS = ("constant-labels", "data-not-shuffled")
"""What is not said of so few items."""


class CheckResult(Findings):
    """The findings of a check, worst first, with what was tried.

    Printed, it says in a line each what was found, what was tried and what was not.

    >>> model, batch = torch.nn.Linear(4, 3), (torch.randn(8, 4), torch.arange(8) % 3)
    >>> cl.check(model, batch, torch.nn.CrossEntropyLoss()).tried[0]
    '1 batch of 8 items'

    Attributes:
        tried: what was done, in words.
        not_tried: what there was no time or no way for.
        seconds: how long it took.
    """

    def __init__(
        self,
        findings: Sequence[Finding] = (),
        tried: Sequence[str] = (),
        not_tried: Sequence[str] = (),
        seconds: float = 0.0,
    ) -> None:
        super().__init__(findings)
        self.tried, self.not_tried, self.seconds = list(tried), list(not_tried), seconds

    @property
    def problems(self) -> list[Finding]:
        """The findings that are problems."""
        return [finding for finding in self if finding.severity == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "findings": [vars(finding) for finding in self],
            "tried": self.tried,
            "not_tried": self.not_tried,
            "seconds": round(self.seconds, 2),
        }

    def __str__(self) -> str:
        lines = [super().__str__(), f"Tried in {self.seconds:.1f} s: {'; '.join(self.tried)}."]
        if self.not_tried:
            lines.append(f"Not tried: {'; '.join(self.not_tried)}.")
        return "\n".join(lines)

    __repr__ = __str__


def check(
    model: nn.Module,
    data: object,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    step: Step | None = None,
    *,
    seconds: float = 5.0,
) -> CheckResult:
    """Say what would go wrong in a training, before it.

    A few steps are made on copies of model and optimizer. Model, optimizer, loss, random states and
    loader are left exactly as they were.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    >>> batch = torch.randn(32, 4), torch.arange(32) % 3
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> cl.check(model, batch, torch.nn.CrossEntropyLoss(), optimizer)[0].kind
    'softmax-before-cross-entropy'

    Args:
        model: any module.
        data: a batch ``(inputs, targets)``, where several inputs are several entries and a mapping
            with ``labels`` is a batch too; or a loader that can be read again, or a list of
            batches.
        loss: a function of the model's output and the targets. Without it, and without ``step``,
            the model's own ``output.loss`` is taken, if it has one.
        optimizer: of the model; without one Adam is used, and nothing is said of learning rates.
        step: instead of ``loss`` where a batch becomes a loss in another way: called with a copy of
            the model and a batch, it returns the loss, and leaves ``backward()`` and
            ``optimizer.step()`` to the check.
        seconds: how long to try, at least 1; of a slow network fewer items are taken.

    Returns:
        The findings, worst first, with `CheckResult.tried` and `CheckResult.not_tried`.

    Raises:
        ArgumentError: if an argument cannot work, such as an iterator, which can be read only once.
    """
    began = time.perf_counter()
    _check_arguments(model, loss, optimizer, step, seconds)
    batches = batches_of(data, seconds / 5)
    others = other_labels(data, batches, seconds / 5)
    known = optimizer if isinstance(optimizer, Optimizer) else None  # several in one, say
    setup = Setup(unwrapped(model), known, loss, step)
    device = device_of(setup.model)
    batches = [cloned(batch, device) for batch in batches]
    read_s = time.perf_counter() - began
    with torch.inference_mode(mode=False), torch.enable_grad():
        pristine, why = _copied(setup)
        with _untouched(setup), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training says them again
            prepare()
            began = max(began, time.perf_counter() - PREPARING_S - read_s)
            work = _Check(pristine or setup, why, Deadline(began, seconds), others)
            findings = work.run(batches)
    return CheckResult(findings, work.tried, work.not_tried, time.perf_counter() - began)


def _copied(setup: Setup) -> tuple[Setup | None, Exception | None]:
    """A copy of everything that trains, or why there is none."""
    try:
        return setup.copied(), None
    except Exception as error:
        return None, error


def _check_arguments(
    model: object, loss: object, optimizer: object, step: object, seconds: float
) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type_name(model)}.")
    meta = [n for n, p in model.named_parameters() if p.is_meta]
    if meta:
        raise ArgumentError(
            f"model has parameters on the device 'meta', which have no values ({meta[0]!r}); "
            "create it on a real device, or call model.to_empty(device='cpu') and load its weights."
        )
    for name, value in (("loss", loss), ("step", step)):
        if isinstance(value, type):
            raise ArgumentError(
                f"{name}={value.__name__} is a class; give an object, {value.__name__}()."
            )
        if value is not None and not callable(value):
            raise ArgumentError(f"{name} must be a function, got {value!r:.60}.")
    if loss is not None and step is not None:
        raise ArgumentError("loss and step were both given; step returns the loss itself.")
    if optimizer is not None and not callable(getattr(optimizer, "step", None)):
        raise ArgumentError(
            "optimizer must be a torch.optim.Optimizer made of the model's parameters, such as "
            f"torch.optim.AdamW(model.parameters()), got {optimizer!r:.60}."
        )
    if not seconds >= 1:
        raise ArgumentError(f"seconds must be at least 1, got {seconds:g}.")


class _Everything(nn.Module):
    """Holds all that a trial may write to besides its copies, for `preserved`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.model = setup.model
        self.others = [setup.loss, setup.step]
        for name, value in (("loss", setup.loss), ("step", setup.step)):
            if isinstance(value, nn.Module):
                self.add_module(name, value)


@contextmanager
def _untouched(setup: Setup) -> Generator[None]:
    """Restore model, loss and random states; gradients and settings of the optimizer too.

    A function that computes the loss may call the optimizer, which its copies know nothing of.
    """
    optimizer = setup.optimizer
    groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
    known: list[Tensor] = [*setup.model.parameters(), *(p for g in groups for p in g["params"])]
    settings = [(group, dict(group)) for group in groups]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in known]
    with ExitStack() as stack:
        stack.callback(_restore, settings, gradients)
        stack.enter_context(preserved(_Everything(setup), _stand_in, training=None))
        stack.enter_context(step_hooks().for_new_listeners())
        torch.manual_seed(0)  # the same findings each time
        yield


def _stand_in(tensor: Tensor) -> Tensor:
    needs = tensor.requires_grad and tensor.is_leaf
    return tensor if is_lazy(tensor) else copy_of(tensor).requires_grad_(needs)


def _restore(
    settings: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    gradients: Sequence[tuple[Tensor, Tensor | None, Tensor | None]],
) -> None:
    for group, before in settings:
        group.clear()
        group.update(before)
    with torch.no_grad():
        for parameter, gradient, value in gradients:
            parameter.grad = gradient
            if gradient is None or value is None:
                continue
            if gradient.layout != torch.strided or not torch.equal(gradient, value):
                gradient.copy_(value)


class _Check:
    """The trials of one check.

    Args:
        setup: what trains, a copy of it if there is one.
        why: why there is none.
        deadline: of all trials together.
        others: see `other_labels`.
    """

    def __init__(
        self, setup: Setup, why: Exception | None, deadline: Deadline, others: float
    ) -> None:
        self.setup, self.deadline, self.others = setup, deadline, others
        self.why_not_copied = why
        self.tried, self.not_tried = list[str](), list[str]()

    def run(self, batches: Sequence[Any]) -> list[Finding]:
        """All of them, and what the rules say of them; worst first."""
        n = n_items(batches[0])
        kinds = "batch" if len(batches) == 1 else "batches"
        self.tried.append(f"{len(batches)} {kinds} of {plural(n, 'item')}")
        if self.why_not_copied is not None:
            self.not_tried.append("training steps, as the model cannot be copied")
            return [*self._static(batches[0]), not_copied(self.why_not_copied)]
        if next(self.setup.model.parameters(), None) is None:
            self.not_tried.append("training steps, as the model has no parameters")
            return [*_untrainable(self.setup.model), *self._static(batches[0])]
        findings = _mode_finding(self.setup.model)
        try:
            self._initialize(batches[0])
            record = self._train(batches)
        except Exception as error:
            found = raised(error, batches[0])
            # Without a loss it is not known how the model is called in the training.
            return [found if self.setup.has_loss else replace(found, severity="warning")]
        judged = judge_trial(record)
        if self.setup.optimizer is None:
            judged = [finding for finding in judged if finding.kind not in OF_OPTIMIZERS]
        if sum(map(n_items, batches)) < FEW_LABELS:
            judged = [finding for finding in judged if finding.kind not in OF_LABELS]
        findings += _untrainable(self.setup.model) or [*out_of_range(record, batches), *judged]
        return worst_first(findings)

    def _train(self, batches: Sequence[Any]) -> RunRecord:
        """All trials that run the network; the record of the first, with what the others showed."""
        record, small = self._trial(batches)
        facts: dict[str, Any] = {
            "batch_size": n_items(batches[0]),
            "scheduled": _is_scheduled(self.setup.optimizer),
            "other_labels": self.others,
        }
        facts |= self._probe(batches[0], n_items(small[0]))
        if record.steps.loss.size:
            facts |= self._memorize(small[:1])
        return replace(record, meta={**record.meta, "trial": facts})

    def _static(self, batch: Any) -> list[Finding]:  # noqa: ANN401
        self.tried.append("a forward pass, and the gradient of the loss at its output")
        try:
            return look(self.setup, batch)
        except Exception as error:
            return [raised(error, batch)]

    def _initialize(self, batch: Any) -> None:  # noqa: ANN401
        """Give lazy modules their shapes, on the copy that all others are made of."""
        if any(is_lazy(p) for p in self.setup.model.parameters()):
            with torch.no_grad():
                self.setup.loss_of(batch)

    def _trial(self, batches: Sequence[Any]) -> tuple[RunRecord, list[Any]]:
        """Some steps on several batches, and the batches with as many items as there is time."""
        small, record = self._sized(batches)
        setup, by = self.setup.copied(), type(self.setup.optimizer).__name__
        if setup.optimizer is None:
            self.not_tried.append("the learning rate, as no optimizer of torch was given")
            setup, by = setup.with_adam(), "Adam"
        if self.deadline.allows(1) or self.setup.optimizer is None:
            record = train(setup, small, self.deadline, TRIAL, TRIAL_STEPS)
        n = int(record.meta[MADE])
        if n:
            self.tried.append(f"{plural(n, 'training step')} with {by} on a copy")
        else:
            self.tried.append("forward passes")
            self.not_tried.append("training steps, as neither loss nor step was given")
        return with_all_labels(record, batches), small

    def _sized(self, batches: Sequence[Any]) -> tuple[list[Any], RunRecord]:
        """The batches with as many items as there is time for, and the record of a first step."""
        n = n_items(batches[0])
        if n <= FEWEST or not all(map(has_items, batches)):
            return list(batches), self._first_step(batches[0])
        try:
            items, record = FEWEST, self._first_step(first_items(batches[0], FEWEST, n))
        except Exception:  # it may be made for batches of this size only
            return list(batches), self._first_step(batches[0])
        step_s, took = STEP_SHARE * self.deadline.seconds, self.deadline.step_s
        if took < step_s or self.deadline.allows(4):  # the first step is slow
            items = min(n, MEASURED if took < step_s else FEWEST)
            record = self._first_step(first_items(batches[0], items, n))
            took = self.deadline.step_s
        size = min(n, max(int(items * step_s / took), FEWEST))
        self.deadline.step_s = took * max(size / items, 1.0)
        if size == n:
            return list(batches), record
        self.tried.append(f"{size} items of each, as the network is slow")
        return [first_items(batch, size, n_items(batch)) for batch in batches], record

    def _first_step(self, batch: Any) -> RunRecord:  # noqa: ANN401
        """A step on a copy, which is timed."""
        self.deadline.step_s = 0.0
        return train(self.setup.copied(), [batch], self.deadline, 0.0, 1)

    def _memorize(self, batches: Sequence[Any]) -> dict[str, Any]:
        """How far the loss of one batch falls, with the given optimizer and with Adam."""
        found = dict[str, Any]()
        for name, share in (("given", GIVEN), ("adam", 1.0)):
            optimizer = self.setup.optimizer
            by = "Adam" if name == "adam" else type(optimizer).__name__
            if name == "given" and optimizer is None:
                continue
            if not self.deadline.allows(MEMORIZED, share):
                self.not_tried.append(f"whether one batch can be learned by heart with {by}")
                continue
            setup = self.setup.copied()
            setup = setup.with_adam() if name == "adam" else setup
            try:
                record = train(setup, batches, self.deadline, share, MEMORIZING_STEPS)
            except Exception:
                if name == "given":
                    raise
                record = None  # Adam takes no sparse gradients, say
            losses: list[float] = [] if record is None else record.steps.loss.tolist()
            if len(losses) < MEMORIZED:
                self.not_tried.append(f"whether one batch can be learned by heart with {by}")
                continue
            found[f"losses_{name}"] = losses
            fall = f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
            self.tried.append(f"{len(losses)} steps on one batch with {by} ({fall})")
        return found

    def _probe(self, batch: Any, size: int) -> dict[str, Any]:  # noqa: ANN401
        """Experiments on the outputs for a batch, or its first ``size`` items if there is no time.

        They are several forward passes, without a backward pass most of them.
        """
        n = n_items(batch)
        if size < n and not self.deadline.allows(4 * n // max(size, 1), PROBES):
            batch = first_items(batch, max(size, PROBED), n)
        x, found = split(batch)[0], dict[str, Any]()
        if not isinstance(x, Tensor):
            self.not_tried.append("experiments on the inputs, which are no single tensor")
            return found
        model = self.setup.copied().model
        share = PROBES if self.deadline.allows(2 * MEMORIZED) else 1.0
        trials: Sequence[tuple[str, str, Callable[[nn.Module, Any], Any]]] = (
            ("mixes_batch", "whether items of a batch change each other's output",
             probes.mixes_batch),
            ("is_affine", "whether the network is more than one linear layer", probes.is_affine),
            ("forgotten", "how far gradients reach back in a sequence", probes.forgotten),
        )  # fmt: skip
        for name, words, trial in trials:
            if name == "forgotten" and not probes.has_recurrent(model):
                continue
            if not self.deadline.allows(2, share):
                self.not_tried.append(words)
                continue
            try:
                model.train(name == "forgotten")
                found[name] = trial(model, x.detach().clone())
            except Exception:
                found[name] = None
            (self.not_tried if found[name] is None else self.tried).append(words)
        return found


def _mode_finding(model: nn.Module) -> list[Finding]:
    """A note on a model in evaluation mode, which is put into training mode."""
    if model.training:
        return []
    model.train()
    return [
        Finding(
            "eval-mode-in-training",
            "note",
            "The model is in evaluation mode; it was tried in training mode.",
            fix="Call model.train() before the first training step.",
            confidence="certain",
        )
    ]


def _untrainable(model: nn.Module) -> list[Finding]:
    """A problem if there is nothing to train at all."""
    parameters = list(model.parameters())
    if any(p.requires_grad for p in parameters) or (not parameters and unregistered(model)):
        return []
    if parameters:
        text = f"All {len(parameters)} parameters are frozen (requires_grad=False)"
        kind, fix = "frozen-by-mistake", "Call model.requires_grad_(True), or on its last layers."
    else:
        text, kind = "The model has no parameters", "no-parameters"
        fix = "Assign layers to attributes in __init__ (self.layer = nn.Linear(…))."
    text += ", so there is nothing to train."
    return [Finding(kind, "problem", text, fix=fix, confidence="certain")]


def _is_scheduled(optimizer: Optimizer | None) -> bool:
    """Whether a learning rate scheduler has changed the optimizer's rates."""
    groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
    return any("initial_lr" in group for group in groups)

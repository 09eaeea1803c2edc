"""`check`: the doctor's rules on a trial training, before the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from convlens.checking import probes
from convlens.checking.batches import batches_of, first_items, on_device, size_of, split, untouched
from convlens.checking.trial import Loss, Setup, Step, train, with_adam
from convlens.core.records import Finding, Findings
from convlens.doctor.diagnosis import judge_trial
from convlens.errors import ArgumentError
from convlens.execution import copy_of, preserved

FEWEST = 4
"""Items of a batch at least, where a network is too slow for the whole batch."""

SHARE = 0.4
"""The share of the seconds for the trial with the given optimizer."""


class CheckResult(Findings):
    """The findings of a check, with what was tried.

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

    A few steps are made on copies of model and optimizer. Model, optimizer, random states and
    loader are left exactly as they were.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))
    >>> batch = torch.randn(32, 4), torch.arange(32) % 3
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> cl.check(model, batch, torch.nn.CrossEntropyLoss(), optimizer)[0].kind
    'softmax-before-cross-entropy'

    Args:
        model: any module.
        data: a batch ``(inputs, targets)`` (a mapping with ``labels`` is one too), or a loader that
            can be read again.
        loss: of the model's output and the targets.
        optimizer: of the model; without one Adam is used, and nothing is said of learning rates.
        step: instead of ``loss`` where a batch becomes a loss in another way: called with the model
            (a copy) and a batch, it returns the loss. It must not call the original model.
        seconds: how long to try, at least 1; of a slow network fewer images are taken.

    Returns:
        The findings, worst first, with `CheckResult.tried` and `CheckResult.not_tried`.

    Raises:
        ArgumentError: if an argument cannot work, such as an iterator, which can be read only once.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"model must be a torch.nn.Module, got {model!r:.60}.")
    if seconds < 1:
        raise ArgumentError(f"seconds must be at least 1, got {seconds:g}.")
    began = time.perf_counter()
    work = _Check(Setup(model, optimizer, loss, step), began, seconds)
    findings = work.run(data)
    return CheckResult(findings, work.tried, work.not_tried, time.perf_counter() - began)


class _Check:
    """The trials of one check."""

    def __init__(self, setup: Setup, began: float, seconds: float) -> None:
        self.setup, self.began, self.seconds = setup, began, seconds
        self.tried, self.not_tried = list[str](), list[str]()

    def run(self, data: object) -> list[Finding]:
        with untouched(data):
            batches = batches_of(data, self.seconds / 5)
        device = next((p.device for p in self.setup.model.parameters()), torch.device("cpu"))
        batches = [on_device(batch, device) for batch in batches]
        self.tried.append(f"{len(batches)} batches of {size_of(batches[0])} items")
        try:
            pristine = self.setup.copied()
        except Exception as error:
            self.not_tried.append(f"training steps: the model cannot be copied ({error})")
            return [Finding("not-copied", "note", f"The model cannot be copied: {error}.")]
        with preserved(self.setup.model, copy_of, training=None):
            self.setup = pristine
            return self._try(batches)

    def _try(self, batches: Sequence[Any]) -> list[Finding]:
        copies = self.setup.copied()
        groups: list[dict[str, Any]] = (
            [] if copies.optimizer is None else copies.optimizer.param_groups
        )
        facts: dict[str, Any] = {
            "batch_size": size_of(batches[0]),
            "scheduled": any("initial_lr" in group for group in groups),
        }
        try:
            small = self._sized(copies, batches)
            one = small[:1]
            first = train(self.setup.copied(), small, self._until(SHARE))
        except Exception as error:
            return [_raised(error)]
        self.tried.append(f"{max(len(first.steps), 1)} training steps on a copy")
        if copies.loss is not None or copies.step is not None:
            facts |= self._memorize(one)
        facts |= self._probe(copies.model, one[0])
        record = replace(first, meta={**first.meta, "trial": facts})
        return judge_trial(record)

    def _memorize(self, batches: Sequence[Any]) -> dict[str, Any]:
        """How far the loss of one batch falls, with the given optimizer and with Adam."""
        found = dict[str, Any]()
        for name, end in (("given", 0.65), ("adam", 0.85)):
            if name == "given" and self.setup.optimizer is None:
                self.not_tried.append("learning rates: no optimizer was given")
                continue
            if self._left(end) <= 0:
                self.not_tried.append(f"memorizing a batch with {name}")
                continue
            setup = self.setup.copied()
            setup = setup if name == "given" else with_adam(setup)
            losses = train(setup, batches, self._until(end)).steps.loss
            found[f"losses_{name}"] = losses.tolist()
            self.tried.append(f"{len(losses)} steps on one batch with {name}")
        return found

    def _probe(self, model: nn.Module, batch: Any) -> dict[str, Any]:  # noqa: ANN401
        x = split(batch)[0]
        modes = [(module, module.training) for module in model.modules()]
        found = dict[str, Any]()
        trials: Sequence[tuple[str, Callable[[nn.Module, Any], Any]]] = (
            ("mixes_batch", probes.mixes_batch),
            ("is_affine", probes.is_affine),
            ("forgotten", probes.forgotten),
        )
        for name, trial in trials:
            if self._left(1.0) <= 0:
                self.not_tried.append(name.replace("_", " "))
                continue
            try:
                model.train(name == "forgotten")
                found[name] = trial(model, x)
                self.tried.append(name.replace("_", " "))
            except Exception as error:
                self.not_tried.append(f"{name.replace('_', ' ')} ({type(error).__name__})")
        for module, mode in modes:
            module.training = mode
        return found

    def _sized(self, copies: Setup, batches: Sequence[Any]) -> list[Any]:
        """The batches with as many items as there is time for."""
        n = size_of(batches[0])
        copies.model.train(self.setup.model.training)
        few = first_items(batches[0], FEWEST)
        copies.loss_of(few)  # the first pass is slow
        begin = time.perf_counter()
        loss = copies.loss_of(few) if n > FEWEST else None
        if loss is not None and loss.requires_grad:
            loss.mean().backward()
        per_item = (time.perf_counter() - begin) / FEWEST
        affordable = int(self.seconds / 25 / max(per_item, 1e-9))
        size = min(n, max(affordable, FEWEST))
        if size < n and n > FEWEST:
            self.tried.append(f"{size} items of each, as the network is slow")
        return [first_items(batch, size) for batch in batches] if size < n else list(batches)

    def _until(self, share: float) -> float:
        return self.began + share * self.seconds

    def _left(self, share: float) -> float:
        return self._until(share) - time.perf_counter()


def _raised(error: Exception) -> Finding:
    words = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return Finding(
        "training-step-raises",
        "problem",
        f"A training step raises {type(error).__name__}: {words}",
        fix="Look at the shapes and types of outputs and targets: nn.CrossEntropyLoss takes scores "
        "(N, C) and whole numbers (N,) from 0 to C − 1.",
        confidence="certain",
    )

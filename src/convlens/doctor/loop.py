"""Rules on what the loop did with the model: backward passes, steps, resets, modes, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convlens.core.records import Finding
from convlens.core.wording import plural
from convlens.doctor.evidence import Evidence

MICRO_BATCHES = 256
"""While a run goes on, its first step may still come, after that many micro-batches."""

MOSTLY = 0.5
"""What is true of more than half of the steps is no accident."""


def find_missing_backward(e: Evidence) -> Finding | None:
    """Optimizer steps without any gradient."""
    if e.count("training_forwards") < e.min_steps or e.count("backwards"):
        return None
    steps = e.count("optimizer_steps") + e.count("foreign_steps")
    if not steps or e.count("n_frozen") >= e.count("n_parameter_tensors"):
        return None
    if e.number("output_gradient", "n", 0) or e.loop.get("changed"):
        return None  # by torch.autograd.grad, or into parameters that are not followed
    return Finding(
        "missing-backward",
        "problem",
        f"No gradient reached the model in {e.count('training_forwards')} training forwards, "
        f"although the optimizer made {plural(steps, 'step')}.",
        fix="Call loss.backward() before optimizer.step(); the loss must be computed from the "
        "model's output without .item(), .detach(), .numpy() or torch.tensor(…) in between.",
        confidence="certain",
    )


def find_missing_step(e: Evidence) -> Finding | None:
    """Gradients, but no optimizer step, and parameters that stay as they are."""
    if e.count("backwards") < e.min_steps or e.count("optimizer_steps"):
        return None
    if e.loop.get("changed") is not False or e.count("foreign_steps"):
        return None
    if e.record.meta.get("status") == "running" and e.count("backwards") < MICRO_BATCHES:
        return None
    return Finding(
        "missing-step",
        "problem",
        f"There were {e.count('backwards')} backward passes, but no optimizer made a step, and the "
        "parameters did not change.",
        fix="Call optimizer.step() after loss.backward().",
        confidence="certain",
    )


def find_optimizer_of_other_model(e: Evidence) -> Finding | None:
    """An optimizer that steps, with none of this model's parameters."""
    if e.count("optimizer_steps") or e.count("foreign_steps") < e.min_steps:
        return None
    if not e.count("backwards") or e.loop.get("changed"):
        return None
    alike = any(one.get("like_model") for one in e.optimizers)
    like = " It holds parameters of the same shapes, as an earlier instance of the model has."
    return Finding(
        "optimizer-of-other-model",
        "problem" if alike or e.is_poor else "warning",  # it may be an image that is optimized
        f"The optimizer made {e.count('foreign_steps')} steps, but holds no parameter of this "
        f"model.{like if alike else ''}",
        fix="Make the optimizer after the model, from model.parameters(), and again whenever the "
        "model is made anew.",
        confidence="certain",
    )


def find_parameters_not_in_optimizer(e: Evidence) -> Finding | None:
    """Parameters that need a gradient and that no optimizer changes."""
    names, n = e.names("in_no_optimizer"), e.count("n_in_no_optimizer")
    if not n or e.count("optimizer_steps") < e.min_steps:
        return None
    trainable = e.count("n_parameter_tensors") - e.count("n_frozen")
    return Finding(
        "parameters-not-in-optimizer",
        e.severity("note"),
        f"{n} of {trainable} trainable parameters are in no optimizer and stay as they were "
        f"initialized: {_named(names, n)}.",
        layer=names[0].rpartition(".")[0] or None,
        fix="Pass model.parameters() to the optimizer; if they are meant to be frozen, set "
        "requires_grad_(False).",
        confidence="certain",
    )


def find_layers_not_registered(e: Evidence) -> Finding | None:
    """Modules in a plain list or dictionary: model.parameters() does not have them."""
    names = e.names("unregistered")
    if not names:
        return None
    return Finding(
        "layers-not-registered",
        "problem",
        f"Layers in a plain list or dictionary are not part of the model, so no optimizer trains "
        f"them: {_named(names, len(names))}.",
        fix="Use nn.ModuleList or nn.ModuleDict (or nn.Sequential) for "
        f"self.{names[0].rpartition('.')[2]}, and make the optimizer after that.",
        confidence="certain",
    )


def find_frozen(e: Evidence) -> Finding | None:
    """Frozen parameters in a run that does not learn, but for those of `Learner.fine_tune`."""
    n, frozen = e.count("n_parameter_tensors"), e.count("n_frozen")
    if not frozen or not e.is_weak or _fine_tunes(e):
        return None
    names = e.names("frozen")
    return Finding(
        "frozen-by-mistake",
        e.severity("note"),
        f"{frozen} of {n} parameters are frozen (requires_grad=False), and the loss hardly falls: "
        f"{_named(names, frozen)}.",
        layer=names[0].rpartition(".")[0] or None,
        fix="If they were not trained before, set requires_grad_(True) on them "
        "(nn.Embedding.from_pretrained freezes unless freeze=False).",
    )


def _fine_tunes(e: Evidence) -> bool:
    """Whether layers are frozen in the first epochs only, by the schedule of `fine_tune`."""
    schedule = e.record.meta.get("schedule")
    inner = schedule.get("schedule", schedule) if isinstance(schedule, dict) else None
    return isinstance(inner, dict) and inner.get("class") == "FineTune"


def find_missing_zero_grad(e: Evidence) -> Finding | None:
    """Gradients that are not reset between two steps of the optimizer."""
    if not e.count("resets_checked"):
        return None
    if _are_kept(e.loop, e.min_steps):
        kept, of = e.count("steps_without_reset"), e.count("resets_checked")
        whose, end = "optimizer steps", "."
    else:
        found = next((one for one in e.optimizers if _are_kept(one, e.min_steps)), None)
        if found is None:
            return None
        kept, of = found["steps_without_reset"], found["resets_checked"]
        whose = f"steps of {found['class']}, one of {len(e.optimizers)} optimizers,"
        end = ", of every optimizer."
    fix = "Call optimizer.zero_grad() before each loss.backward(), or after each optimizer.step()"
    return Finding(
        "missing-zero-grad",
        "problem",
        f"Before {kept} of {of} {whose} the gradients were not reset: each step uses the sum "
        "of all gradients since the last reset.",
        fix=fix + end,
        confidence="certain",
    )


def _are_kept(facts: Mapping[str, Any], min_steps: int) -> bool:
    """Whether gradients were not reset, by the facts of all optimizers or of one."""
    checked, kept = (facts.get(name, 0) for name in ("resets_checked", "steps_without_reset"))
    return checked >= min_steps // 2 and kept > MOSTLY * checked


def find_accumulation_not_scaled(e: Evidence) -> Finding | None:
    """Several backward passes for each step, with a loss that is not divided by their number."""
    steps, backwards = e.count("optimizer_steps"), e.count("backwards")
    if steps < e.min_steps // 2 or backwards < 4 * steps:
        return None
    each = backwards / steps
    for loss in ("cross_entropy", "binary_cross_entropy"):
        scale = e.first("output_gradient", f"{loss}_scale")
        if e.first("output_gradient", loss) == 1 and 0.5 < scale < 2:
            return Finding(
                "accumulation-not-scaled",
                e.severity("note"),
                f"Each optimizer step adds up the gradients of {each:.0f} backward passes, and the "
                f"loss is not divided by {each:.0f}: the step is {each:.0f} times as large as that "
                "of one batch of this size.",
                fix=f"Call (loss / {each:.0f}).backward(), or lower the learning rate "
                f"{each:.0f}-fold.",
                confidence="certain",
            )
    return None


def find_eval_mode_in_training(e: Evidence) -> Finding | None:
    """Backward passes through a model in evaluation mode.

    Frozen modules are put into it on purpose, as requires_grad_(False) does not keep a batch
    normalization from following the new data.
    """
    n, of = e.count("steps_in_evaluation_mode"), e.count("optimizer_steps")
    modules = e.facts("trained_in_evaluation_mode")
    if of < e.min_steps or n <= MOSTLY * of or not modules:
        return None
    kinds = sorted({str(kind) for kind in modules.values()})
    return Finding(
        "eval-mode-in-training",
        "warning" if e.learned > 0.5 else "problem",  # pretrained networks are, on purpose
        f"In {n} of {of} training steps the model was in evaluation mode: {' and '.join(kinds)} "
        f"{'compute' if len(kinds) > 1 else 'computes'} something else there than in training.",
        layer=str(next(iter(modules))),
        fix="Call model.train() before each training epoch; a validation function that calls "
        "model.eval() must call it again at its end.",
        confidence="certain",
    )


def find_train_mode_in_evaluation(e: Evidence) -> Finding | None:
    """Validation in training mode: inside `validation`, or without gradients and never otherwise.

    Only in a run with figures of a validation. Not those that come with most steps, as the images
    of a GAN or the actions of a policy, which are counted as ``of_steps_without_gradients``, nor
    repeated ones of a batch, as for Monte Carlo dropout.
    """
    n = e.count("training_mode_without_gradients") + e.count("validation_in_training_mode")
    modules = [m for m in e.modules if m.get("differs_in_training")]
    if n < 2 or e.count("evaluation_forwards") or not modules or not e.count("backwards"):
        return None
    if e.count("validation_forwards") > e.count("validation_in_training_mode"):
        return None
    if e.number("validation_items", "repeated", 0) > MOSTLY * n:
        return None
    told = e.count("validation_in_training_mode") > 0
    if not told and not e.was_validated:
        return None
    kinds = sorted({str(m["kind"]) for m in modules})
    return Finding(
        "train-mode-in-evaluation",
        "problem",
        f"All {n} forwards without gradients, as a validation makes them, ran in training mode: "
        f"{' and '.join(_in_training(kind) for kind in kinds)} there.",
        layer=str(modules[0]["name"]),
        fix="Call model.eval() before validating and predicting, and model.train() after it.",
    )


def _in_training(kind: str) -> str:
    """What a kind of module does in training mode only."""
    return f"{kind} {'drops values' if 'Dropout' in kind else 'uses the statistics of the batch'}"


def _named(names: list[str], n: int) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {n - 3} more" if n > 3 else shown

"""The metrics that a Learner is given: by name, as torchmetrics objects, or as functions."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convlens.core.wording import closest, function_name
from convlens.data import DataLoaders
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.errors import ArgumentError, MissingLibraryError
from convlens.train.losses import LOGITS, l1_loss, mse_loss, same_shape
from convlens.train.metrics import Accumulated, BatchMean, Metric, accuracy

PER_CLASS = "_per_class"

_LIBRARY: dict[str, dict[str, str]] = {
    "f1": {CLASSES: "MulticlassF1Score", LABELS: "MultilabelF1Score"},
    "precision": {CLASSES: "MulticlassPrecision", LABELS: "MultilabelPrecision"},
    "recall": {CLASSES: "MulticlassRecall", LABELS: "MultilabelRecall"},
    "auroc": {CLASSES: "MulticlassAUROC", LABELS: "MultilabelAUROC"},
    "map": {CLASSES: "MulticlassAveragePrecision", LABELS: "MultilabelAveragePrecision"},
    "rmse": {NUMBERS: "MeanSquaredError"},
    "r2": {NUMBERS: "R2Score"},
}
"""Metrics of torchmetrics, by the kind of the targets."""


def top_k(output: Tensor, y: Tensor, k: int) -> Tensor:
    """Share of items whose label is among the ``k`` largest outputs (N, K), y (N,)."""
    return (output.topk(k, dim=1).indices == y.unsqueeze(1)).any(1).float().mean()


def label_accuracy(output: Tensor, y: Tensor, logits: bool = True) -> Tensor:
    """Share of labels (N, K) that are right: logits (N, K) above 0 say yes, probabilities above ½.

    Without ``logits`` the output is taken for probabilities if all of it lies in 0 to 1, as
    torchmetrics does.
    """
    threshold = 0.0 if logits else torch.where(((output < 0) | (output > 1)).any(), 0.0, 0.5)
    return ((output > threshold) == (y > 0.5)).float().mean()


_OWN: dict[str, dict[str, Callable[..., Tensor]]] = {
    "accuracy": {CLASSES: accuracy, LABELS: label_accuracy},
    "mae": {NUMBERS: l1_loss},
    "mse": {NUMBERS: mse_loss},
}
"""Means over items, which need no library."""


def metric_names(kind: str) -> list[str]:
    """The names that fit targets of this kind; ``top5`` stands for every number.

    >>> metric_names("numbers")
    ['mae', 'mse', 'rmse', 'r2']
    """
    of_kind = [name for name, kinds in [*_OWN.items(), *_LIBRARY.items()] if kind in kinds]
    if kind == NUMBERS:
        return of_kind
    per_class = [f"{name}{PER_CLASS}" for name in of_kind if name in _LIBRARY]
    return [*of_kind, *(["top5"] if kind == CLASSES else []), *per_class]


def usual_metrics(dls: DataLoaders) -> list[str]:
    """What is measured where nothing is said: the names that fit the data.

    Accuracy for classes, F1 and mean average precision for labels if torchmetrics is installed,
    else the accuracy, and the mean absolute error for numbers.
    """
    from importlib.util import find_spec

    if dls.kind == NUMBERS:
        return ["mae"]
    return ["f1", "map"] if dls.kind == LABELS and find_spec("torchmetrics") else ["accuracy"]


def resolve_metrics(
    metrics: Sequence[Metric], dls: DataLoaders, loss: Callable[..., Any]
) -> tuple[BatchMean | Accumulated, ...]:
    """What is measured of a validation, for the metrics that were given.

    Raises:
        ArgumentError: if a name is unknown, a metric does not fit the targets, or two have one
            name.
        MissingLibraryError: if torchmetrics is needed and not installed.
    """
    logits = function_name(loss) in LOGITS
    found = [one for given in metrics for one in _resolved(given, dls, logits)]
    names = ["loss", *(metric.name for metric in found)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ArgumentError(
            f"metrics has more than one {twice.pop()!r} (the loss is always one); give each "
            "function a name of its own, and torchmetrics objects in a MetricCollection."
        )
    return tuple(found)


_Inputs = Callable[[Any, Tensor], tuple[Any, Tensor]]


def _resolved(
    given: Any,  # noqa: ANN401
    dls: DataLoaders,
    logits: bool,
) -> Iterable[BatchMean | Accumulated]:
    if isinstance(given, str) or given is accuracy:
        return [_named("accuracy" if given is accuracy else given, dls, logits)]
    prepare = _inputs_of(dls.kind, logits)
    library: Any = sys.modules.get("torchmetrics")
    classes = tuple(dls.classes)
    if library is not None and isinstance(given, library.MetricCollection):
        pairs: list[tuple[str, Any]] = [
            (str(name), one) for name, one in given.items(keep_base=False)
        ]
    elif library is not None and isinstance(given, library.Metric):
        pairs = [(function_name(given), given)]
    else:
        return [BatchMean(function_name(given), given)]
    for _, one in pairs:
        _check_object(one, dls)
    return [
        Accumulated(name, one, prepare, classes, exact=dls.kind == NUMBERS)
        if _is_prepared(one, dls)
        else Accumulated(name, one, _as_given, classes)
        for name, one in pairs
    ]


# ---- names ---------------------------------------------------------------------------------------


def _named(name: str, dls: DataLoaders, logits: bool) -> BatchMean | Accumulated:
    kind, classes = dls.kind, tuple(dls.classes)
    _check_name(name, kind)
    top = re.fullmatch(r"top([1-9]\d*)", name)
    if top is not None:
        _check_top(name, int(top[1]), len(classes))
        return BatchMean(name, partial(top_k, k=int(top[1])))
    if name in _OWN:
        function = _OWN[name][kind]
        return BatchMean(
            name, partial(function, logits=logits) if function is label_accuracy else function
        )
    base = name.removesuffix(PER_CLASS)
    if kind == NUMBERS:
        options: dict[str, Any] = {"squared": False} if name == "rmse" else {}
    elif not classes:
        raise ArgumentError(
            f"The metric {name!r} needs the number of classes, which the data does not say; give "
            "cl.DataLoaders(…, classes=[…])."
        )
    else:
        average = "none" if name.endswith(PER_CLASS) else "macro"
        number = "num_classes" if kind == CLASSES else "num_labels"
        options = {number: len(classes), "average": average}
    metric = getattr(_library(name, kind), _LIBRARY[base][kind])(**options)
    prepare = _inputs_of(kind, logits)
    of_each = classes if name.endswith(PER_CLASS) else ()
    return Accumulated(base, metric, prepare, of_each, exact=kind == NUMBERS)


def _check_name(name: str, kind: str) -> None:
    """Raises ArgumentError if no metric for targets of this kind has the name."""
    known = metric_names(kind)
    if name in known or (kind == CLASSES and re.fullmatch(r"top[1-9]\d*", name)):
        return
    shown = ", ".join(one for one in known if not one.endswith(PER_CLASS))
    shown += f", recall{PER_CLASS} …" if kind != NUMBERS else ""
    others = [one for one in (CLASSES, LABELS, NUMBERS) if name in metric_names(one)]
    if others or re.fullmatch(r"top[1-9]\d*", name):
        raise ArgumentError(
            f"The metric {name!r} is for {' or '.join(others or [CLASSES])}, but the data has "
            f"{kind}; for these there are {shown}."
        )
    everything = [*dict.fromkeys(n for k in (CLASSES, LABELS, NUMBERS) for n in metric_names(k))]
    raise ArgumentError(
        f"metrics has {name!r}, which is not known; for {kind} give one of {shown}, "
        f"a function of (output, y) or a torchmetrics object.{closest(name, everything)}"
    )


def _check_top(name: str, k: int, n_classes: int) -> None:
    if n_classes and k >= n_classes:
        raise ArgumentError(
            f"The metric {name!r} is always 1 with {n_classes} classes; give a number below it."
        )


def _library(name: str, kind: str) -> Any:  # noqa: ANN401
    try:
        import torchmetrics
        import torchmetrics.classification
        import torchmetrics.regression
    except ImportError as error:
        raise MissingLibraryError(
            f"The metric {name!r} needs torchmetrics, which is not installed; install it with: "
            "pip install 'convlens[metrics]'"
        ) from error
    return torchmetrics.regression if kind == NUMBERS else torchmetrics.classification


# ---- what torchmetrics objects take --------------------------------------------------------------


def _inputs_of(kind: str, logits: bool) -> _Inputs:
    """Turns outputs and targets of this kind into what torchmetrics takes.

    torchmetrics applies a softmax or sigmoid to a batch if any of its values lies outside of 0 to
    1. A small batch of logits may lie inside by chance, so where the loss takes logits,
    probabilities are given.
    """
    return partial({CLASSES: _of_classes, LABELS: _of_labels, NUMBERS: _of_numbers}[kind], logits)


def _of_classes(logits: bool, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    output = output.float()
    return output.softmax(dim=1) if logits and output.ndim > 1 else output, y


def _of_labels(logits: bool, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return output.float().sigmoid() if logits else output.float(), y.long()


def _of_numbers(logits: bool, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    # Sums of squares of numbers far from 0 leave nothing of their variance in float32.
    exact = torch.float32 if output.device.type == "mps" else torch.float64
    return same_shape(output, y).to(exact), y.to(exact)


def _as_given(output: Any, y: Tensor) -> tuple[Any, Tensor]:  # noqa: ANN401
    half = isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16)
    return output.float() if half else output, y


def _is_prepared(metric: object, dls: DataLoaders) -> bool:
    """Whether an object of the user's is one of torchmetrics for targets of this kind."""
    start, _, rest = type(metric).__module__.partition(".")
    of = NUMBERS if rest.startswith("regression") else (CLASSES, LABELS)
    known = start == "torchmetrics" and rest.startswith(("regression", "classification"))
    return known and dls.kind in of


def _check_object(metric: Any, dls: DataLoaders) -> None:  # noqa: ANN401
    """Raises ArgumentError if an object of torchmetrics does not fit the targets.

    Data without classes does not say what its targets are.
    """
    name, kind = type(metric).__name__, dls.kind
    start, _, rest = type(metric).__module__.partition(".")
    if start != "torchmetrics" or (kind == CLASSES and not dls.classes):
        return
    for prefix, of, number in (
        ("Multiclass", CLASSES, "num_classes"),
        ("Multilabel", LABELS, "num_labels"),
    ):
        if name.startswith(prefix) and kind != of:
            raise ArgumentError(f"The metric {name} is for {of}, but the data has {kind}.")
        given = getattr(metric, number, None)
        if name.startswith(prefix) and isinstance(given, int) and given != len(dls.classes):
            raise ArgumentError(
                f"The metric {name} has {number}={given}, but the data has {len(dls.classes)} "
                f"{kind}."
            )
    if name.startswith("Binary") and kind == CLASSES:
        raise ArgumentError(
            f"The metric {name} is for one output for each image, but the data has "
            f"{len(dls.classes)} classes; give Multiclass{name.removeprefix('Binary')}(num_classes="
            f"{len(dls.classes)})."
        )
    if rest.startswith("regression") and kind != NUMBERS:
        raise ArgumentError(f"The metric {name} is for {NUMBERS}, but the data has {kind}.")

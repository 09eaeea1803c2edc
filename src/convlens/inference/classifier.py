"""`Classifier`: a network with all that is needed to use it on images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convlens.checking.mismatch_errors import check_scores, explain_forward
from convlens.core.argument_checks import check_whole
from convlens.core.wording import type_name
from convlens.data.input_transform import InputTransform
from convlens.data.items import CLASSES, LABELS, NUMBERS
from convlens.data.prediction_inputs import PredictionInputs
from convlens.errors import ArgumentError, TrainingError
from convlens.inference.augmentation import averaged, check_tta, views
from convlens.inference.prediction import Prediction

if TYPE_CHECKING:
    from convlens.data.prediction_inputs import Images

BATCH = 512


class Classifier:
    """A network, how images are prepared for it, and what its outputs mean.

        >>> from convlens.data import PixelScale
        >>> from convlens.data.input_transform import InputTransform
        >>> from convlens.inference import Classifier
        >>> scale = PixelScale(torch.tensor([0.5]), torch.tensor([0.25]), black=0.0, white=1.0)
        >>> transform = InputTransform.of((1, 28, 28), scale, None)
        >>> classifier = Classifier(cl.simple_cnn(1, 2), transform, ["cat", "dog"])
        >>> classifier
        Classifier(Sequential, 2 classes, images of 1×28×28, cpu)
        >>> len(classifier.predict(torch.zeros(3, 28, 28, dtype=torch.uint8)))
        3

    Args:
        model: takes (N, C, H, W) and returns scores (N, K), or numbers (N,) or (N, 1).
        input_transform: how an image becomes what the network gets.
        classes: the names of the classes or labels; empty for their numbers.
        kind: what the network predicts: "classes", "labels" (several for an image) or "numbers".
        forward: how the model is run on a batch; None to call it.

    Attributes:
        model: the network; `predict` runs it in evaluation mode and restores its modes.
        input_transform: how an image becomes what the network gets.
        classes: the names of the classes or labels.
        kind: what the network predicts.
        device: where the network is.
    """

    def __init__(
        self,
        model: nn.Module,
        input_transform: InputTransform,
        classes: Sequence[str] = (),
        kind: str = CLASSES,
        *,
        forward: Callable[[Tensor], Any] | None = None,
    ) -> None:
        if kind not in (CLASSES, LABELS, NUMBERS):
            raise ArgumentError(
                f"kind must be {CLASSES!r}, {LABELS!r} or {NUMBERS!r}, got {kind!r}."
            )
        self.model, self.input_transform, self.kind = model, input_transform, kind
        self.classes = tuple(map(str, classes))
        self._forward = forward or self._run_model

    def __repr__(self) -> str:
        shape = self.input_transform.input_shape
        size = "unknown size" if shape is None else "×".join(map(str, shape))
        said = "numbers" if self.kind == NUMBERS else f"{len(self.classes)} {self.kind}"
        return f"Classifier({type_name(self.model)}, {said}, images of {size}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    def predict(
        self,
        x: Images,
        batch_size: int = BATCH,
        *,
        normalized: bool | None = None,
        tta: str | None = None,
        strict: bool | None = None,
    ) -> Prediction:
        """Say what is on images; see `convlens.train.Learner.predict`.

        Raises:
            ArgumentError: if ``x`` is not images with the right channels, or an argument has a
                value that cannot work.
            DataError: if an image cannot be read.
            TrainingError: if the model cannot take the images, or its output is of another shape.
        """
        check_whole("batch_size", batch_size, 1)
        check_tta(tta)
        inputs = PredictionInputs(
            x, self.input_transform, batch_size, normalized=normalized, strict=strict
        )
        device, found = self.device, list[Tensor]()
        with evaluating(self.model), torch.no_grad():
            for part in inputs:
                outputs = [self._scores(view) for view in views(part.to(device), tta)]
                found.append(averaged(outputs, self.kind))
        return Prediction.of_scores(
            torch.cat(found), self.classes, self.kind, inputs.files, inputs.skipped
        )

    def _scores(self, x: Tensor) -> Tensor:
        output = self._forward(x)
        check_answers(output, len(x), self.classes, self.kind)
        return output.float()

    def _run_model(self, x: Tensor) -> Any:  # noqa: ANN401 - a model may return anything
        try:
            return self.model(x)
        except Exception as error:
            explain_forward(error, self.model, x)
            raise


def check_answers(output: Any, n: int, classes: Sequence[str], kind: str) -> None:  # noqa: ANN401
    """Raises TrainingError if an output for n images is not of the shape that its kind needs."""
    if kind == CLASSES:
        check_scores(output, classes)
        return
    found = tuple(output.shape) if isinstance(output, Tensor) else type_name(output)
    k = len(classes) or (found[-1] if isinstance(output, Tensor) and output.ndim == 2 else "K")
    wanted = [(n,), (n, 1)] if kind == NUMBERS else [(n, k)]
    if found not in wanted:
        said = "(N,) or (N, 1)" if kind == NUMBERS else f"(N, {k})"
        raise TrainingError(
            f"predict needs an output of {kind} {said}; the model's output for {n} images is "
            f"{found}."
        )


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Switch a model to evaluation, and restore every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

# ruff: noqa: ARG002 — the events' arguments are the library's
"""`WatchCallback`: watches the model that a ``Trainer`` of Hugging Face's transformers trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convlens.errors import MissingLibraryError
from convlens.integrations.watched_fit import ShowsFit, WatchedFit
from convlens.watching.layer_selection import Layers

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingLibraryError(
        "convlens.integrations.transformers needs transformers, which cannot be imported "
        f"({error}); install it with: pip install transformers accelerate"
    ) from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class WatchCallback(ShowsFit, TrainerCallback):
    """Records every optimizer step of a ``Trainer``: layers, loss, rates, evaluations.

        watch = WatchCallback(run="auto")
        Trainer(model, arguments, train_dataset=data, callbacks=[watch]).train()
        print(cl.diagnose(watch))

    The loss is the one that the model returns; where it returns none, what the ``Trainer`` logs,
    which is a mean over ``logging_steps``. Each training begins anew. The ``Trainer`` tells its
    callbacks of no exception: the run of a training that raised is closed as failed when the next
    begins, else it is one that crashed.

    Args:
        layers, run, options: see `convlens.watch`.
    """

    def __init__(
        self,
        layers: Layers = "trainable",
        *,
        run: str | Path | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._fit = WatchedFit("WatchCallback", layers, run, options)
        self._losses: list[Tensor] = []
        self._are_parts = False  # parts of the step's loss, to be added
        self._seen = False
        self._handle: RemovableHandle | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        """Attach the hooks."""
        if model is not None:
            self._losses, self._seen = [], False
            self._remove()
            self._fit.begin(model)
            self._handle = model.register_forward_hook(self._read_loss, with_kwargs=True)

    def _read_loss(
        self, module: nn.Module, args: object, kwargs: Mapping[str, object], output: object
    ) -> None:
        """Keep the loss that the model has computed; see ``Trainer.training_step``."""
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if module.training and isinstance(loss, Tensor) and loss.requires_grad and not loss.ndim:
            self._losses.append(loss.detach())
            self._are_parts = kwargs.get("num_items_in_batch") is not None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Say which step the batches belong to."""
        self.stats.step(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Log the step's loss."""
        if self._losses:
            self._seen = True
            total = torch.stack(self._losses).float().sum()
            self._fit.log(total if self._are_parts else total / len(self._losses))
            self._losses = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        """Log the ``Trainer``'s mean loss of a model that returns none."""
        if self._fit.has_begun and not self._seen and logs and "loss" in logs:
            self._fit.log(logs["loss"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """End the last epoch: its evaluation comes after its end."""
        self._fit.end_epoch()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Wait for the epoch's evaluation."""
        self._fit.is_epoch_open = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        """Keep the evaluation's metrics for the epoch."""
        found = {name.removeprefix("eval_"): v for name, v in (metrics or {}).items()}
        self._fit.evaluated({n: v for n, v in found.items() if n not in (*SPEEDS, "epoch")})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Remove the hooks and write what is left."""
        self._remove()
        if self._fit.has_begun:
            self._fit.end_epoch()
            self._fit.end()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

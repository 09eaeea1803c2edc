"""`Learner`: trains a model on data; what a user calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from convlens.checking import CheckResult, check
from convlens.checking.mismatch_errors import checking_loss
from convlens.core.argument_checks import check_whole
from convlens.core.records import Findings, RunRecord
from convlens.data.batches import first_batch
from convlens.doctor import diagnose
from convlens.errors import ArgumentError
from convlens.geometry import Summary, summary
from convlens.plots import plot_sched
from convlens.train.callbacks.base import Callback
from convlens.train.inference_methods import InferenceMethods
from convlens.train.layer_groups import (
    HEAD,
    FineTune,
    FreezeFirst,
    Rate,
    discriminative,
    highest,
    layer_groups,
)
from convlens.train.learner_arguments import make_optimizer
from convlens.train.lr_find import sweep
from convlens.train.lr_finding import LRFinding
from convlens.train.memory_record import record_of
from convlens.train.planned_steps import planned
from convlens.train.schedules import OneCycle, Schedule, as_schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Learner(InferenceMethods):
    """Trains a model on data, records what happens and calls its callbacks.

        >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> dls = cl.DataLoaders([(x, y)] * 3, name="noise")
        >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
        >>> learn.fit_one_cycle(2, lr_max=0.01)
        >>> learn
        Learner(Sequential with 25,666 parameters, DataLoaders 'noise', cpu, 2 epochs trained)

    Args:
        dls: the batches to train and validate on.
        model: takes x (N, C, H, W) and returns the output that the loss takes.
        loss: function of (output, y) that returns a scalar, the mean over the batch, or a name:
            "cross_entropy" or "focal" for classes, weighted by ``dls.class_weights``, "bce" or
            "focal" (of logits) for labels, "mse", "mae" or "huber" for numbers. None for the first
            that fits ``dls.kind``.
        optimizer: a name, "adamw" (with the chapter's settings), "adam", "sgd" (with Nesterov's
            momentum), "rmsprop", "nadam" or "radam": biases and the parameters of norms get no
            weight decay. Or a function that is called with the model's parameters and ``lr=``. It
            is made at the first fit, with the schedule's highest rate. Parameter groups keep the
            ratio of their rate to that one, and a momentum of their own.
        metrics: what to measure on the validation items. A name: "accuracy", "top5" (or another
            number), "f1", "precision", "recall", "auroc", "map" (mean average precision) for
            classes, the same without "top5" for labels, "mae", "mse", "rmse", "r2" for numbers;
            "recall_per_class" and so on give each class, as ``"recall[cat]"``. Averages over the
            classes are macro averages. A torchmetrics object: a copy is updated with every batch
            and computed at the end of the validation; where the loss takes logits, it gets
            probabilities. Or a function of (output, y) that returns a batch's mean, a number or a
            tensor of one, named by its ``__name__``; reported is the mean of the batches, weighted
            by their size.
        callbacks: used in every fit, reachable under their class names in snake_case.
        device: where to train; None for the data's device.
        seed: seeds torch's random numbers at the beginning of every fit; None leaves them alone.
            (The order of the data has a seed of its own, given to the data.)
        run: ``"auto"`` records every fit to a new directory ``base/NAME-0001``; a path names the
            directory; None keeps everything in memory.
        weight_decay: of an optimizer by name; None for 0.01 of "adamw" and none of the others.
        label_smoothing: the share of each label that the cross entropy of the training spreads
            over all classes, such as 0.1; the validation loss is without it.
        precision: ``"fp32"``; ``"bf16"`` or ``"fp16"`` compute the forward pass and the loss with
            `torch.autocast`, fp16 with a scaled loss: a step whose gradients overflow is skipped.
        accumulate: batches for each optimizer step. Their losses are weighted by their numbers of
            images, so that the step is that of one batch as large (apart from batch
            normalization and class weights). Steps are counted, scheduled and recorded as optimizer
            steps.
        clip: the largest norm of all gradients together before a step; None for no limit.
        channels_last: whether images (N, C, H, W) and the model are laid out with the channels
            last, which many devices compute faster.
        compile: whether a fit runs the model through `torch.compile`; ``learn.model`` stays the
            plain module.
        base: the folder that keeps the runs.
        progress: whether to show progress and a line per epoch.

    Raises:
        ArgumentError: if an argument cannot work, or a callback's name would hide an attribute.
    """

    def check(self, lr: float = 1e-3, *, seconds: float = 5.0) -> CheckResult:
        """Say what would go wrong in a training, before it; see `convlens.check`.

        Some steps are made on copies, with an optimizer as `fit` makes it, with bf16 if the Learner
        has it, on single batches and without clipping. Nothing is changed.

            >>> dls = cl.from_arrays(torch.rand(8, 1, 9, 9), [0, 1] * 4, layout="NCHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> learn.check(seconds=1).tried[0]
            '1 batch of 8 items'

        Args:
            lr: the learning rate to try, that of `fit` or the highest of a schedule.
            seconds: how long to try, at least 1.

        Raises:
            ArgumentError: if an argument, or one of the Learner's, cannot work.
        """
        optimizer = make_optimizer(self.make_optimizer, self.model.parameters(), lr)
        loss = checking_loss(self.loss_function, self.dls.classes)
        # Without the scaler of fp16 small gradients would be zero, so that is tried in fp32.
        scaled = self.settings.precision == "fp16"
        with nullcontext() if scaled else self.stepper.autocast():
            return check(self.model, self.dls.train, loss, optimizer, seconds=seconds)

    def lr_find(self, lr_min: float = 1e-7, lr_max: float = 10.0, n_steps: int = 100) -> LRFinding:
        """Find a learning rate: train with rates from ``lr_min`` up, and look at the loss.

        The rate rises by a constant factor at each of ``n_steps`` optimizer steps, with the
        Learner's own loop, precision, accumulation and clipping. The sweep ends where the loss
        diverges. Afterwards model, optimizer, random numbers and the order of the data are
        exactly as before, also after an error or Ctrl-C. Nothing is recorded, and no callbacks
        are called, not even those that change batches or losses.

            >>> x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 2
            >>> x[:, :, :4] += 2.0 * y.view(-1, 1, 1, 1)
            >>> dls = cl.from_arrays(x, y, layout="NCHW", batch_size=16, device="cpu")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> found = learn.lr_find()
            >>> 1e-4 < found.suggestion < 1
            True
            >>> print(found)  # doctest: +ELLIPSIS
            suggestion  0...: ...
            steepest    0...: the loss falls fastest.
            valley      ...: the middle of the longest fall.
            minimum     0...: a tenth of ..., where the loss is lowest.

        Args:
            lr_min: the first learning rate.
            lr_max: the last one.
            n_steps: optimizer steps; small data is read several times.

        Returns:
            The curve, its suggestions and the recommended one, ``.suggestion``; None where the
            curve suggests none. Print it, or call ``.plot()``.

        Raises:
            ArgumentError: if an argument, or one of the Learner's, cannot work.
            TrainingError: if the model, its output or the loss does not fit the batches, or the
                weights are not finite before the first step.
        """
        return sweep(self, lr_min, lr_max, n_steps)

    def plot_sched(
        self,
        schedule: Schedule | None = None,
        n_epochs: int = 5,
        axes: Sequence[Axes] | None = None,
    ) -> tuple[Axes, Axes]:
        """Draw the learning rate and the momentum of each parameter group by step.

            >>> x, y = torch.randn(8, 1, 4, 4), torch.tensor([0, 1] * 4)
            >>> dls = cl.DataLoaders([(x, y)] * 3, name="noise")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> rate, momentum = learn.plot_sched(cl.OneCycle(0.01), n_epochs=5)
            >>> rate.lines[0].get_ydata().max().round(4)
            np.float64(0.01)

        Args:
            schedule: what `fit` would use, before training too; None for the rates that the last
                fit had.
            n_epochs: epochs of the schedule.
            axes: where to draw, two axes; a new figure if None.

        Raises:
            ArgumentError: if an argument cannot work, or there was no fit and no schedule is given.
        """
        if schedule is None:
            if not len(self.recorder.steps):
                raise ArgumentError(
                    "schedule is None and nothing was trained yet; give a schedule, such as "
                    "learn.plot_sched(cl.OneCycle(0.01), n_epochs=5)."
                )
            return self.recorder.plot_sched(axes)
        return plot_sched(*planned(self, schedule, n_epochs), axes)

    def fit(
        self, n_epochs: int, lr: Rate | Schedule = 1e-3, *, callbacks: Sequence[Callback] = ()
    ) -> None:
        """Train for ``n_epochs``.

        Args:
            n_epochs: passes over the training data, at least 1.
            lr: a constant learning rate; or two, (low, high), that of the first layers and that of
                the head, with that of the middle layers between them; or a schedule: `OneCycle`,
                `FlatCosine`, `WarmupCosine`, `Exponential`, or an object of one's own (see
                `Schedule`). Momentum is left alone unless the schedule sets it.
            callbacks: used in this fit only.

        Raises:
            ArgumentError: if an argument, or one of the Learner's, cannot work.
            TrainingError: if the model, its output or the loss does not fit the batches, or the
                weights are not finite before the first step.
            NonFiniteLossError: if the loss becomes NaN or infinite.
        """
        schedule = as_schedule(highest(lr, "lr"))
        self._fit(n_epochs, discriminative(lr, schedule), callbacks)

    def fit_one_cycle(
        self,
        n_epochs: int,
        lr_max: Rate = 1e-3,
        *,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
        anneal: str = "cos",
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Train for ``n_epochs`` with the 1cycle policy; see `OneCycle` for the arguments.

        ``lr_max`` may be two rates, (low, high), as in `fit`.

        Raises:
            ArgumentError, TrainingError, NonFiniteLossError: as `fit`.
        """
        lr = highest(lr_max, "lr_max")
        schedule = OneCycle(lr, div, div_final, pct_start, moms, anneal)
        self._fit(n_epochs, discriminative(lr_max, schedule), callbacks)

    def fine_tune(
        self,
        n_epochs: int,
        lr: float = 2e-3,
        *,
        freeze_epochs: int = 1,
        lr_mult: float = 100.0,
        pct_start: float = 0.3,
        div: float = 5.0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Train a pretrained network: the head alone first, then all layers.

        This is one fit of ``freeze_epochs + n_epochs`` epochs, and one run. In the first ones all
        but the head is frozen (see `freeze`), with a 1cycle up to ``lr``. Then all layers are
        trained, with a 1cycle up to ``lr / 2`` for the head and ``lr / 2 / lr_mult`` for the first
        layers. (The procedure and its values are fast.ai's.)

            >>> dls = cl.from_arrays(torch.rand(8, 1, 9, 9), [0, 1] * 4, layout="NCHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> learn.fine_tune(2, freeze_epochs=1)
            >>> learn
            Learner(Sequential with 25,666 parameters, DataLoaders 'arrays', cpu, 3 epochs trained)

        Args:
            n_epochs: epochs that train all layers.
            lr: the learning rate of the head.
            freeze_epochs: epochs before, that train the head alone; 0 for none.
            lr_mult: how many times the rate of the first layers is that of the head.
            pct_start: share of the steps of the second cycle that warm up.
            div: its first learning rate is its highest divided by this.
            callbacks: used in this fit only.

        Raises:
            ArgumentError, TrainingError, NonFiniteLossError: as `fit`.
        """
        check_whole("n_epochs", n_epochs, 1)
        check_whole("freeze_epochs", freeze_epochs, 0)
        if not lr_mult >= 1:
            raise ArgumentError(f"lr_mult must be a number of at least 1, got {lr_mult!r}.")
        cycles = OneCycle(lr, pct_start=0.99), OneCycle(lr / 2, div, pct_start=pct_start)
        epochs = freeze_epochs + n_epochs
        schedule = FineTune(*cycles, share=freeze_epochs / epochs)
        first = FreezeFirst(freeze_epochs)
        rates = (lr / lr_mult, lr)
        self._fit(epochs, discriminative(rates, schedule), [first, *callbacks])

    def freeze(self) -> None:
        """Freeze all layers but the head, until `unfreeze`.

        Their parameters get no gradients, and their batch norms stay in evaluation mode during
        training: they keep their statistics. The head is the last layer that has weights, and
        what follows it; of networks of timm, the library's classifier.

            >>> dls = cl.from_arrays(torch.rand(8, 1, 9, 9), [0, 1] * 4, layout="NCHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> learn.freeze()
            >>> [name for name, p in learn.model.named_parameters() if p.requires_grad]
            ['4.0.weight', '4.0.bias']
            >>> learn.unfreeze()
        """
        groups = layer_groups(self.model, self.dls.facts()["input_shape"])
        self._frozen.freeze(self.model, groups.get(HEAD, []))

    def unfreeze(self) -> None:
        """Restore what `freeze` has changed; what was frozen before stays frozen."""
        self._frozen.unfreeze(self.model)

    def record(self) -> RunRecord:
        """Everything that the last fit has recorded, from memory."""
        return record_of(self)

    def diagnose(self) -> Findings:
        """Say what is wrong with the last fit, from memory; see `convlens.diagnose`."""
        return Findings(diagnose(self.record()))

    def summary(self) -> Summary:
        """Shapes, parameters, multiplications and receptive field of each layer, for one image."""
        shape = self.dls.facts()["input_shape"]
        if shape is None:
            x, _ = first_batch(self.dls.train, "dls.train")
            shape = x.shape[1:]
        return summary(self.model, (1, *shape))

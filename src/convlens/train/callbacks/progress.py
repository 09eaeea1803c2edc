"""`Progress`: a bar while training and one line per epoch, in a terminal, a pipe or a notebook."""

from __future__ import annotations

import html
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from convlens.core.records import Epoch
from convlens.core.wording import metric_value, without_classes
from convlens.errors import warn
from convlens.train.callbacks.base import Callback

if TYPE_CHECKING:
    from convlens.train.learner import Learner

REFRESH_S = 0.1
"""The bar is redrawn at most this often, in seconds."""


class Progress(Callback):
    """Shows a bar while training and one line per epoch.

    In a terminal the bar is rich's; in a notebook it is one HTML output that is updated in place;
    anywhere else (a pipe, a log file) there is only the line per epoch. Without standard output
    there is nothing. A display that fails, as on a closed terminal or a full disk, is given up with
    a warning, and the training continues.
    """

    order = 70

    def __init__(self) -> None:
        self._display: PlainDisplay | None = None
        self._shown = 0.0
        self._loss = SmoothedLoss()

    def before_fit(self, learn: Learner) -> None:
        """Choose a display and start it."""
        self._shown, self._loss = 0.0, SmoothedLoss()
        try:
            self._display = choose_display()
        except Exception as error:  # a closed standard output
            self._give_up(error)
        self._show(lambda display: display.start(learn.n_steps))
        self._say_compiling(learn)

    def before_validation(self, learn: Learner) -> None:
        """Say why the first validation takes its time."""
        self._say_compiling(learn)

    def after_batch(self, learn: Learner) -> None:
        """Redraw the bar if it is due."""
        now = time.monotonic()
        if learn.training and now - self._shown >= REFRESH_S:
            self._shown = now
            self._update(learn)

    def after_epoch(self, learn: Learner) -> None:
        """Print the epoch's line."""
        self._update(learn)
        text = epoch_line(learn.recorder.epochs[-1], learn.n_epochs)
        self._show(lambda display: display.line(text))

    def after_fit(self, learn: Learner) -> None:
        """Say why the fit was stopped, if it says so, and remove the bar."""
        if learn.stop_reason:
            text = f"stopped: {learn.stop_reason}"
            self._show(lambda display: display.line(text))
        self._show(lambda display: display.stop())
        self._display = None

    def _say_compiling(self, learn: Learner) -> None:
        if learn.settings.compile and learn.epoch == 0:
            self._show(lambda display: display.update(learn.step, "compiling (once)"))

    def _update(self, learn: Learner) -> None:
        parts = [f"epoch {learn.epoch + 1}/{learn.n_epochs}"]
        loss = self._loss.update(learn.stepper.loss)
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        rate: float | None = learn.optimizer.param_groups[-1].get("lr")  # the last layers' group
        if rate is not None:
            parts.append(f"lr {float(rate):.3g}")
        self._show(lambda display: display.update(learn.step, "  ".join(parts)))

    def _show(self, show: Callable[[PlainDisplay], None]) -> None:
        if self._display is not None:
            try:
                show(self._display)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        display, self._display = self._display, None
        if display is not None:
            with suppress(Exception):  # rich has replaced sys.stdout
                display.stop()
        warn(f"Progress cannot be shown ({error}); training continues without.")


class SmoothedLoss:
    """A running mean of the losses that are there when the bar is drawn.

    Reading a loss waits for a GPU, so that one is copied without waiting, and read when the bar is
    drawn again.
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._on_its_way: tuple[Tensor, torch.cuda.Event] | None = None

    def update(self, loss: Tensor) -> float | None:
        """Add a loss; returns the mean of those that have arrived, None before the first."""
        if loss.device.type != "cuda":
            self._add(float(loss))
        elif self._on_its_way is None or self._on_its_way[1].query():
            if self._on_its_way is not None:
                self._add(float(self._on_its_way[0]))
            event = torch.cuda.Event()
            self._on_its_way = loss.to("cpu", non_blocking=True), event
            event.record(torch.cuda.current_stream(loss.device))
        return self._mean

    def _add(self, value: float) -> None:
        if math.isfinite(value):  # fp16 may skip a step whose loss is not
            self._mean = value if self._mean is None else 0.8 * self._mean + 0.2 * value


def epoch_line(epoch: Epoch, n_epochs: int) -> str:
    """One finished epoch in one line of text; of metrics for each class their mean."""
    parts = [f"epoch {epoch.epoch + 1}/{n_epochs}"]
    if epoch.train_loss is not None:
        parts.append(f"train loss {epoch.train_loss:.4f}")
    if epoch.valid_loss is not None:
        parts.append(f"valid loss {epoch.valid_loss:.4f}")
    for name, value in without_classes(epoch.metrics).items():
        parts.append(f"{name} {metric_value(name, value)}")
    return "  ".join([*parts, f"{epoch.wall_s:.1f} s"])


def choose_display() -> PlainDisplay | None:
    """The display for this process, None without standard output."""
    # A notebook's kernel has loaded IPython; importing it here would slow down every script.
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:  # a terminal's shell has none
        return NotebookDisplay(_show_html)
    stdout: TextIO | None = sys.stdout
    if stdout is None:  # it was closed when Python started
        return None
    return TerminalDisplay() if stdout.isatty() else PlainDisplay()


class PlainDisplay:
    """Prints lines only; base of the other displays."""

    def start(self, n_steps: int) -> None:
        """Begin a fit of ``n_steps``."""

    def update(self, done: int, text: str) -> None:
        """Show that ``done`` steps are finished."""

    def line(self, text: str) -> None:
        """Add a line that stays."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def stop(self) -> None:
        """End, also after an error."""


class TerminalDisplay(PlainDisplay):
    """A rich progress bar that is redrawn only when told to: rich's thread would slow training."""

    def start(self, n_steps: int) -> None:
        """Show an empty bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        class Screen(Console):
            def on_broken_pipe(self) -> None:
                """Raise, so that `Progress` handles it; rich would end the program."""
                raise BrokenPipeError("the pipe is closed")

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Screen(),  # rich's shared console keeps the stdout of its first use
            auto_refresh=False,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("starting", total=n_steps)

    def update(self, done: int, text: str) -> None:
        """Redraw."""
        self._bar.update(self._task, completed=done, description=text, refresh=True)

    def line(self, text: str) -> None:
        """Print above the bar."""
        self._bar.console.print(text, highlight=False)

    def stop(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class NotebookDisplay(PlainDisplay):
    """One HTML output that is updated in place, so that a long training leaves one output.

    Args:
        show: shows HTML and returns a function that replaces it.
    """

    def __init__(self, show: Callable[[str], Callable[[str], None]]) -> None:
        self._show = show
        self._lines: list[str] = []
        self._bar = ""

    def start(self, n_steps: int) -> None:
        """Show an empty bar."""
        self._n_steps, self._started = n_steps, time.monotonic()
        self._replace = self._show(self._html())

    def update(self, done: int, text: str) -> None:
        """Replace the output."""
        self._bar = (
            f'<progress value="{done}" max="{self._n_steps}" style="width:20em"></progress> '
            f"{html.escape(text)}, step {done:,} of {self._n_steps:,}{self._left(done)}"
        )
        self._replace(self._html())

    def _left(self, done: int) -> str:
        if not done:
            return ""
        seconds = (time.monotonic() - self._started) / done * (self._n_steps - done)
        return f", {timedelta(seconds=round(seconds))} left"

    def line(self, text: str) -> None:
        """Add a line to the same output."""
        self._lines.append(text)
        self._replace(self._html())

    def stop(self) -> None:
        """Leave the lines and remove the bar."""
        self._bar = ""
        self._replace(self._html())

    def _html(self) -> str:
        lines = "\n".join(html.escape(line) for line in self._lines)
        return f"<pre>{lines}</pre>{self._bar}"


def _show_html(text: str) -> Callable[[str], None]:
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    handle: Any = display(HTML(text), display_id=True)
    return lambda new: handle.update(HTML(new))

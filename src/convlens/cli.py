"""The command: parses its arguments, calls, prints."""

from __future__ import annotations

import json
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from convlens.errors import ArgumentError, ConvlensError

if TYPE_CHECKING:
    from convlens.records import Epoch
    from convlens.train import Learner

app = typer.Typer(
    help="Train convolutional networks and see inside them while they train.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

RUNS = Path("runs")


class Data(StrEnum):
    """What can be trained on."""

    mnist = "mnist"


class Norm(StrEnum):
    """Normalization layers."""

    batch = "batch"
    none = "none"


class Policy(StrEnum):
    """Schedules."""

    one_cycle = "one-cycle"
    constant = "constant"


class Device(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Network(StrEnum):
    """Networks that have a summary."""

    simple_cnn = "simple_cnn"


@app.callback(invoke_without_command=True)
def _root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option(help="Print the traceback of a failure.")] = False,  # noqa: ARG001
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"convlens {installed('convlens')}")
        raise typer.Exit


@app.command()
def train(
    data: Annotated[Data, typer.Argument(help="What to train on.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate; with one-cycle its peak.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 512,
    norm: Annotated[Norm, typer.Option(help="Normalization.")] = Norm.batch,
    schedule: Annotated[Policy, typer.Option(help="Schedule.")] = Policy.one_cycle,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    out: Annotated[Path, typer.Option(help="The folder that keeps the runs.")] = RUNS,
    watch: Annotated[bool, typer.Option(help="Watch every layer at every batch.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Print the traceback of a failure.")] = False,  # noqa: ARG001
) -> None:
    """Train the chapter's network, watch it, and write a report."""
    learn = _learner(data, batch_size, norm, seed, device, out, watch)
    try:
        if schedule is Policy.one_cycle:
            learn.fit_one_cycle(epochs, lr)
        else:
            learn.fit(epochs, lr)
    except ConvlensError:
        if learn.run_path is not None:
            typer.echo(f"What was recorded until then is in {learn.run_path}.", err=True)
        raise
    _finish(learn, as_json)


@app.command("report")
def make_report(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    out: Annotated[Path | None, typer.Option(help="The file; RUN/report.html if left out.")] = None,
    debug: Annotated[bool, typer.Option(help="Print the traceback of a failure.")] = False,  # noqa: ARG001
) -> None:
    """Make a run's report anew, from its directory alone."""
    from convlens._facade import report

    typer.echo(report(run, out))


@app.command("runs")
def list_all(
    folder: Annotated[Path, typer.Argument(help="The folder that keeps the runs.")] = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Print the traceback of a failure.")] = False,  # noqa: ARG001
) -> None:
    """List the runs in a folder."""
    from convlens.runs import list_runs

    found = list_runs(folder)
    if as_json:
        rows = [
            {"path": str(r.path), "status": r.status, "created": r.created, "epochs": r.n_epochs,
             "metrics": dict(r.metrics), "problem": r.problem}
            for r in found
        ]  # fmt: skip
        typer.echo(json.dumps(rows))
        return
    if not found:
        typer.echo(f"No runs in {folder}; make one with: convlens train mnist")
        return
    for info in found:
        metrics = "  ".join(f"{name} {_number(name, v)}" for name, v in info.metrics.items())
        when = info.created[:16].replace("T", " ")
        typer.echo(
            f"{info.name:<20}  {info.status:<10}  {when:<16}  {info.n_epochs:>3} epochs  "
            f"{info.problem or metrics}"
        )


@app.command("summary")
def show_summary(
    network: Annotated[Network, typer.Argument(help="The network.")],
    size: Annotated[int, typer.Option(help="Height and width of the input.")] = 28,
    channels: Annotated[int, typer.Option(help="Channels of the input.")] = 1,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    norm: Annotated[Norm, typer.Option(help="Normalization.")] = Norm.none,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Print the traceback of a failure.")] = False,  # noqa: ARG001
) -> None:
    """Print shapes, parameters, multiplications and receptive field of every layer."""
    from convlens import nets
    from convlens.geometry import summary

    builder = getattr(nets, network.value)
    model = builder(channels, classes, norm=None if norm is Norm.none else norm.value)
    table = summary(model, (1, channels, size, size))
    if as_json:
        typer.echo(json.dumps(table.to_dict()))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(table)
    else:
        typer.echo(str(table))


def main() -> NoReturn:
    """Run the command and exit: 0 done, 1 it failed, 2 its arguments cannot work."""
    usage_error: type[Exception] = typer.BadParameter.__mro__[
        1
    ]  # click's, or that of the click inside typer
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (ConvlensError, OSError, usage_error, typer.Abort, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        bad_arguments = isinstance(error, ArgumentError | usage_error)
        typer.echo(f"convlens: {_sentence(error)}", err=True)
        sys.exit(2 if bad_arguments else 1)


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "Interrupted."
    message = " ".join(getattr(error, "format_message", error.__str__)().split())
    return message if message.endswith((".", "?")) else f"{message}."


def _learner(
    data: Data, batch_size: int, norm: Norm, seed: int, device: Device, out: Path, watch: bool
) -> Learner:
    import torch

    from convlens import images, train
    from convlens.nets import simple_cnn

    where = None if device is Device.auto else device.value
    dls = getattr(images, data.value)(batch_size=batch_size, device=where, seed=seed)
    torch.manual_seed(seed)
    model = simple_cnn(1, len(dls.classes), norm=None if norm is Norm.none else norm.value)
    callbacks = [train.Pictures(), *([train.ActivationStats()] if watch else [])]
    return train.Learner(
        dls,
        model,
        metrics=[train.accuracy],
        callbacks=callbacks,
        seed=seed,
        base=out,
    )


def _finish(learn: Learner, as_json: bool) -> None:
    """Write the report and say how it ended."""
    from convlens._facade import report
    from convlens.doctor import diagnose
    from convlens.runs import open_run

    assert learn.run_path is not None
    run = open_run(learn.run_path)
    page = report(run)
    for finding in diagnose(run.record()):
        typer.echo(f"{finding.severity}: {finding.text}")
    epochs = learn.recorder.epochs
    accuracy = epochs[-1].metrics["accuracy"]
    typer.echo(f"accuracy  {accuracy:.2%}")
    typer.echo(f"run       {learn.run_path}")
    typer.echo(f"report    {page}")
    if as_json:
        result = {
            "accuracy": accuracy,
            "epochs": [_epoch_facts(epoch) for epoch in epochs],
            "run": str(learn.run_path),
            "report": str(page),
        }
        typer.echo(json.dumps(result))


def _epoch_facts(epoch: Epoch) -> dict[str, Any]:
    return {
        "train_loss": epoch.train_loss,
        "valid_loss": epoch.valid_loss,
        **epoch.metrics,
        "wall_s": epoch.wall_s,
    }


def _number(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4f}"

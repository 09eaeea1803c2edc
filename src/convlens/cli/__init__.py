"""The command: parses its arguments, calls, prints."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from convlens.cli.options import (
    LARGEST_SIDE,
    Help,
    Parser,
    image_shape,
    indices,
    positive_number,
    whole_number,
    word_list,
)
from convlens.core.terminal import printable
from convlens.errors import ArgumentError, ConvlensError, LayerNotFoundError

if TYPE_CHECKING:
    from torch import nn

    from convlens.core.records import Epoch
    from convlens.train import Learner
    from convlens.views.live import Address

NICE = 10
"""How far the page's server stands back behind what else runs on the machine."""

RECORD = "run.db"

RUNS = Path("runs")
"""The folder that keeps the runs, where none is named."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, as a shell gives it."""


def main() -> NoReturn:
    """Run the command and exit: 0 done, 1 it failed, 2 its arguments cannot work, 130 Ctrl-C."""
    arguments = _parser().parse_args()
    try:
        arguments.run_command(arguments)
    except KeyboardInterrupt:
        _fail("Interrupted.", INTERRUPTED)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        _fail(_sentence(error), 2 if isinstance(error, ArgumentError | LayerNotFoundError) else 1)
    sys.exit(0)


def _sentence(error: Exception) -> str:
    """What went wrong, without the names of functions' arguments, which a user has not written."""
    if isinstance(error, ConvlensError):
        return re.sub(r"^input_shape(?= )", "the input", re.sub(r"^\w+=(?=\S)", "", str(error)))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be read or written ({error.strerror})."
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
        return "This takes more memory than there is; give a smaller image, batch or model."
    return f"{type(error).__name__}: {error} (--debug prints the traceback.)"


@contextmanager
def _stoppable() -> Generator[None]:
    """Let Ctrl-C unwind what must be tidied up, such as an open run; a second one does not wait."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def train(arguments: argparse.Namespace) -> None:
    """Train the chapter's network, watch it, and write a report."""
    learn = _learner(arguments)
    with _stoppable():
        try:
            if arguments.schedule == "one-cycle":
                learn.fit_one_cycle(arguments.epochs, arguments.lr)
            else:
                learn.fit(arguments.epochs, arguments.lr)
            _finish(learn, arguments.json)
        except (Exception, KeyboardInterrupt):
            if learn.run_path is not None:
                _print(f"What was recorded until then is in {learn.run_path}.", sys.stderr)
            raise


def make_report(arguments: argparse.Namespace) -> None:
    """Make a run's report anew, from its directory alone."""
    from convlens._api import report

    _check_folder(arguments.run, "the folder of one run")
    with _stoppable():
        _print(str(report(arguments.run, arguments.out)))


def list_all(arguments: argparse.Namespace) -> None:
    """List the runs in a folder."""
    from convlens.runs import list_runs

    folder: Path = arguments.folder
    _check_folder(folder, "the folder that keeps the runs")
    if os.path.isfile(folder / RECORD):  # noqa: PTH113 - Path.is_file raises where one may not look
        raise ArgumentError(
            f"{str(folder)!r} is one run; give the folder that keeps it, "
            f"{str(folder.resolve().parent)!r}."
        )
    found = list_runs(folder)
    if arguments.json:
        rows = [
            {"path": str(info.path), "status": info.status, "created": info.created,
             "epochs": info.n_epochs, "metrics": dict(info.metrics), "problem": info.problem}
            for info in found
        ]  # fmt: skip
        _print(json.dumps(rows))
        return
    if not found:
        _print(f"No runs in {folder}; make one with: convlens train mnist")
    for info in found:
        metrics = "  ".join(f"{name} {_number(name, v)}" for name, v in info.metrics.items())
        name, when = printable(info.name), info.created[:16].replace("T", " ")
        _print(
            f"{name:<20}  {info.status:<10}  {when:<16}  {info.n_epochs:>3} epochs  "
            f"{info.problem or metrics}"
        )


def view(arguments: argparse.Namespace) -> None:
    """Show runs in the browser, also while they are trained."""
    from convlens.views.live import make_address, serve

    address = make_address(
        arguments.address, arguments.port, arguments.token, tuple(arguments.host_name)
    )
    for place in arguments.runs:
        _check_folder(place, "the folder that keeps the runs, or the folder of one run")

    def ready(served: Address) -> None:
        import webbrowser

        _print(f"The page is at {served.url_with_token} (Ctrl+C ends it).")
        if arguments.browser:
            webbrowser.open(served.url_with_token)
        with suppress(AttributeError, OSError):  # a training beside it comes first,
            os.nice(NICE)  # and the browser, were it started from here, would stand back too

    with _stoppable(), suppress(KeyboardInterrupt):
        serve(arguments.runs or [RUNS], address, ready)


def _check_folder(folder: Path, give: str) -> None:
    """A folder; only the one where the runs usually are may come later."""
    if folder.exists() and not folder.is_dir():
        what = "a file, not a folder"
        if folder.name == RECORD:
            what, give = "the file inside a run", f"its folder, {str(folder.parent)!r}"
        raise ArgumentError(f"{str(folder)!r} is {what}; give {give}.")
    if not folder.exists() and folder != RUNS:
        raise ArgumentError(f"{str(folder)!r} does not exist; give {give}.")


def show_summary(arguments: argparse.Namespace) -> None:
    """Print shapes, parameters, multiplications, receptive field and memory of every layer."""
    from convlens.geometry import summary

    model, shape = _model(arguments)
    table = summary(
        model,
        (1, *shape),
        depth=arguments.depth,
        fold=arguments.fold,
        columns=arguments.columns,
        batch_size=arguments.batch_size,
    )
    if arguments.json:
        _print(json.dumps(table.to_dict()))
    elif arguments.markdown:
        for line in table.to_markdown().split("\n"):
            _print(line)
    else:
        table.print()


def show_field(arguments: argparse.Namespace) -> None:
    """Draw what one unit of a layer sees of an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from convlens.data import load_image
    from convlens.geometry import show_field as draw

    model, shape = _model(arguments)
    if len(shape) != 3:
        raise ArgumentError(
            f"--input {'x'.join(map(str, shape))} is no image, and a field is drawn on one; give "
            "CxHxW, or ask convlens.receptive_field."
        )
    asked = arguments.input is not None or arguments.size is not None
    image = load_image(arguments.image, (shape[1], shape[2]) if asked else None)
    figure = Figure(figsize=(6, 6 * image.shape[1] / image.shape[2] + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    layer: str = arguments.layer
    index = int(layer) if layer.removeprefix("-").isdigit() and not _has(model, layer) else layer
    ax = draw(model, image, index, arguments.unit, figure.subplots())
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if arguments.out.suffix[1:].lower() not in kinds:
        raise ArgumentError(
            f"--out {arguments.out} is no kind of picture; give a name that ends in one of "
            f"{', '.join(kinds)}."
        )
    if not arguments.out.parent.is_dir():
        raise ArgumentError(
            f"--out {arguments.out} lies in a folder that does not exist; make it, or give another "
            "name."
        )
    figure.savefig(arguments.out, dpi=150)
    _print(f"{' '.join(ax.get_title().split())}: {arguments.out}")


def _parser() -> Parser:
    from importlib.metadata import version

    parser = Parser(
        prog="convlens",
        description="Train convolutional networks and see inside them while they train.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"convlens {version('convlens')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for run_command, name, add_arguments in (
        (train, "train", _add_train),
        (make_report, "report", _add_report),
        (view, "view", _add_view),
        (list_all, "runs", _add_runs),
        (show_summary, "summary", _add_summary),
        (show_field, "field", _add_field),
    ):
        command = commands.add_parser(
            name,
            help=run_command.__doc__,
            description=run_command.__doc__,
            formatter_class=Help,
            allow_abbrev=False,
        )
        add_arguments(command)
        command.add_argument(
            "--debug", action="store_true", help="print the traceback of a failure"
        )
        command.set_defaults(run_command=run_command)
    return parser


def _add_train(command: Parser) -> None:
    add = command.add_argument
    add("data", choices=["mnist"], help="what to train on")
    add("--epochs", type=whole_number(1), default=5, help="passes over the training images")
    add("--lr", type=positive_number, default=0.1, help="learning rate; with one-cycle its peak")
    add("--batch-size", type=whole_number(1), default=512, help="images per step")
    add("--norm", choices=["batch", "none"], default="batch", help="normalization")
    add("--schedule", choices=["one-cycle", "constant"], default="one-cycle", help="schedule")
    add(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="seed of the weights and of the order of the images",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    add("--out", type=Path, default=RUNS, metavar="DIR", help="folder that keeps the runs")
    add("--watch", action=argparse.BooleanOptionalAction, default=True,
        help="watch every layer at every batch")  # fmt: skip
    add("--gradients", action="store_true", help="watch every parameter's gradient too")
    add("--updates", action="store_true", help="and what each step adds to it")
    add("--json", action="store_true", help="end with one line of JSON")


def _add_report(command: Parser) -> None:
    command.add_argument("run", type=Path, help="the run's directory")
    command.add_argument("--out", type=Path, metavar="FILE", help="instead of RUN/report.html")


def _add_view(command: Parser) -> None:
    add = command.add_argument
    add("runs", type=Path, nargs="*", default=[RUNS], help="folders of runs, or of one run each")
    add("--port", type=whole_number(0, 65535), default=5006, help="0 for a free one")
    add("--address", default="127.0.0.1", help="another one can be reached by other machines")
    add("--token", help="what a browser must know; 'auto' makes one")
    add("--host-name", action="append", default=[], metavar="NAME",
        help="a name by which others reach this machine")  # fmt: skip
    add("--browser", action=argparse.BooleanOptionalAction, default=True, help="open the browser")


def _add_runs(command: Parser) -> None:
    command.add_argument("folder", type=Path, nargs="?", default=RUNS, help="where to look")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_model(command: Parser) -> None:
    add = command.add_argument
    add("model", help="simple_cnn, torchvision:NAME, timm:NAME, or file.py:object, which runs that "
        "Python file with all that it does")  # fmt: skip
    add("--input", type=image_shape, metavar="CxHxW",
        help="the image, such as 3x224x224, if not what the model is made for")  # fmt: skip
    add(
        "--size",
        type=whole_number(1, LARGEST_SIDE),
        help="height and width of the image, instead of --input",
    )
    add(
        "--channels",
        type=whole_number(1, LARGEST_SIDE),
        help="channels of the image, instead of --input",
    )
    add("--classes", type=whole_number(1), help="number of classes")
    add("--norm", choices=["batch", "none"], default="batch", help="normalization of simple_cnn")


def _add_summary(command: Parser) -> None:
    _add_model(command)
    add = command.add_argument
    add("--columns", type=word_list, metavar="A,B",
        help="columns to show, such as kind,output,parameters")  # fmt: skip
    add("--depth", type=whole_number(0), help="fold what lies deeper in the model")
    add(
        "--fold",
        type=word_list,
        default=(),
        metavar="A,B",
        help="layers or kinds of layers to fold",
    )
    add(
        "--batch-size",
        type=whole_number(1),
        default=1,
        help="images in a batch, for the memory of training",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")


def _add_field(command: Parser) -> None:
    _add_model(command)
    add = command.add_argument
    add("--layer", required=True, help="the layer's name, or its index among those that run")
    add("--unit", required=True, type=indices, metavar="ROW,COLUMN", help="its place on the grid")
    add("--image", required=True, type=Path,
        help="an image file, scaled to the input if that is given")  # fmt: skip
    add("--out", type=Path, default=Path("field.png"), metavar="FILE", help="the picture")


def _model(arguments: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    """The model that was named, and (C, H, W) of its input."""
    from convlens.models.by_name import find_model

    if arguments.input is not None and (arguments.size or arguments.channels) is not None:
        raise ArgumentError("--input says what --size and --channels say; give one or the other.")
    norm = None if arguments.norm == "none" else arguments.norm
    given = arguments.input[0] if arguments.input else arguments.channels
    model, made_for = find_model(arguments.model, given, arguments.classes, norm)
    if arguments.input is not None:
        return model, arguments.input
    if made_for is None and arguments.size is None:
        raise ArgumentError(
            f"{arguments.model!r} does not say what its input is; give --input, such as --input "
            "3x224x224."
        )
    channels, height, width = made_for or (3, 0, 0)
    channels = channels if arguments.channels is None else arguments.channels
    size = (height, width) if arguments.size is None else (arguments.size,) * 2
    return model, (channels, *size)


def _has(model: nn.Module, name: str) -> bool:
    return any(name == known for known, _ in model.named_modules())


def _learner(arguments: argparse.Namespace) -> Learner:
    import torch

    from convlens import data, train
    from convlens.models import simple_cnn

    class Announce(train.Callback):
        order = -100  # before a callback that takes its time

        def before_fit(self, learn: Learner) -> None:
            """The run is there from now on."""
            _print(f"Watch it: convlens view {shlex.quote(str(learn.run_path))}")

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("--device cuda: torch finds no such device here; give cpu, or auto.")
    dls = getattr(data, arguments.data)(
        batch_size=arguments.batch_size,
        device=None if arguments.device == "auto" else arguments.device,
        seed=arguments.seed,
    )
    torch.manual_seed(arguments.seed)
    norm = None if arguments.norm == "none" else arguments.norm
    return train.Learner(
        dls,
        simple_cnn(1, len(dls.classes), norm=norm),
        metrics=[train.accuracy],
        callbacks=[
            Announce(),
            train.Pictures(),
            *([train.ActivationStats()] if arguments.watch else []),
            *([train.GradientStats()] if arguments.gradients else []),
            *([train.UpdateStats()] if arguments.updates else []),
        ],
        seed=arguments.seed,
        base=arguments.out,
    )


def _finish(learn: Learner, as_json: bool) -> None:
    """Write the report and say how it ended."""
    from convlens._api import report
    from convlens.doctor import diagnose
    from convlens.runs import open_run

    assert learn.run_path is not None
    run = open_run(learn.run_path)
    page = report(run)
    for finding in diagnose(run.record()):
        _print(f"{finding.severity}: {finding.text}")
    epochs = learn.recorder.epochs
    accuracy = epochs[-1].metrics["accuracy"]
    _print(f"accuracy  {accuracy:.2%}")
    _print(f"run       {learn.run_path}")
    _print(f"report    {page}")
    _print(f"page      convlens view {shlex.quote(str(learn.run_path))}")
    if as_json:
        facts = [_epoch_facts(epoch) for epoch in epochs]
        result = {"accuracy": accuracy, "epochs": facts, "run": str(learn.run_path)}
        _print(json.dumps({**result, "report": str(page)}))


def _epoch_facts(epoch: Epoch) -> dict[str, Any]:
    losses = {"train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss}
    return {**losses, **epoch.metrics, "wall_s": epoch.wall_s}


def _number(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4f}"


def _print(line: str, stream: Any = None) -> None:  # noqa: ANN401 — any text stream
    """Print one line, whatever names in it hold."""
    print(printable(line), file=stream or sys.stdout, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    _print(f"convlens: {' '.join(message.split())}", sys.stderr)
    sys.exit(code)

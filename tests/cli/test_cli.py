"""The command: once as a process of its own, otherwise by its entry point in this process."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small_mnist import small_mnist

import convlens as cl
from convlens.cli import main
from convlens.core.steps import StepSeries
from convlens.runs import create_run


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def convlens(monkeypatch, capsys, tmp_path):
    """Calls the entry point as the installed command does, in a folder of its own."""

    def call(*arguments, cwd=tmp_path):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["convlens", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        text = capsys.readouterr()
        return Done(int(end.value.code or 0), text.out, text.err)

    return call


@pytest.fixture
def small(monkeypatch):
    """A training takes a second."""
    monkeypatch.setattr("convlens.data.mnist", small_mnist)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One epoch, by a process of its own with warnings as errors."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "-W", "error", "-m", "convlens", "train", "mnist"]
    done = subprocess.run(
        [*command, "--epochs", "1", "--lr", "0.06", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return folder, done


def test_train_prints_epochs_and_one_last_line_of_json(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last)
    assert lines[0] == "Watch it: convlens view runs/mnist-0001"
    assert lines[1].startswith("epoch 1/1  train loss")
    assert result["run"] == "runs/mnist-0001"
    assert result["accuracy"] > 0.97
    (epoch,) = result["epochs"]
    assert set(epoch) == {"train_loss", "valid_loss", "accuracy", "wall_s"}
    assert epoch["accuracy"] == result["accuracy"]
    assert (folder / result["report"]).stat().st_size > 100_000
    assert any(line.startswith("accuracy  9") for line in lines)
    assert any(line == "run       runs/mnist-0001" for line in lines)

    run = cl.open_run(folder / "runs" / "mnist-0001")
    assert run.meta["status"] == "finished"
    assert "train mnist --epochs 1" in run.meta["command"]
    assert run.meta["seed"] == 0
    assert len(run.steps) == 118
    assert len(run.activation_stats) == 10
    assert {picture.name for picture in run.pictures()} == {"batch", "worst"}


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_numbers_and_a_new_run(convlens):
    both = [convlens("train", "mnist", "--epochs", 1, "--no-watch", "--json") for _ in range(2)]
    a, b = (json.loads(done.stdout.splitlines()[-1]) for done in both)
    assert (a["run"], b["run"]) == ("runs/mnist-0001", "runs/mnist-0002")
    assert a["epochs"][0]["train_loss"] == b["epochs"][0]["train_loss"]
    assert a["accuracy"] == b["accuracy"]


@pytest.mark.usefixtures("small")
def test_without_watching_and_elsewhere(convlens, tmp_path):
    done = convlens(
        "train", "mnist", "--epochs", 1, "--no-watch", "--norm", "none", "--schedule", "constant",
        "--lr", 0.001, "--batch-size", 200, "--device", "cpu", "--seed", 1, "--out", "here/there",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    run = cl.open_run(tmp_path / "here" / "there" / "mnist-0001")
    assert len(run.activation_stats) == 0
    assert run.meta["schedule"]["class"] == "Constant"
    assert run.meta["data"]["batch_size"] == 200


def test_report_anew_and_elsewhere(convlens, tmp_path):
    writer = create_run(directory=tmp_path / "runs" / "mine")
    writer.write_steps(StepSeries(np.arange(3), np.zeros(3, int), np.ones(3), np.arange(3.0), {}))
    writer.close()
    page = tmp_path / "runs" / "mine" / "report.html"
    done = convlens("report", "runs/mine")
    assert (done.code, done.stdout.strip()) == (0, "runs/mine/report.html")
    assert page.exists()
    convlens("report", "runs/mine", "--out", "other.html")
    # Bokeh numbers its models through a process, and a number may be a digit longer.
    other = (tmp_path / "other.html").stat().st_size
    assert other == pytest.approx(page.stat().st_size, rel=0.01)


def test_runs(trained, convlens, tmp_path):
    folder, _ = trained
    done = convlens("runs", cwd=folder)
    assert done.stdout.startswith("mnist-0001")
    assert "finished" in done.stdout
    assert "accuracy 9" in done.stdout
    listed = json.loads(convlens("runs", "--json", cwd=folder).stdout)
    assert listed[0]["epochs"] == 1
    assert convlens("runs", cwd=tmp_path).stdout == (
        "No runs in runs; make one with: convlens train mnist\n"
    )


def test_runs_of_what_keeps_no_runs(trained, convlens, tmp_path):
    (tmp_path / "a file").touch()
    run = trained[0] / "runs" / "mnist-0001"
    for place, sentence in {
        "nope": "'nope' does not exist; give the folder that keeps the runs.",
        "a file": "'a file' is a file, not a folder; give the folder that keeps the runs.",
        run: f"'{run}' is one run; give the folder that keeps it, '{run.parent}'.",
    }.items():
        done = convlens("runs", place)
        assert (done.code, done.stdout, done.stderr) == (2, "", f"convlens: {sentence}\n")


def test_what_records_say_cannot_steer_the_terminal(convlens, tmp_path):
    name = "a\x1b[2J\nb\u202etxt"
    writer = create_run(directory=tmp_path / "runs" / name)
    writer.write_meta({"created": "9\x9b\n9"})
    writer.close()
    done = convlens("runs")
    assert done.code == 0
    assert done.stdout.startswith("a\\x1b[2J\\nb\\u202etxt  finished    9\\x9b\\n9")
    assert len(done.stdout.splitlines()) == 1
    (tmp_path / "runs" / name / "run.db").write_bytes(b"damaged")
    text = convlens("runs").stdout + convlens("report", f"runs/{name}").stderr
    assert len(text.splitlines()) == 2
    assert text.count("unreadable") == 1
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_summary(convlens):
    done = convlens("summary", "simple_cnn")
    assert done.code == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "8→16" in line)
    assert "1,168" in row
    assert "56,448" in row
    facts = json.loads(convlens("summary", "simple_cnn", "--json").stdout)
    assert facts["totals"]["parameters"] == 30_542


def test_summary_in_a_terminal(convlens, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "56,448" in convlens("summary", "simple_cnn").stdout


def test_summary_of_others_models_in_the_shape_that_is_asked_for(convlens):
    done = convlens(
        "summary", "torchvision:resnet18", "--depth", 1, "--batch-size", 32,
        "--columns", "output,parameters,kept",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "ResNet, one image, (N, C, H, W) = (1, 3, 224, 224)"
    assert lines[1].split() == ["layer", "output", "parameters", "kept"]
    assert lines[7].split() == ["layer1", "1×64×56×56", "147,968", "7.23", "MB"]
    assert "training with a batch of 32: parameters 46.8 MB" in done.stdout
    facts = json.loads(
        convlens("summary", "resnet18", "--size", 64, "--classes", 10, "--json").stdout
    )
    assert facts["input_shape"] == [1, 3, 64, 64]
    assert facts["rows"][-1]["output_shape"] == [1, 10]
    page = convlens("summary", "timm:resnet18", "--fold", "BasicBlock", "--markdown").stdout
    assert "| layer1.0 | BasicBlock |" in page
    assert convlens("summary", "simple_cnn", "--input", "3x20x24").stdout.startswith(
        "Sequential, one image, (N, C, H, W) = (1, 3, 20, 24)"
    )


MODELS_FILE = """
from beside import width
from torch import nn

model = nn.Conv1d(width, 2, 3)

def make():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())

class Net(nn.Linear):
    def __init__(self):
        super().__init__(6, 2)

number = 4

def needs(width):
    return model

class Broken(nn.Module):
    def __init__(self):
        raise KeyError("sizes")

class Line(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv1d(2, 4, 3))
"""


def test_summary_of_a_files_models(convlens, tmp_path):
    (tmp_path / "nets_of_mine.py").write_text(MODELS_FILE)
    (tmp_path / "beside.py").write_text("width = 5")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    for name, shape, kind in (
        ("model", "5x9", "Conv1d"), ("make", "1x8x8", "Sequential"), ("Net", "6", "Net"),
    ):  # fmt: skip
        done = convlens("summary", f"nets_of_mine.py:{name}", "--input", shape)
        assert done.stdout.startswith(f"{kind}, one image, "), done.stderr
    for arguments, sentence in (
        (["nets_of_mine.py:modl", "--input", "5x9"], "has no 'modl'; it has model"),
        (
            ["nets_of_mine.py:number", "--input", "5x9"],
            "must be a torch module, its class, or a function without arguments",
        ),
        (["nets_of_mine.py:make"], "does not say what its input is; give --input, such as --input"),
        (["nets_of_mine.py"], "is a file; name the model in it: nets_of_mine.py:NAME"),
        (["nets_of_mine.py:"], "has no ''; it has model, make, Net."),
        (["nets_of_mine.py:needs"], "calling it without arguments raised TypeError: needs() miss"),
        (["nets_of_mine.py:Broken"], "calling it without arguments raised KeyError: 'sizes'"),
        (
            ["broken.py:make"],
            "running 'broken.py' raised ZeroDivisionError: division by zero.",
        ),
        (
            ["nowhere.py:make"],
            "the file 'nowhere.py' does not exist; give simple_cnn, resnet",
        ),
        (["leaves.py:make"], "running 'leaves.py' raised SystemExit: 3."),
    ):
        done = convlens("summary", *arguments)
        assert done.code == 2
        assert sentence in done.stderr
    assert str(tmp_path) not in sys.path


def test_torchvisions_models_are_made_for_their_size_and_bring_no_weights(monkeypatch):
    from convlens.models.by_name import find_model

    def refuse(*arguments, **options):
        raise AssertionError("it downloads")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    assert find_model("torchvision:fcn_resnet50")[1] == (3, 224, 224)
    assert find_model("torchvision:vit_l_16")[1] == (3, 224, 224)
    model, made_for = find_model("torchvision:inception_v3")
    assert made_for == (3, 299, 299)
    assert cl.summary(model, (1, 3, 299, 299)).memory.problem == ""


def test_a_library_that_is_not_installed_is_named(convlens, monkeypatch):
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    for library in ("torchvision", "timm"):
        done = convlens("summary", f"{library}:resnet18")
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr == (
            f"convlens: '{library}:resnet18' needs {library}, which is not installed; install it "
            f"with: pip install {library}\n"
        )
    assert "'resnet18' is not known" in convlens("summary", "resnet18").stderr


def test_field(convlens, tmp_path):
    from PIL import Image

    Image.new("RGB", (96, 64), (200, 30, 90)).save(tmp_path / "cat.png")
    done = convlens(
        "field", "resnet18", "--layer", "layer2.1.conv2", "--unit", "3,4", "--image", "cat.png"
    )
    assert done.code == 0, done.stderr
    assert done.stdout == (
        "layer2.1.conv2, unit 3, 4 of 8×12 sees rows 0–63, columns 0–81: 64×82 of 99×99: "
        "field.png\n"
    )
    with Image.open(tmp_path / "field.png") as picture:
        assert picture.width == 900
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10
    done = convlens(
        "field", "simple_cnn", "--layer", "1.0", "--unit", "2,3", "--image", "cat.png",
        "--size", 28, "--out", "other.svg",
    )  # fmt: skip
    assert "sees rows 4–12, columns 8–16: 9×9: other.svg" in done.stdout
    assert (tmp_path / "other.svg").read_text().startswith("<?xml")
    done = convlens(
        "field", "simple_cnn", "--layer", "-1", "--unit", "0", "--image", "cat.png", "--size", 28
    )
    assert done.stdout.startswith("the model, unit 0 of 10 sees rows 0–27, columns 0–27: 28×28 of")
    for arguments, sentence in (
        (["--image", "dog.png"], "convlens: 'dog.png' does not exist; give an image file."),
        (["--out", "field.doc"], "--out must end in one of "),
        (
            ["--out", "no/field.png"],
            "--out no/field.png lies in a folder that does not exist; make",
        ),
        (["--unit", "3,99"], "unit must be inside the 7×7 grid of layer '1.0', got (3, 99)"),
        (["--unit", "a"], "argument --unit: must be indices such as 3,3, got 'a'"),
        (["--layer", "conv9"], "convlens: 'conv9' is not among the"),
        (["--input", "2x28"], "--input must be an image CxHxW, got 2x28; for other inputs use"),
    ):
        given = {"--layer": "1.0", "--unit": "3,4", "--image": "cat.png", "--size": "28"}
        given |= {arguments[0]: arguments[1]}
        if "--input" in given:
            del given["--size"]
        done = convlens("field", "simple_cnn", *[word for pair in given.items() for word in pair])
        assert done.code == 2
        assert sentence in done.stderr


def test_version(convlens):
    assert convlens("--version").stdout == f"convlens {cl.__version__}\n"


def test_the_commands_of_the_documentation_exist(convlens):
    root = Path(__file__).parents[2]
    texts = [p.read_text("utf-8") for p in (root / "README.md", *(root / "docs").glob("*.md"))]
    blocks = re.findall(r"^```(.*?)^```", "".join(texts), re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^convlens ([^#\n]*)", "".join(blocks), re.MULTILINE)
    assert len(lines) > 10
    for line in lines:  # an unknown command or option is refused before help is given
        assert convlens(*line.split(), "--help").code == 0, line


def test_help(convlens):
    text = convlens("--help").stdout
    for command in ("train", "report", "runs", "summary", "field"):
        assert command in text
    for command in ("summary", "field"):
        text = " ".join(convlens(command, "--help").stdout.split())
        assert "file.py:object, which runs that Python file with all that it does" in text
    train, view = convlens("train", "--help").stdout, convlens("view", "--help").stdout
    assert "(default: 0)" in train
    assert "(default: False)" not in train + view
    assert "one run each (default: runs)" in " ".join(view.split())
    assert "Posix" not in view
    assert "[]" not in view


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "cifar"], "DATA 'cifar' is no folder, no .csv file and none of"),
        (["train"], "the following arguments are required: DATA; see convlens train --help."),
        (["train", "mnist", "--epochs", "many"], "--epochs: must be a whole number, got 'many'"),
        (["train", "mnist", "--epochs", "0"], "argument --epochs: must be at least 1, got 0; see"),
        (
            ["train", "mnist", "--lr", "-1"],
            "--lr: must be a positive number such as 0.01, or find, got '-1'",
        ),
        (
            ["train", "mnist", "--lr", "nan"],
            "--lr: must be a positive number such as 0.01, or find",
        ),
        (
            ["train", "mnist", "--lr", "1e999"],
            "--lr: must be a positive number such as 0.01, or find",
        ),
        (["train", "mnist", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["train", "mnist", "--batch-size", "9" * 20], "--batch-size: must be at most 1000000000"),
        (["train", "mnist", "--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["train", "mnist", "--seed", str(2**64)], "--seed: must be at most 18446744073709551615"),
        (["train", "mnist", "--device", "cuda"], "--device cuda: torch finds no such device here"),
        (["train", "mnist", "--norm", "layer"], "argument --norm: invalid choice: 'layer' (choose"),
        (["view", "--port", "65536"], "argument --port: must be at most 65535, got 65536"),
        (["view", "--address", "0.0.0.0"], "convlens: '0.0.0.0' can be reached by other machines"),
        (["view", "--token", "short"], "convlens: token has 5 characters; give at least 16"),
        (["report", "nowhere"], "convlens: 'nowhere' does not exist; give the folder of one run."),
        (["summary", "simple_cnn", "--size", "0"], "--size: must be at least 1, got 0"),
        (["summary", "simple_cnn", "--size", "9" * 9], "--size: must be at most 1000000, got 9"),
        (["summary", "simple_cnn", "--depth", "-1"], "--depth: must be at least 0, got -1"),
        (["summary", "simple_cnn", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["summary", "simple_cnn", "--columns", "cost"], "columns has the unknown name 'cost'"),
        (["summary", "simple_cnn", "--fold", "conv9"], "convlens: 'conv9' is neither a layer nor"),
        (["summary", "simple_cnn", "--input", "wide"], "without the batch, got 'wide'"),
        (["summary", "simple_cnn", "--input", "3"], "convlens: the input does not fit the model:"),
        (
            ["summary", "simple_cnn", "--input", "1x8x8", "--size", "8"],
            "--input says what --size and --channels say",
        ),
        (["summary", "simple_cnn", "--input", "1x0x28"], "without the batch, got '1x0x28'"),
        (
            ["summary", "simple_cnn", "--input", "1x1x1x28x28"],
            "such as 3x224x224, without the batch",
        ),
        (
            ["summary", "simple_cnn", "--input", "3x9999999x9"],
            "batch, got '3x9999999x9'",
        ),
        (["summary", "simple_cnn", "--classes", "0"], "--classes: must be at least 1, got 0"),
        (["summary", "simple_cnn", "--channels", "0"], "--channels: must be at least 1, got 0"),
        (["summary", "simple_cn"], "convlens: 'simple_cn' is not known; give simple_cnn, resnet, "),
        (["summary", "timm:resnet19"], "timm has no model 'resnet19' among "),
        (["summary", "torchvision:xyzzy"], "torchvision has no model 'xyzzy' among its "),
        (["nothing"], "argument COMMAND: invalid choice: 'nothing' (choose from"),
        (
            ["train", "mnist", "--norm", "none", "--pretrained", "weights.pth"],
            "--norm none has no pretrained weights; leave one of them out.",
        ),
        (["train", "mnist", "--ep", "1"], "there is no option --ep (did you mean --epochs?); see"),
        (["train", "mnist", "--epoch=3"], "no option --epoch (did you mean --epochs?); see convle"),
        (["train", "mnist", "--no-wacth"], "no option --no-wacth (did you mean --no-watch?)"),
        (["field", "simple_cnn", "--layr", "1"], "no option --layr (did you mean --layer?)"),
        (["runs", "--zzz"], "convlens: there is no option --zzz; see convlens runs --help."),
        (["--vresion"], "there is no option --vresion (did you mean --version?); see convlens --h"),
        ([], "the following arguments are required: COMMAND; see convlens --help."),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence(arguments, sentence, convlens, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has the device that the test expects to be missing")
    done = convlens(*arguments)
    assert done.code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("convlens: ")
    assert sentence in done.stderr
    assert not (tmp_path / "runs").exists()


def test_view_takes_folders_only(convlens, tmp_path):
    where = "give the folder that keeps the runs, or the folder of one run."
    (tmp_path / "a.txt").touch()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.db").touch()
    for place, sentence in {
        "nowhere": f"'nowhere' does not exist; {where}",
        "a.txt": f"'a.txt' is a file, not a folder; {where}",
        "x/run.db": "'x/run.db' is the file inside a run; give its folder, 'x'.",
    }.items():
        done = convlens("view", place, "--no-browser", "--port", 0)
        assert (done.code, done.stdout, done.stderr) == (2, "", f"convlens: {sentence}\n")


def test_what_comes_after_two_dashes_is_no_option(convlens, tmp_path):
    create_run(directory=tmp_path / "--mine").close()
    done = convlens("report", "--", "--mine")
    assert (done.code, done.stdout, done.stderr) == (0, "--mine/report.html\n", "")


def test_a_failure_exits_1_with_one_sentence(convlens, tmp_path):
    (tmp_path / "run.db").write_text("damaged")
    done = convlens("report", ".")
    assert done.code == 1
    assert done.stderr.startswith("convlens: ")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_folders_and_files_exit_2(convlens, tmp_path):
    create_run("mine", tmp_path / "runs").close()
    (tmp_path / "file").touch()
    for arguments, sentence in (
        (["report", "nope"], "'nope' does not exist; give the folder of one run."),
        (["report", "runs"], "it holds the runs 'mine-0001': give one of those."),
        (["report", "runs/mine-0001", "--out", "no/a.html"], "--out no/a.html lies in a folder"),
        (["report", "runs/mine-0001", "--out", "runs"], "--out runs is a folder; give"),
        (["train", "mnist", "--out", "file"], "--out must be a folder, got the file 'file'."),
    ):
        done = convlens(*arguments)
        assert (done.code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert sentence in done.stderr


def test_debug_adds_the_traceback(convlens):
    done = convlens("report", ".", "--debug")
    assert done.code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("convlens: ")


def test_the_keyboard_ends_it_with_a_word(convlens, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("convlens.runs.list_runs", interrupted)
    done = convlens("runs")
    assert (done.code, done.stderr) == (130, "convlens: Interrupted.\n")


def test_too_little_memory_and_an_unforeseen_failure_are_sentences(convlens, monkeypatch):
    done = convlens("summary", "simple_cnn", "--classes", 10**9, "--channels", 10**6)
    assert (done.code, done.stderr) == (
        1, "convlens: This takes more memory than there is; give a smaller image, batch or model.\n"
    )  # fmt: skip

    def broken(folder):
        raise RuntimeError("out of something")

    monkeypatch.setattr("convlens.runs.list_runs", broken)
    done = convlens("runs")
    assert (done.code, done.stderr) == (
        1, "convlens: RuntimeError: out of something (--debug prints the traceback.)\n"
    )  # fmt: skip


@pytest.mark.usefixtures("small")
def test_the_keyboard_stops_a_training_and_says_where_it_is(convlens, monkeypatch, tmp_path):
    def interrupted(pictures, learn):
        raise KeyboardInterrupt

    monkeypatch.setattr("convlens.train.Pictures.before_validation", interrupted)
    done = convlens("train", "mnist", "--no-watch")
    assert done.code == 130
    assert done.stderr.splitlines() == [
        "What was recorded until then is in runs/mnist-0001.", "convlens: Interrupted."
    ]  # fmt: skip
    assert cl.open_run(tmp_path / "runs" / "mnist-0001").meta["status"] == "stopped"


@pytest.mark.usefixtures("small")
def test_a_loss_that_is_not_finite_is_a_failure_that_keeps_its_record(convlens, tmp_path):
    done = convlens(
        "train", "mnist", "--lr", "1e30", "--schedule", "constant", "--norm", "none"
    )  # fmt: skip
    assert done.code == 1
    record, sentence = done.stderr.splitlines()
    assert record == "What was recorded until then is in runs/mnist-0001."
    assert "The loss became" in sentence
    assert "the first layer whose output was not finite is" in sentence
    assert cl.open_run(tmp_path / "runs" / "mnist-0001").meta["status"] == "failed"

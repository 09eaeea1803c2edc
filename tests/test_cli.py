"""The command: once as a process of its own, otherwise by its entry point in this process."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

import convlens as cl
from convlens.cli import main


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
    assert lines[0].startswith("epoch 1/1  train loss")
    assert result["run"] == "runs/mnist-0001"
    assert result["accuracy"] > 0.97
    (epoch,) = result["epochs"]
    assert set(epoch) == {"train_loss", "valid_loss", "accuracy", "wall_s"}
    assert epoch["accuracy"] == result["accuracy"]
    assert (folder / result["report"]).stat().st_size > 100_000
    assert any(line.startswith("accuracy  9") for line in lines)
    assert any(line == "run       runs/mnist-0001" for line in lines)


def test_the_run_of_the_command(trained):
    folder, _ = trained
    run = cl.open_run(folder / "runs" / "mnist-0001")
    assert run.meta["status"] == "finished"
    assert "train mnist --epochs 1" in run.meta["command"]
    assert run.meta["seed"] == 0
    assert len(run.steps) == 118
    assert len(run.activation_stats) == 10
    assert {picture.name for picture in run.pictures()} == {"batch", "worst"}


def test_the_same_seed_gives_the_same_numbers_and_a_new_run(trained, convlens):
    folder, first = trained
    done = convlens("train", "mnist", "--epochs", 1, "--lr", 0.06, "--json", cwd=folder)
    a, b = (json.loads(d.stdout.splitlines()[-1]) for d in (first, done))
    assert (a["run"], b["run"]) == ("runs/mnist-0001", "runs/mnist-0002")
    assert a["epochs"][0]["train_loss"] == b["epochs"][0]["train_loss"]
    assert a["accuracy"] == b["accuracy"]


def test_without_watching_and_elsewhere(convlens, tmp_path):
    done = convlens(
        "train", "mnist", "--epochs", 1, "--no-watch", "--norm", "none", "--schedule", "constant",
        "--lr", 0.001, "--batch-size", 2048, "--device", "cpu", "--seed", 1, "--out", "here/there",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    run = cl.open_run(tmp_path / "here" / "there" / "mnist-0001")
    assert len(run.activation_stats) == 0
    assert run.meta["schedule"]["class"] == "Constant"
    assert run.meta["data"]["batch_size"] == 2048


def test_report_anew_and_elsewhere(trained, convlens):
    folder, _ = trained
    page = folder / "runs" / "mnist-0001" / "report.html"
    page.unlink()
    done = convlens("report", "runs/mnist-0001", cwd=folder)
    assert (done.code, done.stdout.strip()) == (0, "runs/mnist-0001/report.html")
    assert page.exists()
    convlens("report", "runs/mnist-0001", "--out", "other.html", cwd=folder)
    assert (folder / "other.html").stat().st_size == page.stat().st_size


def test_runs(trained, convlens, tmp_path):
    folder, _ = trained
    done = convlens("runs", cwd=folder)
    assert done.stdout.startswith("mnist-0001")
    assert "finished" in done.stdout
    assert "accuracy 9" in done.stdout
    listed = json.loads(convlens("runs", "--json", cwd=folder).stdout)
    assert listed[0]["epochs"] == 1
    (tmp_path / "a file").touch()
    done = convlens("runs", "a file")
    assert (done.code, "folder='a file' is a file, not a folder" in done.stderr) == (2, True)
    assert convlens("runs", cwd=tmp_path).stdout == (
        "No runs in runs; make one with: convlens train mnist\n"
    )


def test_summary(convlens):
    done = convlens("summary", "simple_cnn")
    assert done.code == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.split()[0] == "1.0")
    assert "1,168" in row
    assert "56,448" in row
    facts = json.loads(convlens("summary", "simple_cnn", "--json").stdout)
    assert facts["totals"]["parameters"] == 30_542


def test_summary_in_a_terminal(convlens, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "56,448" in convlens("summary", "simple_cnn").stdout


def test_version(convlens):
    assert convlens("--version").stdout == f"convlens {cl.__version__}\n"


def test_help_lists_the_commands(convlens):
    text = convlens("--help").stdout
    for command in ("train", "report", "runs", "summary"):
        assert command in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "cifar"], "argument data: invalid choice: 'cifar' (choose from"),
        (["train"], "the following arguments are required: data; see convlens train --help."),
        (["train", "mnist", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["train", "mnist", "--epochs", "0"], "n_epochs=0 is not a number of epochs; give at"),
        (["train", "mnist", "--lr", "-1"], "lr_max=-1.0 is not a positive number"),
        (["train", "mnist", "--batch-size", "0"], "batch_size=0 is the number of images per batch"),
        (["train", "mnist", "--seed", "-1"], "seed=-1 is where the random order comes from; give"),
        (["train", "mnist", "--seed", str(2**64)], "is too large; give a whole number below 2**64"),
        (["train", "mnist", "--device", "cuda"], "device='cuda' cannot be used here"),
        (["train", "mnist", "--norm", "layer"], "argument --norm: invalid choice: 'layer' (choose"),
        (["summary", "simple_cnn", "--size", "0"], "has H = 0; every size must be a whole number"),
        (["nothing"], "argument COMMAND: invalid choice: 'nothing' (choose from"),
        (["train", "mnist", "--ep", "1"], "unrecognized arguments: --ep 1"),
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


def test_a_failure_exits_1_with_one_sentence(convlens):
    done = convlens("report", "nowhere")
    assert done.code == 1
    assert done.stderr.startswith("convlens: path='nowhere' does not exist; give the folder of")
    assert len(done.stderr.splitlines()) == 1


def test_debug_adds_the_traceback(convlens):
    done = convlens("report", "nowhere", "--debug")
    assert done.code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("convlens: ")


def test_the_keyboard_ends_it_with_a_word(convlens, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("convlens.runs.list_runs", interrupted)
    done = convlens("runs")
    assert (done.code, done.stderr) == (1, "convlens: Interrupted.\n")


def test_an_unforeseen_failure_is_a_sentence_too(convlens, monkeypatch):
    def broken(folder):
        raise RuntimeError("out of something")

    monkeypatch.setattr("convlens.runs.list_runs", broken)
    done = convlens("runs")
    assert (done.code, done.stderr) == (
        1, "convlens: RuntimeError: out of something (--debug prints the traceback.)\n"
    )  # fmt: skip


def test_the_keyboard_stops_a_training_and_says_where_it_is(convlens, monkeypatch, tmp_path):
    def interrupted(pictures, learn):
        raise KeyboardInterrupt

    monkeypatch.setattr("convlens.train.Pictures.before_validation", interrupted)
    done = convlens("train", "mnist", "--batch-size", 4096, "--no-watch")
    assert done.code == 1
    assert done.stderr.splitlines() == [
        "What was recorded until then is in runs/mnist-0001.", "convlens: Interrupted."
    ]  # fmt: skip
    assert cl.open_run(tmp_path / "runs" / "mnist-0001").meta["status"] == "stopped"


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

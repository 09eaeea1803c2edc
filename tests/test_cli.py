"""The command as its users call it: a process of its own."""

import json
import subprocess
import sys

import pytest

import convlens as cl


def convlens(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "convlens", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = convlens("train", "mnist", "--epochs", 1, "--lr", 0.06, "--json", cwd=folder)
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


def test_the_same_seed_gives_the_same_numbers_and_a_new_run(trained):
    folder, first = trained
    done = convlens("train", "mnist", "--epochs", 1, "--lr", 0.06, "--json", cwd=folder)
    a, b = (json.loads(d.stdout.splitlines()[-1]) for d in (first, done))
    assert (a["run"], b["run"]) == ("runs/mnist-0001", "runs/mnist-0002")
    assert a["epochs"][0]["train_loss"] == b["epochs"][0]["train_loss"]
    assert a["accuracy"] == b["accuracy"]


def test_without_watching_and_elsewhere(tmp_path):
    done = convlens(
        "train", "mnist", "--epochs", 1, "--no-watch", "--norm", "none", "--schedule", "constant",
        "--lr", 0.001, "--batch-size", 2048, "--device", "cpu", "--seed", 1, "--out", "here/there",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = cl.open_run(tmp_path / "here" / "there" / "mnist-0001")
    assert len(run.activation_stats) == 0
    assert run.meta["schedule"]["class"] == "Constant"
    assert run.meta["data"]["batch_size"] == 2048


def test_report_anew_and_elsewhere(trained):
    folder, _ = trained
    page = folder / "runs" / "mnist-0001" / "report.html"
    page.unlink()
    done = convlens("report", "runs/mnist-0001", cwd=folder)
    assert (done.returncode, done.stdout.strip()) == (0, "runs/mnist-0001/report.html")
    assert page.exists()
    done = convlens("report", "runs/mnist-0001", "--out", "other.html", cwd=folder)
    assert (folder / "other.html").stat().st_size == page.stat().st_size


def test_runs(trained, tmp_path):
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


def test_summary(tmp_path):
    done = convlens("summary", "simple_cnn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.split()[0] == "1.0")
    assert "1,168" in row
    assert "56,448" in row
    facts = json.loads(convlens("summary", "simple_cnn", "--json", cwd=tmp_path).stdout)
    assert facts["rows"]


def test_version(tmp_path):
    assert convlens("--version", cwd=tmp_path).stdout == f"convlens {cl.__version__}\n"


def test_help_lists_the_commands(tmp_path):
    text = convlens("--help", cwd=tmp_path).stdout
    for command in ("train", "report", "runs", "summary"):
        assert command in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "cifar"], "argument data: invalid choice: 'cifar' (choose from"),
        (["train"], "the following arguments are required: data; see convlens train --h"),
        (["train", "mnist", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["train", "mnist", "--epochs", "0"], "n_epochs=0 is not a number of epochs; give at"),
        (["train", "mnist", "--lr", "-1"], "lr_max=-1.0 is not a positive number"),
        (["train", "mnist", "--batch-size", "0"], "batch_size=0 is the number of images per batch"),
        (["train", "mnist", "--seed", "-1"], "seed=-1 is "),
        (["train", "mnist", "--device", "cuda"], "device='cuda'"),
        (
            ["train", "mnist", "--norm", "layer"],
            "argument --norm: invalid choice: 'layer' (choose from",
        ),
        (["summary", "simple_cnn", "--size", "0"], "has H = 0; every size must be a whole number"),
        (["nothing"], "argument COMMAND: invalid choice: 'nothing' (choose from"),
        (["train", "mnist", "--ep", "1"], "unrecognized arguments: --ep 1"),
        ([], "the following arguments are required: COMMAND; see convlens --help."),
        (["train", "mnist", "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence(arguments, sentence, tmp_path):
    done = convlens(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("convlens: ")
    assert sentence in done.stderr
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_failure_exits_1_with_one_sentence(tmp_path):
    done = convlens("report", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_adds_the_traceback(tmp_path):
    done = convlens("report", "nowhere", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("convlens: ")


def test_a_loss_that_is_not_finite_is_a_failure_that_keeps_its_record(tmp_path):
    done = convlens(
        "train", "mnist", "--lr", "1e30", "--schedule", "constant", "--norm", "none", cwd=tmp_path
    )
    assert done.returncode == 1
    record, sentence = done.stderr.splitlines()
    assert record == "What was recorded until then is in runs/mnist-0001."
    assert "The loss became" in sentence
    assert "the first layer whose output was not finite is" in sentence
    assert cl.open_run(tmp_path / "runs" / "mnist-0001").meta["status"] == "failed"

"""The options of ``convlens train``, on files that the test makes."""

from __future__ import annotations

import json
import re
import sys
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import convlens as cl
from convlens.cli import main
from convlens.cli.train_options import SCHEDULES
from convlens.train.callbacks import snapshot_limits
from convlens.train.presets import preset_of
from convlens.train.schedules import NAMED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images as bright as their number, with a class, labels and the number in a table."""
    root = tmp_path_factory.mktemp("data")
    rng, rows = np.random.default_rng(0), ["file,shade,tags,level"]
    for i in range(48):
        level = i % 12
        (root / "images" / "ab"[level > 5]).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(20 * level + rng.integers(0, 30, (12, 12, 3)), 0, 255).astype(np.uint8)
        name = f"{'ab'[level > 5]}/{i}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        tags = "|".join(t for t, there in (("odd", level % 2), ("high", level > 5)) if there)
        rows.append(f"{name},{'ab'[level > 5]},{tags or 'none'},{level / 10}")
    (root / "table.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Calls ``convlens`` in a folder of its own; gives code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convlens", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def train(command, folder):
    """Calls ``convlens train``."""
    settings = ["--batch-size", 8, "--epochs", 1, "--no-watch"]
    return lambda data, *options: command("train", folder / data, *settings, *options)


@pytest.mark.parametrize(
    ("label", "loss", "metrics"),
    [
        ("shade", "cross_entropy", ["accuracy"]),
        ("tags", "binary_cross_entropy_with_logits", ["f1", "map"]),
        ("level", "mse_loss", ["mae"]),
    ],
)
def test_targets_of_each_kind_have_their_loss_and_their_metrics(
    train, folder, tmp_path, label, loss, metrics
):
    table = ["--data", folder / "images", "--image", "file", "--label", label, "--separator", "|"]
    table = table if label == "tags" else table[:-2]
    code, out, error = train("table.csv", *table, "--json")
    assert code == 0, error
    *lines, last = out.splitlines()
    result = json.loads(last)
    assert list(result["metrics"]) == ["loss", *metrics]
    shown = dict(line.split(maxsplit=1) for line in lines[-len(metrics) - 4 :])
    assert list(shown) == [*metrics, "run", "report", "weights", "page"]
    value = result["metrics"][metrics[0]]
    assert shown[metrics[0]] == (f"{value:.2%}" if metrics == ["accuracy"] else f"{value:.4f}")
    run = cl.open_run(tmp_path / result["run"])
    assert run.meta["loss"] == loss
    assert (tmp_path / result["weights"] / "manifest.json").exists()


def test_options_reach_the_training(train, tmp_path):
    code, out, error = train(
        "images", "--model", "resnet", "--schedule", "flat-cosine", "--lr", 0.002, "--metrics",
        "accuracy,recall_per_class", "--label-smoothing", 0.1, "--loss", "cross_entropy", "--json",
    )  # fmt: skip
    assert code == 0, error
    result = json.loads(out.splitlines()[-1])
    assert list(result["metrics"]) == ["loss", "accuracy", "recall[a]", "recall[b]"]
    line = next(line for line in out.splitlines() if line.startswith("epoch 1/1"))
    assert "recall 0." in line or "recall 1." in line
    assert "recall[" not in line
    assert sum(line.startswith("recall[") for line in out.splitlines()) == 2
    meta = cl.open_run(tmp_path / result["run"]).meta
    assert (meta["schedule"]["class"], meta["schedule"]["lr"]) == ("FlatCosine", 0.002)
    assert meta["label_smoothing"] == 0.1


def test_options_of_the_steps_and_of_what_is_kept(train, tmp_path):
    code, out, error = train(
        "images", "--epochs", 2, "--optimizer", "sgd", "--weight-decay", 0.001, "--clip", 1,
        "--accumulate", 2, "--ema", 0.9, "--early-stopping", 2, "--best", "accuracy", "--tta",
        "flip", "--precision", "bf16", "--channels-last", "--size", 32, "--json",
    )  # fmt: skip
    assert code == 0, error
    result = json.loads(out.splitlines()[-1])
    assert f"best by accuracy: epoch {result['epoch'] + 1} of 2" in out.splitlines()
    assert "with --tta flip, which the epochs above are without:" in out.splitlines()
    assert re.fullmatch(r"runs/images-0001/best/checkpoint-\d+", result["weights"])
    meta = cl.open_run(tmp_path / result["run"]).meta
    assert meta["optimizer"]["class"] == "SGD"
    assert [group["weight_decay"] for group in meta["optimizer"]["groups"]] == [0.001, 0.0]
    assert meta["n_steps"] == 6  # 5 batches in each epoch


def test_a_preset_holds_where_no_option_is_given(train, tmp_path):
    code, out, error = train("images", "--preset", "small", "--model", "simple_cnn", "--json",
                             "--size", 32)  # fmt: skip
    assert code == 0, error
    meta = cl.open_run(tmp_path / json.loads(out.splitlines()[-1])["run"]).meta
    assert (meta["n_epochs"], meta["data"]["batch_size"], meta["label_smoothing"]) == (1, 8, 0.1)


def test_a_preset_keeps_its_network_with_pretrained_weights(train, tmp_path, folder):
    dls = cl.from_folder(folder / "images", size=32)
    save_file(preset_of("small", "images").network(dls).state_dict(), tmp_path / "w.safetensors")
    code, _, error = train("images", "--preset", "small", "--pretrained", "w.safetensors",
                           "--size", 32)  # fmt: skip
    assert code == 0, error
    assert cl.open_run("runs/images-0001").meta["architecture"]["name"] == "small_vgg"


def test_a_rate_is_looked_for(train):
    code, out, error = train("images", "--lr", "find")
    assert code == 0, error
    assert [line for line in out.splitlines() if line.startswith("suggestion  ")]


def test_fine_tuning_trains_the_head_first(train):
    code, out, error = train("images", "--model", "resnet", "--fine-tune")
    assert code == 0, error
    assert "epoch 2/2" in out
    assert "--fine-tune without --pretrained: the weights of resnet are random" in error


def test_interpret_is_of_the_weights_that_predict_uses(train, command):
    # At this rate nothing changes, so the first epoch stays the best.
    code, _, error = train("images", "--epochs", "2", "--lr", "1e-12", "--norm", "none",
                           "--best", "accuracy")  # fmt: skip
    assert code == 0, error
    assert cl.open_run("runs/images-0001").meta["best"]["epoch"] == 0
    code, out, error = command("interpret", "runs/images-0001")
    assert (code, error, out.splitlines()[0]) == (0, "", "after epoch 1, the best")
    code, out, _ = command("interpret", "runs/images-0001", "--epoch", "2")
    assert (code, out.splitlines()[0]) == (0, "after epoch 2")
    assert "images right" in out
    code, _, error = command("interpret", "runs/images-0001", "--epoch", "9")
    assert code == 2
    assert (
        "--epoch 9: no confusion matrix was recorded of that epoch; the last before it is 2."
        in error
    )


def test_interpret_where_the_best_epoch_was_not_recorded_and_of_numbers(
    train, command, folder, monkeypatch
):
    monkeypatch.setattr(snapshot_limits, "CONFUSION_EPOCHS", 1)  # as of more than 200
    monkeypatch.setattr(cl.Pictures, "__init__", partialmethod(cl.Pictures.__init__, n_epochs=1))
    code, _, error = train("images", "--epochs", "3", "--lr", "1e-12", "--norm", "none",
                           "--best", "accuracy")  # fmt: skip
    assert code == 0, error
    code, out, error = command("interpret", "runs/images-0001")
    assert (code, error) == (0, "")
    assert out.startswith("after epoch 3; of epoch 1, the best, no confusion matrix was recorded\n")
    code, _, error = train("table.csv", "--data", folder / "images", "--image", "file",
                           "--label", "level", "--norm", "none")  # fmt: skip
    assert code == 0, error
    weights = load_file(next(Path().glob("runs/table-*/checkpoints/*/model.safetensors")))
    assert "output_scale.mean" in weights
    code, _, error = command("interpret", "runs/table-0001")
    assert code == 2
    assert "interpret is for classes, but this run was trained on numbers; its" in error


def test_whole_numbers_in_a_table_may_be_numbers(train, folder, tmp_path):
    rows = [f"{'ab'[i % 12 > 5]}/{i}.png,{1000 + i}" for i in range(48)]
    (folder / "prices.csv").write_text("\n".join(["file,price", *rows]))
    table = ["--data", folder / "images"]
    code, _, error = train("prices.csv", *table)
    assert code == 2
    assert "single image; if they are numbers, give --kind numbers." in error
    code, out, error = train("prices.csv", *table, "--kind", "numbers")
    assert code == 0, error
    assert "48 images with numbers" in out
    code, _, error = train("images", "--kind", "numbers")
    assert (code, "--kind is not for a folder; leave it out." in error) == (2, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pretrained"], "convlens: --pretrained: there are no published weights of simple_cnn;"),
        (["--metrics", "acuracy"], "metrics has 'acuracy', which is not known;.*'accuracy'"),
        (["--metrics", "mae"], "The metric 'mae' is for numbers, but the data has classes"),
        (["--loss", "crossentropy"], "--loss 'crossentropy' is not known;.*'cross_entropy'"),
        (["--schedule", "onecycle"], "schedule must be one of .*Closest: 'one-cycle'"),
        (["--model", "resnet81"], "'resnet81' is not known;.*Closest: .*resnet"),
        (
            ["--pretrained", "no.pth"],
            "convlens: --pretrained 'no.pth' is not a file; give a .safete",
        ),
        (["--optimizer", "adamm"], "--optimizer 'adamm' is not known;.*'adam'"),
        (["--precision", "fp8"], "precision must be one of .* got 'fp8'"),
        (["--preset", "smal"], "preset must be one of fast, best, small.*Closest: 'small'"),
        (["--tta", "flop"], "tta must be 'flip' or None, got 'flop'"),
        (["--best", "acuracy"], "'acuracy' is better is not known;.*Closest: 'accuracy'"),
        (["--fine-tune", "--schedule", "constant"], "--fine-tune has a schedule of its own"),
        (["--label-smoothing", "2"], "--label-smoothing must be from 0 to below 1, got 2.0"),
        (["--lr", "found"], "argument --lr: must be a positive number .* or find, got 'found'"),
        (["--weight-decay", "-1"], "--weight-decay: must be a number of at least 0, got '-1'"),
        (["--model", "resnet", "--norm", "none"], "--norm is for simple_cnn, not for resnet"),
    ],
)
def test_what_is_not_known_gets_a_sentence(train, options, sentence):
    code, _, error = train("images", *options)
    assert code == 2
    assert re.search(sentence, error), error


def test_the_help_names_all_schedules():
    assert SCHEDULES.split(", ") == list(NAMED)

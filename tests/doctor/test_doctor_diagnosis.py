"""Each finding on a record made for it, and none of them on a healthy one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from convlens.core.buckets import BucketLayout
from convlens.core.columns import Columns, empty_columns
from convlens.core.histories import LayerHistory, LayerInfo
from convlens.core.records import CONFIDENCES, Epoch, RunRecord
from convlens.core.steps import StepSeries, empty_steps
from convlens.doctor import diagnose

LAYOUT = BucketLayout()
N_STEPS = 400
N_VALUES = 10_000


def make_history(
    index: int = 0,
    std: np.ndarray | float = 1.0,
    near_zero: np.ndarray | float = 0.1,
    dead: int = 0,
    relu: bool = True,
    nan: np.ndarray | int = 0,
) -> LayerHistory:
    """A layer of 16 channels at every step, with the given standard deviation and shares."""
    k = np.arange(N_STEPS)
    ones = np.ones(N_STEPS, np.int64)
    std_k, share, nan_k = (np.broadcast_to(v, N_STEPS) for v in (std, near_zero, nan))
    counts = np.zeros((N_STEPS, LAYOUT.size), np.int64)
    counts[:, LAYOUT.zero + 200] = N_VALUES
    positive = np.ones((N_STEPS, 16), np.bool_)
    positive[100:, :dead] = False
    near = (share * N_VALUES).astype(np.int64)
    columns = Columns(
        first_step=k,
        last_step=k,
        calls=ones,
        counts=counts,
        nan=nan_k.astype(np.int64),
        neg_inf=ones * 0,
        pos_inf=ones * 0,
        near_zero=near,
        at_most_eps=near,
        mean=np.zeros(N_STEPS),
        m2=std_k**2 * N_VALUES,
        positive=positive,
        active=positive,
    )
    return LayerHistory(LayerInfo(index, f"{index}.0", "Conv2d", relu), columns, LAYOUT)


def make_steps(loss: np.ndarray) -> StepSeries:
    step = np.arange(len(loss))
    return StepSeries(step, step // 100, loss, step * 0.1, {"lr": np.full((len(loss), 1), 0.06)})


def falling(n: int = N_STEPS) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.02, n)
    return 2.3 * np.exp(-np.arange(n) / 80) + 0.1 + noise


def make_epochs(train: list[float], valid: list[float | None], accuracy: float) -> list[Epoch]:
    pairs = enumerate(zip(train, valid, strict=True))
    return [
        Epoch(i, 100 * i, 100 * i + 99, t, v, {"accuracy": accuracy}, 1.0) for i, (t, v) in pairs
    ]


HEALTHY = RunRecord(
    meta={"data": {"classes": [str(i) for i in range(10)]}},
    steps=make_steps(falling()),
    epochs=make_epochs([0.9, 0.3, 0.12, 0.11], [0.5, 0.2, 0.101, 0.1], 0.98),
    layers=[make_history(i, std=1.0 + i / 10, near_zero=0.3, dead=1) for i in range(4)],
)


def kinds(record: RunRecord) -> list[str]:
    return [finding.kind for finding in diagnose(record)]


def only(record: RunRecord, kind: str):
    (finding,) = [f for f in diagnose(record) if f.kind == kind]
    assert finding.severity == "good" or not any(f.severity == "good" for f in diagnose(record))
    assert finding.confidence in CONFIDENCES
    assert finding.evidence
    assert finding.fix or finding.severity == "good"
    return finding


def test_a_healthy_record_is_good_and_nothing_else() -> None:
    (finding,) = diagnose(HEALTHY)
    assert (finding.kind, finding.severity) == ("healthy", "good")
    assert "from 1.92 (mean of the first 40 batches) to 0.119" in finding.text
    assert "No watched layer had 10 % or more dead channels, non-finite" in finding.text


def test_a_healthy_record_with_warm_up_and_scatter_has_no_cycles() -> None:
    rng = np.random.default_rng(1)
    rise = np.interp(np.arange(N_STEPS), [0, 60, 200, 400], [0.1, 1.5, 1.2, 0.7])
    layers = [make_history(std=rise * np.exp(rng.normal(0, 0.15, N_STEPS)))]
    assert kinds(replace(HEALTHY, layers=layers)) == ["healthy"]


def test_without_watching_nothing_is_claimed_about_activations() -> None:
    (finding,) = diagnose(replace(HEALTHY, layers=[]))
    assert "No layers were watched" in finding.text


def test_no_steps_and_few_steps_say_so() -> None:
    (empty,) = diagnose(RunRecord({}, empty_steps(), [], []))
    assert (empty.kind, empty.severity) == ("too-short", "note")
    assert "No steps have been recorded yet" in empty.text
    (short,) = diagnose(RunRecord({}, make_steps(np.array([2.3])), [], []))
    assert "Only 1 step with a loss so far, 20 are needed" in short.text
    layers = [LayerHistory(LayerInfo(0, "0", "Conv2d", True), empty_columns(3, 0), LAYOUT)]
    assert kinds(replace(HEALTHY, layers=layers)) == ["healthy"]
    assert (
        "No layer was watched for 20 columns" in diagnose(replace(HEALTHY, layers=layers))[0].text
    )


def test_activations_are_judged_without_a_loss() -> None:
    dead = RunRecord({"status": "finished"}, empty_steps(), [], [make_history(0, dead=8)])
    assert kinds(dead) == ["dead-relu"]
    (quiet,) = diagnose(replace(dead, layers=[make_history(0)]))
    assert quiet.text == "No loss was recorded. In a loop of your own, call stats.log(loss=loss)."
    assert "No loss was recorded" in diagnose(replace(dead, layers=[]))[0].text


def test_steps_without_a_loss_are_not_losses_of_nan() -> None:
    meta = {"loss_at_every_step": False}
    loss = falling()
    loss[np.arange(N_STEPS) % 4 > 0] = math.nan
    assert kinds(replace(HEALTHY, meta=meta, steps=make_steps(loss))) == ["healthy"]
    loss[200] = math.inf
    finding = only(replace(HEALTHY, meta=meta, steps=make_steps(loss)), "nonfinite-loss")
    assert "The loss is infinite at step 200; the weights" in finding.text


def test_forwards_that_differ_in_turn_are_no_cycle() -> None:
    """A critic's: on true images, on generated ones, and on these once more."""
    in_turn = np.array([1.0, 8.0, 1.0])[np.arange(N_STEPS) % 3]
    assert kinds(replace(HEALTHY, layers=[make_history(std=in_turn)])) == ["healthy"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(value: float) -> None:
    loss = falling()
    loss[250:] = value
    finding = only(replace(HEALTHY, steps=make_steps(loss)), "nonfinite-loss")
    assert (finding.severity, finding.first_step) == ("problem", 250)
    name = "NaN" if math.isnan(value) else "infinite"
    assert f"The loss is {name} at step 250 and at 149 later steps; the weights" in finding.text
    assert "The learning rate was 0.06 there" in finding.text
    for hypers in ({}, {"lr": np.full((N_STEPS, 1), math.nan)}):
        steps = replace(make_steps(loss), hypers=hypers)
        assert (
            "The learning rate was"
            not in only(replace(HEALTHY, steps=steps), "nonfinite-loss").text
        )
    short = make_steps(np.array([1.0, value]))
    assert kinds(replace(HEALTHY, steps=short)) == ["nonfinite-loss"]


def test_activations_that_are_not_finite_name_the_first_layer() -> None:
    from_300, from_290 = (np.where(np.arange(N_STEPS) >= s, 500, 0) for s in (300, 290))
    layers = [make_history(0, nan=from_300), make_history(1, nan=from_290), make_history(2)]
    finding = only(replace(HEALTHY, layers=layers), "nonfinite-activations")
    assert (finding.layer, finding.first_step) == ("1.0", 290)
    assert "was the first to give values that are NaN: 4.76% of its values at step 290" in (
        finding.text
    )
    assert "Later in 2 layers in all. The learning rate was 0.06 there." in finding.text


def test_one_class_for_every_image() -> None:
    zeros = np.where(np.arange(N_STEPS) >= 120, 0.999, 0.4)
    record = replace(
        HEALTHY,
        steps=make_steps(np.full(N_STEPS, 2.301)),
        epochs=make_epochs([2.301] * 2, [2.301] * 2, 0.1135),
        layers=[make_history(0), make_history(1, near_zero=zeros), make_history(2)],
    )
    finding = only(record, "one-class")
    assert (finding.severity, finding.layer, finding.first_step) == ("problem", "1.0", 120)
    assert "hardly better than ln(10) = 2.303, that of guessing" in finding.text
    assert "accuracy is 11.35%" in finding.text
    assert "99.9% of the values are near zero after its ReLU" in finding.text
    assert kinds(record) == ["one-class"]


def test_a_layer_closed_from_the_start_and_without_a_relu() -> None:
    record = replace(
        HEALTHY,
        meta={"data": {"classes": 10}},
        steps=make_steps(np.full(N_STEPS, 2.301)),
        epochs=[],
        layers=[make_history(0, near_zero=1.0, relu=False)],
    )
    finding = only(record, "one-class")
    assert finding.first_step == 0
    assert "ReLU" not in finding.text


def test_nothing_learned_while_values_still_flow() -> None:
    record = replace(HEALTHY, steps=make_steps(np.full(N_STEPS, 2.31)), epochs=[])
    finding = only(record, "nothing-learned")
    assert "The network has learned next to nothing from its inputs. The record" in finding.text
    assert "Run cl.check(" in finding.text
    assert "the accuracy" not in finding.text


def test_chance_level_needs_to_know_the_classes_and_believes_the_accuracy() -> None:
    stuck = replace(HEALTHY, steps=make_steps(np.full(N_STEPS, 2.31)))
    (finding,) = diagnose(stuck)
    assert (finding.kind, finding.severity) == ("nothing-learned", "warning"), "98 % is knowledge"
    for meta in ({}, {"data": "mnist"}, {"data": {"classes": None}}):
        assert kinds(replace(stuck, meta=meta, epochs=[])) == ["loss-not-falling"]


@pytest.mark.parametrize(
    ("loss", "level"), [("cross_entropy", "ln(10) = 2.303"), ("focal_loss", "1.865")]
)
def test_a_learner_s_own_loss_is_known_by_its_name_whatever_its_gradient(
    loss: str, level: str
) -> None:
    """The gradient of an accumulated loss is a part of that of a step, and tells nothing."""
    loop = {"output_gradient": {"n": 3, "classes": 10.0, "soft_labels": 1.0, "soft_value": 9.0}}
    meta = {**HEALTHY.meta, "loss": loss, "label_smoothing": 0.1, "loop": loop}
    stuck = replace(HEALTHY, meta=meta, steps=make_steps(np.full(N_STEPS, 2.31)), epochs=[])
    assert f"no better than {level}, that of guessing" in only(stuck, "nothing-learned").text
    own = {**meta, "label_smoothing": None}
    assert kinds(replace(stuck, meta=own)) == ["loss-not-falling"]


STUCK = make_steps(np.full(N_STEPS, 2.31))


@pytest.mark.parametrize(
    ("dead", "severity", "less"), [(2, "warning", "note"), (14, "problem", "warning")]
)
def test_dead_channels(dead: int, severity: str, less: str) -> None:
    layers = [make_history(0), make_history(1, dead=dead), make_history(2, dead=2)]
    learned, *healthy = diagnose(replace(HEALTHY, layers=layers))
    assert (learned.kind, learned.severity) == ("dead-relu", less), "it does without them"
    assert not any("dead channels" in one.text for one in healthy)
    found = diagnose(replace(HEALTHY, layers=layers, steps=STUCK, epochs=[]))
    finding = next(f for f in found if f.severity == severity)
    assert (finding.kind, finding.layer, finding.first_step) == ("dead-relu", "1.0", 100)
    assert f"{dead} of 16 in '1.0', 2 of 16 in '2.0'" in finding.text


def test_dead_channels_count_only_where_a_relu_follows_and_are_listed_briefly() -> None:
    layers = [make_history(i, dead=12, relu=False) for i in range(3)]
    assert kinds(replace(HEALTHY, layers=layers)) == ["healthy"]
    layers = [make_history(i, dead=12) for i in range(9)]
    finding = next(iter(diagnose(replace(HEALTHY, layers=layers))))
    assert "12 of 16 in '5.0' and in 3 more layers" in finding.text
    always = make_history(0, dead=8)
    always.columns.positive[:, :8] = False
    assert diagnose(replace(HEALTHY, layers=[always]))[0].first_step == 0


def test_growth_and_collapse_again_and_again() -> None:
    saw = np.exp(np.arange(N_STEPS) % 80 / 20)
    layers = [make_history(0, std=saw), make_history(1, std=saw), make_history(2)]
    finding = only(replace(HEALTHY, layers=layers, epochs=[], steps=STUCK), "activation-cycles")
    assert (finding.severity, finding.layer, finding.first_step) == ("warning", "0.0", 79)
    assert "4 times (2 of 3 layers do so), with peaks at step 79, 159, 239, 319:" in finding.text
    many = np.exp(np.arange(N_STEPS) % 20 / 5)
    finding = diagnose(replace(HEALTHY, layers=[make_history(0, std=many)]))[0]
    assert (finding.kind, finding.severity) == ("activation-cycles", "note")
    assert "at step 19, 39, 59, 79 …" in finding.text


def test_scatter_of_what_a_collapse_left_is_no_cycle() -> None:
    once = np.interp(np.arange(N_STEPS), [0, 5, 10, 400], [1.0, 50.0, 0.1, 0.1])
    scatter = np.where(np.arange(N_STEPS) % 40 == 20, 10.0, 1.0)
    layers = [make_history(std=once * scatter)]
    assert "activation-cycles" not in kinds(replace(HEALTHY, layers=layers))


def test_one_rise_and_fall_is_no_cycle() -> None:
    once = np.interp(np.arange(N_STEPS), [0, 100, 200, 400], [0.1, 2.0, 0.1, 0.1])
    assert kinds(replace(HEALTHY, layers=[make_history(std=once)])) == ["healthy"]
    flat = replace(HEALTHY, layers=[make_history(std=0.0)])
    assert kinds(flat) == ["constant-layer", "healthy"]


def test_a_layer_of_one_value_is_found_without_a_relu_unless_a_problem_explains_it() -> None:
    layers = [make_history(), make_history(1, std=0.0)]
    finding, healthy = diagnose(replace(HEALTHY, layers=layers))
    assert (finding.kind, finding.severity) == ("constant-layer", "note"), "it does without it"
    assert (finding.layer, finding.first_step) == ("1.0", 0)
    assert healthy.kind == "healthy"
    stuck = kinds(replace(HEALTHY, layers=layers, steps=STUCK, epochs=[]))
    assert "one-class" in stuck, "said once"
    assert "constant-layer" not in stuck
    dead = replace(HEALTHY, layers=[make_history(std=0.0, dead=16)])
    assert kinds(dead) == ["dead-relu"]
    assert "constant-layer" not in kinds(replace(dead, steps=STUCK, epochs=[]))


@pytest.mark.parametrize(
    ("rising", "severity"),
    [([0.22, 0.22, 0.22], "warning"), ([0.21, 0.3, 0.4], "warning"), ([0.3, 0.3, 0.4], "problem")],
)
def test_overfitting(rising: list[float], severity: str) -> None:
    epochs = make_epochs([0.9, 0.3, 0.1, 0.05, 0.02], [0.5, 0.2, *rising], 0.9)
    epochs[1].metrics["accuracy"] = 0.95  # type: ignore[index]
    finding = next(f for f in diagnose(replace(HEALTHY, epochs=epochs)) if f.severity == severity)
    assert finding.kind == "overfitting"
    assert "was best after epoch 2 (0.2)" in finding.text
    assert "3 epochs later" in finding.text
    assert "the training loss fell from 0.3 to 0.02" in finding.text


def test_a_rise_of_both_losses_is_not_overfitting() -> None:
    epochs = make_epochs([0.9, 0.3, 0.4, 0.5], [0.5, 0.2, 0.3, 0.4], 0.9)
    assert kinds(replace(HEALTHY, epochs=epochs)) == ["healthy"]
    epochs = make_epochs([0.9, 0.3, 0.1], [None, None, None], 0.9)
    assert kinds(replace(HEALTHY, epochs=epochs)) == ["healthy"]
    epochs = make_epochs([0.9, 0.3, 0.1], [0.0, 0.0, 0.0], 0.9)
    assert kinds(replace(HEALTHY, epochs=epochs)) == ["healthy"]


def test_still_improving() -> None:
    epochs = make_epochs([0.9, 0.5], [0.5, 0.4], 0.9)
    note, good = diagnose(replace(HEALTHY, epochs=epochs))
    assert (note.kind, note.severity, note.first_step) == ("still-improving", "note", 100)
    assert "still fell by 20% in the last epoch (from 0.5 to 0.4)" in note.text
    assert good.severity == "good"


def test_problems_come_first_and_warnings_are_not_called_good() -> None:
    epochs = make_epochs([0.9, 0.5], [0.5, 0.4], 0.9)
    layers = [make_history(0, dead=14)]
    record = replace(HEALTHY, epochs=epochs, layers=layers, steps=STUCK)
    assert [f.severity for f in diagnose(replace(record, epochs=[]))] == ["problem"]
    rises = replace(record, meta={}, layers=[make_history(0, dead=2)])
    assert kinds(rises) == ["dead-relu", "loss-not-falling", "still-improving"]


def test_one_class_by_a_layer_whose_values_are_all_the_same() -> None:
    stuck = replace(HEALTHY, steps=make_steps(np.full(N_STEPS, 2.301)), epochs=[])
    std = np.where(np.arange(N_STEPS) >= 50, 1e-9, 1.0)
    finding = only(replace(stuck, layers=[make_history(0), make_history(1, std=std)]), "one-class")
    assert (finding.layer, finding.first_step) == ("1.0", 50)
    assert "all the same (standard deviation 1e-09 about 0)" in finding.text
    barely = [make_history(0, std=np.where(np.arange(N_STEPS) == 399, 1.0, 1e-9))]
    assert kinds(replace(stuck, layers=barely)) == ["nothing-learned"]


@pytest.mark.parametrize("end", [2.0, 1.99, 2.5])
def test_a_loss_of_an_unknown_kind_that_does_not_fall_is_no_problem(end: float) -> None:
    loss = np.full(N_STEPS, 2.0)
    loss[200:] = end
    record = replace(HEALTHY, meta={}, steps=make_steps(loss))
    finding = only(record, "loss-not-falling")
    assert finding.severity == "warning"
    assert f"was 2 over the first 40 steps and {end:g} over the last 40" in finding.text
    assert kinds(record) == ["loss-not-falling"]
    falls = replace(HEALTHY, steps=make_steps(np.linspace(-1.0, -1.5, N_STEPS)))
    assert kinds(falls) == ["healthy"]


def test_an_error_that_ended_the_run_is_told_and_nothing_is_called_good() -> None:
    meta = {**HEALTHY.meta, "status": "failed", "error": "The loss became nan at step 400."}
    finding = only(replace(HEALTHY, meta=meta), "failed")
    assert finding.severity == "problem"
    assert finding.text == (
        "Training ended with an error after 400 recorded steps: The loss became nan at step 400. "
        "Fix this error first."
    )
    silent = replace(HEALTHY, meta={"status": "failed"}, steps=empty_steps())
    assert kinds(silent) == ["failed"]
    assert "its text was not recorded" in diagnose(silent)[0].text


def test_channels_of_what_is_not_finite_are_not_called_dead() -> None:
    layers = [make_history(0, dead=16, nan=np.where(np.arange(N_STEPS) >= 300, 7, 0))]
    assert kinds(replace(HEALTHY, layers=layers)) == ["nonfinite-activations"]


def test_a_few_batches_are_too_few_for_dead_channels() -> None:
    whole = make_history(0, dead=8)
    every_hundredth = replace(whole, columns=whole.columns[::100])
    assert kinds(replace(HEALTHY, layers=[every_hundredth])) == ["healthy"]


def test_the_doctor_imports_neither_torch_nor_sqlite() -> None:
    source = (
        "import sys, convlens.doctor; "
        "bad = {'torch', 'sqlite3', 'matplotlib', 'bokeh'} & set(sys.modules); "
        "assert not bad, bad"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", source], check=True, env=environment)

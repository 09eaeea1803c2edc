"""`learn.interpret` and what a run says of its validation, held to direct computations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convlens as cl
from convlens.core.snapshots import BINS, Calibration, ClassActivationMaps
from convlens.inference.grad_cam import grad_cam
from convlens.runs import Run
from convlens.train.callbacks.calibrating import Calibrating

K = 6


def scored(n: int, sharpness: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs (n, K) whose right temperature is near ``sharpness``, and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, K, generator=generator)
    y = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return sharpness * logits, y


def direct_ece(output: Tensor, y: Tensor) -> float:
    """Guo et al. 2017, formula 3."""
    confidence, predicted = output.double().softmax(dim=1).max(dim=1)
    right, total = (predicted == y).double(), 0.0
    for i in range(BINS):
        held = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        if held.any():
            total += abs(float(right[held].mean() - confidence[held].mean())) * int(held.sum())
    return total / len(y)


def direct_temperature(output: Tensor, y: Tensor) -> tuple[float, float]:
    """By bisection of the derivative over 1 / T, which grows."""
    low, high, output = 0.01, 20.0, output.double()
    own = output.gather(1, y[:, None])[:, 0]
    for _ in range(60):
        middle = (low + high) / 2
        mean = ((output * middle).softmax(dim=1) * output).sum(dim=1)
        low, high = (middle, high) if float((mean - own).mean()) < 0 else (low, middle)
    return 1 / low, float(F.cross_entropy(output * low, y))


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0, 7.0])
def test_calibration_equals_a_direct_computation(sharpness: float) -> None:
    output, y = scored(3_000, sharpness)
    collected = Calibrating()
    for part in zip(output.split(700), y.split(700), strict=True):
        collected.add(*part)
    found = collected.result(2)
    assert found is not None
    temperature, lowest = direct_temperature(output, y)
    assert found.temperature == pytest.approx(temperature, rel=0.01)
    assert found.nll_scaled == pytest.approx(lowest, abs=2e-4)
    assert found.nll == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-5)
    assert found.ece == pytest.approx(direct_ece(output, y), abs=1e-6)
    assert (found.epoch, found.counts.sum()) == (2, 3_000)


def test_calibration_leaves_out_what_is_no_class_or_not_finite() -> None:
    output, y = scored(200, 2.0)
    clean, mixed = Calibrating(), Calibrating()
    clean.add(output, y)
    mixed.add(
        torch.cat([output, output[:3] * torch.nan, output[:2] / 0.0, output[:1]]),
        torch.cat([y, y[:5], torch.tensor([-100])]),
    )
    one, other = clean.result(0), mixed.result(0)
    assert one is not None
    assert other is not None
    assert (one.nll, one.temperature, one.ece) == (other.nll, other.temperature, other.ece)
    assert Calibrating().result(0) is None
    nothing = Calibrating()
    nothing.add(output[:2] * torch.nan, y[:2])
    assert nothing.result(0) is None


def test_a_temperature_outside_the_range_is_its_end() -> None:
    right = Calibrating()
    right.add(torch.eye(4) * 5, torch.arange(4))
    found = right.result(0)
    assert found is not None
    assert found.temperature == pytest.approx(1 / 8)


# ---- a Learner ----------------------------------------------------------------------------------


class Scores(nn.Module):
    """Scores that are the image's own pixels; notes in which mode it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.training)
        return self.scale * 8 * x.flatten(1)[:, :K]


def loaders(n_valid: int = 90) -> tuple[cl.DataLoaders, Tensor, Tensor]:
    x, y = torch.rand(n_valid, 1, 3, 3), torch.arange(n_valid) % K
    batches = list(zip(x.split(32), y.split(32), strict=True))
    return cl.DataLoaders(batches, batches, classes=list("abcdef"), name="made"), x, y


def test_interpret_counts_the_whole_validation() -> None:
    dls, x, y = loaders()
    model = Scores()
    learn = cl.Learner(dls, model, run=None, progress=False)
    found = learn.interpret()
    output = 8 * x.flatten(1)[:, :K]
    expected = np.zeros((K, K), np.int64)
    np.add.at(expected, (y.numpy(), output.argmax(1).numpy()), 1)
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.classes == tuple("abcdef")
    losses = F.cross_entropy(output, y, reduction="none")
    top = found.top_losses(32)
    assert [one.item for one in top] == losses.topk(32).indices.tolist()
    np.testing.assert_allclose([one.loss for one in top], losses.topk(32).values, rtol=1e-5)
    assert top[0].true == "abcdef"[int(y[top[0].item])]
    assert found.ece == pytest.approx(direct_ece(output, y), abs=1e-6)
    assert model.modes == {False}
    assert model.training
    assert model.scale.grad is None
    np.testing.assert_array_equal(learn.interpret(dls.valid).confusion, expected)


def test_interpret_refuses_what_has_no_classes() -> None:
    dls, x, y = loaders()
    learn = cl.Learner(cl.DataLoaders(dls.train), Scores(), run=None, progress=False)
    with pytest.raises(cl.ArgumentError, match=r"dls\.valid is None"):
        learn.interpret()
    with pytest.raises(cl.ArgumentError, match="has no images"):
        learn.interpret([])
    with pytest.raises(cl.ArgumentError, match=r"got \(90, 6\) and \(90, 6\)"):
        learn.interpret([(x, F.one_hot(y, K).float())])
    learn.dls.kind = "numbers"
    with pytest.raises(cl.ArgumentError, match="single classes, but the data has numbers"):
        learn.interpret()


def test_a_run_is_interpreted_without_torch() -> None:
    dls, *_ = loaders()
    learn = cl.Learner(
        dls, Scores(), callbacks=[cl.Pictures(n_probes=0)], progress=False, run="runs/made"
    )
    learn.fit(3, 0.001)
    found, run = learn.interpret(), cl.open_run("runs/made")
    recorded = run.interpret()
    np.testing.assert_array_equal(found.confusion, recorded.confusion)
    assert (found.ece, found.temperature) == (recorded.ece, recorded.temperature)
    assert [one.item for one in found.top_losses(9)] == [o.item for o in recorded.top_losses(9)]
    assert run.snapshot_epochs(Calibration) == [0, 1, 2]
    assert run.interpret(0).counted.epoch == 0
    assert learn.pictures.interpret().counted.epoch == 2
    code = (
        "import sys, convlens as cl; print(cl.open_run('runs/made').interpret()); "
        "assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == str(recorded)


def test_a_run_without_a_confusion_matrix_says_so(tmp_path: Path) -> None:
    with cl.watch(cl.simple_cnn(1, 10), run=tmp_path / "own"):
        pass
    with pytest.raises(cl.RunError, match="No confusion matrix was recorded until epoch=3: train"):
        cl.open_run(tmp_path / "own").interpret(3)


# ---- Grad-CAM in a run --------------------------------------------------------------------------


def fitted(model: nn.Module) -> tuple[cl.Learner, Run, Tensor]:
    x, y = torch.rand(60, 1, 12, 12), torch.arange(60) % 3
    batches = list(zip(x.split(25), y.split(25), strict=True))
    dls = cl.DataLoaders(batches, batches, classes=["a", "b", "c"])
    learn = cl.Learner(dls, model, callbacks=[cl.Pictures(3)], progress=False, run="runs/made")
    learn.fit(2, 0.01)
    return learn, cl.open_run("runs/made"), x


def test_pictures_keep_the_maps_of_the_worst_images_and_the_probes() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    learn, run, x = fitted(model)
    kept = run.snapshot(ClassActivationMaps)
    assert kept is not None
    assert run.snapshot_epochs(ClassActivationMaps) == [0, 1]
    assert kept.item.tolist() == [one.item for one in run.interpret().top_losses(24)]
    assert (kept.explained, kept.maps.shape, kept.probe_maps.shape) == (
        "2", (24, 10, 10), (8, 10, 10),
    )  # fmt: skip
    maps = grad_cam(learn.model, x[kept.item])
    expected = 255 * maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)
    np.testing.assert_allclose(kept.maps, expected.round(), atol=1)
    assert kept.correlation.shape == (24,)
    assert (np.abs(kept.correlation[np.isfinite(kept.correlation)]) <= 1).all()


def test_a_network_without_a_grid_gets_a_note_and_trains_on() -> None:
    learn, run, _ = fitted(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)))
    assert learn.epochs_done == 2
    assert run.snapshot_epochs(ClassActivationMaps) == []
    assert run.snapshot_epochs(Calibration) == [0, 1]
    (note,) = [n for n in run.meta["pictures"]["notes"] if n.startswith("No class activation")]
    assert note.startswith("No class activation maps: layer=None stands for the network's last")

"""What `tensorboard.write` has written, read back by TensorBoard itself."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from torch import nn
from torch.nn import functional as F

import convlens as cl
from convlens.core.buckets import finite_edges
from convlens.core.histories import LayerInfo
from convlens.core.layer_histories import LayerHistories
from convlens.core.steps import StepSeries
from convlens.integrations import tensorboard
from convlens.runs import create_run


def read(folder):
    """Everything in the folder's event files, unsampled."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return events.Reload()


def scalars(events, tag):
    """(steps, values) of one tag."""
    points = events.Scalars(tag)
    return [point.step for point in points], np.array([point.value for point in points])


def assert_scalars(events, tag, steps, values):
    """The points are these, to the float32 that TensorBoard keeps."""
    there, found = scalars(events, tag)
    assert there == list(steps)
    np.testing.assert_array_equal(found, np.asarray(values, np.float32))


@pytest.fixture(scope="module")
def stats():
    """The chapter's network on real digits for 20 steps, watched."""
    torch.manual_seed(0)
    model = cl.simple_cnn(1, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with cl.watch(model) as watched:
        for _, (x, y) in zip(range(20), cl.mnist(batch_size=64, device="cpu").train, strict=False):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watched


@pytest.fixture
def events(stats, tmp_path):
    assert tensorboard.write(stats, tmp_path / "tb") == tmp_path / "tb"
    return read(tmp_path / "tb")


def test_the_scalars_of_every_layer(stats, events):
    for name in stats:
        history = stats[name]
        assert_scalars(events, f"activation_mean/{name}", range(20), history.mean)
        assert_scalars(events, f"activation_std/{name}", range(20), history.std)
        assert_scalars(events, f"activation_near_zero/{name}", range(20), history.near_zero)
    assert stats.names[0] == "0.0"
    assert_scalars(events, "activation_dead_channels/0.0", range(20), stats[0].dead_channels)
    followed = {layer.name for layer in stats.layers if layer.feeds_relu}
    tags = events.Tags()["scalars"]
    assert {t.split("/")[1] for t in tags if t.startswith("activation_dead")} == followed
    assert len(tags) == 4 * len(stats) - 1


def test_the_histograms_have_the_exact_counts(stats, events):
    for name in stats:
        history = stats[name]
        edges = finite_edges(history.bucket_edges)
        found = events.Histograms(f"activation/{name}")
        assert [point.step for point in found] == list(range(20))
        for k, point in enumerate(found):
            histogram = point.histogram_value
            limits, counts = np.array(histogram.bucket_limit), np.array(histogram.bucket)
            assert (np.diff(limits) > 0).all()
            used = np.flatnonzero(history.counts[k])
            np.testing.assert_array_equal(limits[counts > 0], edges[used + 1])
            np.testing.assert_array_equal(counts[counts > 0], history.counts[k][used])
            assert (histogram.min, histogram.max) == (edges[used[0]], edges[used[-1] + 1])
            assert histogram.num == history.n[k]
            np.testing.assert_allclose(histogram.sum / histogram.num, history.mean[k], rtol=1e-12)
            variance = histogram.sum_squares / histogram.num - history.mean[k] ** 2
            np.testing.assert_allclose(variance, history.std[k] ** 2, rtol=1e-9)


def test_the_buckets_that_tensorboard_draws_are_ours(stats, events, tmp_path):
    """Its pages get left edge, right edge and count of each bucket, converted from the file."""
    history = stats["0.0"]
    edges = finite_edges(history.bucket_edges).astype(np.float32)
    (file,) = (tmp_path / "tb").iterdir()
    drawn = [
        make_ndarray(value.tensor)
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == "activation/0.0"
    ]
    assert len(drawn) == 20
    for k, buckets in enumerate(drawn):
        left, right, count = buckets[buckets[:, 2] > 0].T
        used = np.flatnonzero(history.counts[k])
        np.testing.assert_array_equal(left, edges[used])
        np.testing.assert_array_equal(right, edges[used + 1])
        np.testing.assert_array_equal(count, history.counts[k][used])
        np.testing.assert_array_equal(buckets[1:, 0], buckets[:-1, 1])  # without a hole


def test_fewer_histograms_than_columns_leave_no_value_out(stats, tmp_path):
    tensorboard.write(stats, tmp_path, histograms=4)
    history, found = stats[0], read(tmp_path).Histograms("activation/0.0")
    assert [point.step for point in found] == [3, 11, 17]  # of steps 0–7, 8–15 and 16–19
    for point, steps in zip(found, [slice(8), slice(8, 16), slice(16, 20)], strict=True):
        values = point.histogram_value
        assert values.num == history.n[steps].sum()
        merged = history.counts[steps].sum(axis=0)
        np.testing.assert_array_equal([c for c in values.bucket if c], merged[merged > 0])
    assert len(read(tmp_path).Scalars("activation_mean/0.0")) == 20
    tensorboard.write(stats, tmp_path / "none", histograms=0)
    assert read(tmp_path / "none").Tags()["histograms"] == []
    tensorboard.write(cl.watch(nn.Linear(2, 2)), tmp_path / "nothing seen")
    assert read(tmp_path / "nothing seen").Tags()["scalars"] == []


def test_a_run_of_a_learner(tmp_path):
    images = torch.randint(0, 256, (96, 12, 12), dtype=torch.uint8).numpy()
    labels = np.arange(96) % 3
    valid = images[64:], labels[64:]
    loaders = cl.from_arrays(images[:64], labels[:64], layout="NHW", valid=valid, batch_size=16)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    learn = cl.Learner(
        loaders, model, metrics=[cl.accuracy], callbacks=[cl.ActivationStats()], run="mine"
    )
    learn.fit_one_cycle(2, 0.01)
    tensorboard.write("mine", tmp_path / "tb")
    events, run = read(tmp_path / "tb"), cl.open_run("mine")
    assert len(run.steps) == 8
    assert_scalars(events, "loss/batch", range(8), run.steps.loss)
    assert_scalars(events, "hyper/lr", range(8), run.steps.hypers["lr"][:, 0])
    assert_scalars(events, "hyper/momentum", range(8), run.steps.hypers["momentum"][:, 0])
    assert_scalars(events, "loss/train", [3, 7], [epoch.train_loss for epoch in run.epochs])
    assert_scalars(events, "loss/valid", [3, 7], [epoch.valid_loss for epoch in run.epochs])
    accuracies = [epoch.metrics["accuracy"] for epoch in run.epochs]
    assert_scalars(events, "metric/accuracy", [3, 7], accuracies)
    assert_scalars(events, "activation_mean/0", range(8), run.activation_stats["0"].mean)
    start = datetime.fromisoformat(run.meta["created"]).timestamp()
    for tag in ("loss/batch", "activation_mean/0"):
        when = [point.wall_time for point in events.Scalars(tag)]
        np.testing.assert_allclose(when, start + run.steps.wall_s, rtol=0, atol=1e-6)

    tensorboard.write(run, tmp_path / "again")
    assert read(tmp_path / "again").Tags() == events.Tags()
    tensorboard.write(learn.activation_stats, tmp_path / "live")
    live = read(tmp_path / "live")
    assert_scalars(live, "metric/accuracy", [3, 7], accuracies)
    assert "loss/batch" not in live.Tags()["scalars"]


def test_several_parameter_groups(tmp_path):
    two = np.arange(2)
    rates = np.array([[0.1, 0.01], [0.2, 0.02]])
    with create_run(directory="mine") as writer:
        writer.write_steps(StepSeries(two, two * 0, np.ones(2), np.ones(2), {"lr": rates}))
    tensorboard.write("mine", tmp_path / "tb")
    events = read(tmp_path / "tb")
    assert events.Tags()["scalars"] == ["loss/batch", "hyper/lr/0", "hyper/lr/1"]
    assert_scalars(events, "hyper/lr/1", [0, 1], rates[:, 1])


def test_values_that_are_not_finite(tmp_path):
    model = nn.Identity()
    with cl.watch(model, "all") as stats:
        model(torch.tensor([1.0, -1.0, float("nan"), float("inf"), 1e9, 0.0]))
        model(torch.full((3,), float("nan")))
        model(torch.zeros(3))
    tensorboard.write(stats, tmp_path)
    events = read(tmp_path)
    steps, means = scalars(events, "activation_mean/(root)")
    assert steps == [0, 1, 2]
    np.testing.assert_array_equal(np.isnan(means), [False, True, False])
    first, last = (point.histogram_value for point in events.Histograms("activation/(root)"))
    assert (first.num, sum(first.bucket)) == (4, 4)
    assert np.isfinite([first.min, first.max, *first.bucket_limit]).all()
    assert (last.num, list(last.bucket), last.min, last.max) == (3, [3], 0, 0)


def test_other_quantities_have_tags_of_their_own(stats, tmp_path):
    class Gradients(LayerHistories):
        epochs = ()
        layers = (LayerInfo(0, "0.0.weight", "Parameter", quantity="gradient"),)

        def history(self, index):
            return replace(stats[0], layer=self.layers[index])

    tensorboard.write(Gradients(), tmp_path)
    tags = read(tmp_path).Tags()
    assert tags["histograms"] == ["gradient/0.0.weight"]
    what = ("mean", "std", "near_zero")
    assert tags["scalars"] == [f"gradient_{name}/0.0.weight" for name in what]


def test_what_cannot_work_gets_a_sentence(stats, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(cl.ArgumentError, match=r"log_dir='.*file' cannot be written \(File exist"):
        tensorboard.write(stats, tmp_path / "file")
    with pytest.raises(cl.ArgumentError, match=r"histograms must be at least 0, got -1"):
        tensorboard.write(stats, tmp_path, histograms=-1)
    with pytest.raises(cl.RunError, match=r"path='nowhere' does not exist"):
        tensorboard.write("nowhere", tmp_path / "tb")
    assert not (tmp_path / "tb").exists()

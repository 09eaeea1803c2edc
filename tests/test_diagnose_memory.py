"""`diagnose` on everything that has a record: in memory, on disk, running or ended."""

import pytest
import torch
from torch.nn import functional as F

import convlens as cl


def loaders():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 12, 12, generator=generator)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    return cl.DataLoaders([(x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)], name="noise")


@pytest.mark.parametrize("run", [None, "mine"])
def test_a_learner_is_judged_from_memory(run):
    watching = [cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats()]
    learn = cl.Learner(
        loaders(), cl.simple_cnn(1, 2), callbacks=watching, run=run, progress=False, seed=0
    )
    assert [f.kind for f in learn.diagnose()] == ["too-short"]
    learn.fit(4, 1e-3)
    found, record = learn.diagnose(), learn.record()
    assert found == cl.diagnose(record)
    if run is None:
        assert found == cl.diagnose(learn)
    else:
        assert [f.kind for f in found] == [f.kind for f in cl.diagnose(learn)]
    assert len(record.steps) == 32
    assert record.meta["status"] == "finished"
    assert record.loop["optimizer_steps"] == record.loop["training_forwards"] == 32
    assert record.loop["target"]["max"] == 1
    assert sorted(record.of_parameters) == ["gradient", "parameter", "update"]
    assert len(record.layers) == len(learn.activation_stats.layers)
    assert (record.steps.loss > 0).all()  # those of the recorder, in the run too
    if run:
        read = cl.open_run(run).record()
        assert read.steps.loss.tolist() == record.steps.loss.tolist()
        assert read.loop["target"] == record.loop["target"]


def test_a_learner_that_watches_nothing():
    learn = cl.Learner(loaders(), cl.simple_cnn(1, 2), run=None, progress=False)
    learn.fit(4, 1e-3)
    assert len(cl.diagnose(learn)) >= 1
    assert learn.record().loop == {}


def test_a_watcher_is_judged_while_it_watches():
    model = cl.simple_cnn(1, 2)
    with cl.watch(model, gradients=True, updates=True) as stats:
        assert [f.kind for f in cl.diagnose(stats)] == ["too-short"]
        for _ in range(4):
            for x, y in loaders().train:
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                stats.log(loss=loss)
        assert "missing-step" not in [f.kind for f in cl.diagnose(stats)]  # it may still come
    kinds = [f.kind for f in cl.diagnose(stats)]
    assert "missing-step" in kinds
    assert kinds == [f.kind for f in cl.diagnose(stats.record())]


def test_what_has_no_record_gets_a_sentence():
    with pytest.raises(cl.ArgumentError, match="run must be a run, its path, a Learner or a watch"):
        cl.diagnose(3)

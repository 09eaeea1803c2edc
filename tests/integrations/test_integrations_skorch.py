"""The skorch callback under real nets."""

import pickle

import numpy as np
import pytest
import torch
from fits import check_run, n_hooks, network, problem
from sklearn.base import clone
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler

import convlens as cl
from convlens.integrations.skorch import WatchCallback


def net(*callbacks, **options):
    return NeuralNetClassifier(
        network(),
        criterion=torch.nn.CrossEntropyLoss,
        max_epochs=3,
        lr=0.1,
        batch_size=16,
        iterator_train__shuffle=False,
        callbacks=list(callbacks),
        verbose=0,
        **options,
    )


def test_a_fit_is_recorded():
    watch = WatchCallback(run="auto", gradients=True)
    x, y = problem()
    schedule = LRScheduler("StepLR", step_size=1, gamma=0.5)
    trained = net(watch, schedule).fit(x.numpy(), y.numpy())
    batches = [
        row["train_loss"] for e in trained.history for row in e["batches"] if "train_loss" in row
    ]
    steps = len(batches) // 3
    rates = np.repeat([0.1, 0.05, 0.025], steps)
    check_run(watch, batches, rates, 3, "valid_acc")
    read = cl.open_run(watch.run_path).record()
    assert [e.valid_loss for e in read.epochs] == pytest.approx(trained.history[:, "valid_loss"])
    assert [e.train_loss for e in read.epochs] == pytest.approx(trained.history[:, "train_loss"])
    assert read.of_parameters["gradient"]
    assert n_hooks(trained.module_) == 0


def test_it_is_copied_pickled_and_fitted_again():
    watch = WatchCallback(run="auto", eps=0.1)
    x, y = problem()
    first = net(watch).fit(x.numpy(), y.numpy())
    copied = clone(first)
    assert copied.callbacks[0].eps == 0.1
    pickle.loads(pickle.dumps(first)).predict(x.numpy())
    first.fit(x.numpy(), y.numpy())
    assert str(watch.run_path) == "runs/watch-0002"
    with pytest.raises(cl.ArgumentError, match="WatchCallback holds nothing yet"):
        _ = WatchCallback().stats


def test_a_fit_that_raises_is_closed_by_the_next():
    x, y = problem()
    watch = WatchCallback(run="auto")
    with pytest.raises(IndexError):
        net(watch).fit(x.numpy(), y.numpy() + 5)
    net(watch).fit(x.numpy(), y.numpy())
    assert [info.status for info in cl.list_runs()] == ["failed", "finished"]

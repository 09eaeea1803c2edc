"""The Ignite handler under real engines."""

import pytest
import torch
from fits import check_run, n_hooks, network, problem
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Loss
from torch.nn import functional as F

import convlens as cl
from convlens.integrations.ignite import WatchHandler


def engines(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    return trainer, create_supervised_evaluator(model, metrics=metrics)


def loader(seed=0):
    x, y = problem(seed=seed)
    return list(zip(x.split(16), y.split(16), strict=True))


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_training_is_recorded(order):
    model, losses = network(), []
    trainer, evaluator = engines(model)
    watch = WatchHandler(model, run="auto")
    if order == "first":
        watch.attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run(loader(seed=1)))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output)
    )
    if order == "last":
        watch.attach(trainer, evaluator)
    trainer.run(loader(), max_epochs=3)
    check_run(watch, losses, [0.1] * 18, 3, "accuracy")
    assert cl.open_run(watch.run_path).epochs[-1].valid_loss == evaluator.state.metrics["loss"]
    assert n_hooks(model) == 0


@pytest.mark.parametrize("handled", [False, True])
def test_an_exception_goes_on_its_way(handled):
    model = network()
    trainer, _ = engines(model)
    watch = WatchHandler(model, run="mine")
    watch.attach(trainer)
    seen = []
    if handled:
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda _, error: seen.append(error))
        trainer.run([(torch.ones(4, 5), torch.zeros(4).long())], max_epochs=1)
        assert len(seen) == 1
    else:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            trainer.run([(torch.ones(4, 5), torch.zeros(4).long())], max_epochs=1)
    assert cl.open_run("mine").meta["status"] == "failed"
    assert n_hooks(model) == 0


def test_a_trainer_that_is_terminated():
    model = network()
    trainer, _ = engines(model)
    watch = WatchHandler(model, run="mine", loss_of=lambda output: 2 * output)
    watch.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate())
    trainer.run(loader(), max_epochs=3)
    assert cl.open_run("mine").meta["status"] == "finished"
    assert len(watch.stats.recorder.steps) == 4
    assert repr(watch).startswith("WatchHandler(")

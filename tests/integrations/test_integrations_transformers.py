"""The callback under a real ``Trainer``."""

import numpy as np
import pytest
import torch
from fits import check_run, n_hooks, network, problem
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

import convlens as cl
from convlens.integrations.transformers import WatchCallback


class Model(nn.Module):
    """A model as those of transformers are: it computes its loss."""

    def __init__(self, returns_loss=True):
        super().__init__()
        self.net, self.returns_loss, self.seen = network(), returns_loss, []

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = F.cross_entropy(logits, labels) if labels is not None and self.returns_loss else None
        if self.training and loss is not None:
            self.seen.append(loss.item())
        return SequenceClassifierOutput(loss=loss, logits=logits)


def train(model, watch, tmp_path, **options):
    data, other = (
        [{"x": a, "labels": b} for a, b in zip(*problem(seed=seed), strict=True)] for seed in (0, 1)
    )
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        **{"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 0.01}
        | quiet
        | options,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=other,
        callbacks=[watch],
        compute_metrics=lambda p: {
            "accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())
        },
        compute_loss_func=None
        if model.returns_loss
        else lambda out, labels, **_: F.cross_entropy(out.logits, labels),
    )
    trainer.train()
    return trainer


def test_a_training_is_recorded(tmp_path):
    model, watch = Model(), WatchCallback(run="auto")
    train(model, watch, tmp_path, eval_strategy="epoch", logging_steps=1)
    rates = 0.01 * (1 - np.arange(18) / 18)
    check_run(watch, model.seen, rates, 3, "accuracy")
    assert n_hooks(model) == 0


def test_accumulated_batches_are_one_step(tmp_path):
    model, watch = Model(), WatchCallback()
    train(model, watch, tmp_path, gradient_accumulation_steps=2, num_train_epochs=1)
    steps = watch.stats.recorder.steps
    np.testing.assert_allclose(steps.loss, np.reshape(model.seen, (3, 2)).mean(1), rtol=1e-5)
    loop = watch.stats.record().loop
    assert (loop["backwards"], loop["optimizer_steps"]) == (6, 3)


def test_a_model_that_returns_no_loss(tmp_path):
    model, watch = Model(returns_loss=False), WatchCallback()
    train(model, watch, tmp_path, logging_steps=2, num_train_epochs=1)
    record = watch.stats.record()
    assert len(record.loss_steps) == 3
    assert (record.loss_steps.loss > 0).all()


def test_a_training_that_raises_is_closed_by_the_next(tmp_path):
    class Fails(Model):
        def forward(self, x, labels=None):
            raise ValueError("in the midst of a step")

    watch = WatchCallback(run="auto")
    with pytest.raises(ValueError, match="in the midst"):
        train(Fails(), watch, tmp_path)
    train(Model(), watch, tmp_path, num_train_epochs=1)
    assert [info.status for info in cl.list_runs()] == ["failed", "finished"]
    with pytest.raises(cl.ArgumentError, match="WatchCallback holds nothing yet"):
        _ = WatchCallback().stats
    assert torch.is_grad_enabled()

"""What a fit leaves behind, and what it begins with."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from convlens.runs import RunWriter
from convlens.runs.checkpoints import list_checkpoints, load_checkpoint

BATCHES = [
    (torch.randn(8, 3, generator=torch.Generator().manual_seed(i)), torch.ones(8, 1))
    for i in range(4)
]


def learner(*callbacks, batches=BATCHES, model=None, **kwargs):
    kwargs = {"loss": F.mse_loss, "optimizer": torch.optim.SGD, "run": None, **kwargs}
    model = nn.Linear(3, 1) if model is None else model
    dls = cl.DataLoaders(batches, kwargs.pop("valid", None))
    return cl.Learner(dls, model, callbacks=callbacks, progress=False, **kwargs)


def raising(event, error, when=lambda learn: learn.step == 1):
    """A callback that raises an error once, in an event of the second step."""

    def call(self, learn):
        if when(learn) and not self.raised:
            self.raised = True
            raise error

    return type("Raising", (cl.Callback,), {event: call, "raised": False})()


def gradient_of(model, x, y):
    copied = nn.Linear(3, 1)
    copied.load_state_dict(model.state_dict())
    F.mse_loss(copied(x), y).backward()
    return float(copied.weight.grad.norm())


@pytest.mark.parametrize("event", ["after_backward", "before_step"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, cl.CancelFitError])
def test_a_fit_begins_without_the_gradients_of_one_that_was_left(event, error):
    learn = learner(raising(event, error()), cl.GradientStats())
    with contextlib.suppress(KeyboardInterrupt, RuntimeError):
        learn.fit(1, lr=1e-3)
    right = gradient_of(learn.model, *BATCHES[0])
    learn.fit(1, lr=1e-3)
    assert learn.gradient_stats["weight"].norm[0] == pytest.approx(right, rel=1e-5)


def test_gradients_from_before_the_fit_are_not_in_its_first_step():
    learn = learner(cl.GradientStats())
    right = gradient_of(learn.model, *BATCHES[0])
    F.mse_loss(learn.model(BATCHES[1][0]), BATCHES[1][1]).backward()
    learn.fit(1, lr=1e-3)
    assert learn.gradient_stats["weight"].norm[0] == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("event", ["after_backward", "before_step"])
def test_an_epoch_begins_without_the_gradients_of_one_that_was_cancelled(event):
    class Right(cl.Callback):
        values = ()

        def before_epoch(self, learn):
            self.values = (*self.values, gradient_of(learn.model, *BATCHES[0]))

    learn = learner(raising(event, cl.CancelEpochError()), Right(), cl.GradientStats())
    learn.fit(2, lr=1e-3)
    assert learn.recorder.steps.epoch.tolist() == [0, 1, 1, 1, 1]
    norm = learn.gradient_stats["weight"].norm
    assert norm[1] == pytest.approx(learn.right.values[1], rel=1e-5)


def test_a_batch_that_skips_its_step_accumulates():
    learn = learner(raising("after_backward", cl.CancelBatchError()), cl.GradientStats())
    learn.fit(1, lr=1e-12)
    x, y = (torch.cat(parts) for parts in zip(BATCHES[1], BATCHES[2], strict=True))
    both = 2 * gradient_of(learn.model, x, y)  # of a sum, not a mean
    assert learn.gradient_stats["weight"].norm[1] == pytest.approx(both, rel=1e-4)


# ---- weights that are lost --------------------------------------------------------------------


def poison(learn, name="weight"):
    with torch.no_grad():
        getattr(learn.model, name)[0] = torch.nan


def test_a_fit_after_one_that_lost_the_weights_says_that(tmp_path):
    learn = learner(raising("after_step", RuntimeError("stop")), run=tmp_path / "run")
    with pytest.raises(RuntimeError, match="stop"):
        learn.fit(1, 1e-3)
    poison(learn)
    learn.run = tmp_path / "again"
    with pytest.raises(
        cl.TrainingError, match=r"The model's 'weight' is not finite before the fir"
    ):
        learn.fit(1, 1e-6)
    assert not (tmp_path / "again").exists()


def test_a_loss_that_became_nan_says_whether_the_weights_are_lost():
    class Late(cl.Callback):
        def before_batch(self, learn):
            if learn.step == 2:
                poison(learn)

    learn = learner(Late())
    with pytest.raises(
        cl.NonFiniteLossError, match=r"The weights are lost, too: load a checkpoint"
    ):
        learn.fit(1, 1e-3)
    with pytest.raises(cl.TrainingError, match=r"Lowering the learning rate does not help; load a"):
        learn.fit(1, 1e-6)
    spoiled = [(x * torch.nan, y) for x, y in BATCHES]
    with pytest.raises(cl.NonFiniteLossError) as caught:
        learner(batches=spoiled).fit(1, 1e-3)
    assert "lost" not in str(caught.value)


def test_an_optimizer_whose_state_is_lost():
    learn = learner(optimizer=torch.optim.AdamW)
    learn.fit(1, 1e-3)
    learn.optimizer.state[learn.model.weight]["exp_avg"].fill_(torch.nan)
    with pytest.raises(cl.TrainingError, match=r"The optimizer's 'exp_avg' is not finite before"):
        learn.fit(1, 1e-3)


def test_a_buffer_may_be_infinite_but_not_nan():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    learn = learner(model=Masked())
    learn.fit(1, 1e-3)
    poison(learn, "mask")
    with pytest.raises(
        cl.TrainingError, match=r"The model's 'mask' is not finite before the first"
    ):
        learn.fit(1, 1e-3)


def test_the_search_for_the_layer_does_not_hide_the_loss():
    class Once(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 1:
                raise OSError("the second time")
            return super().forward(x) * torch.nan

    with pytest.raises(cl.NonFiniteLossError, match=r"cannot be said \(OSError: the second time\)"):
        learner(model=Once(3, 1)).fit(1, 1e-3)


# ---- the end ----------------------------------------------------------------------------------


def test_an_error_of_after_fit_does_not_hide_the_first():
    first, ended = ValueError("the first"), []

    class Bad(cl.Callback):
        def after_fit(self, learn):
            raise KeyError("its end")

    class Worse(cl.Callback):
        def after_fit(self, learn):
            ended.append(learn.error)
            raise OSError("another")

    learn = learner(Bad(), Worse(), raising("after_step", first))
    with pytest.raises(ValueError, match="the first") as caught:
        learn.fit(1, 1e-3)
    assert caught.value is first is learn.error is ended[0]
    assert first.__notes__ == [
        "Worse.after_fit raised too: OSError: another",
        "Bad.after_fit raised too: KeyError: 'its end'",
    ]


def test_an_error_of_after_fit_alone_ends_the_fit_as_failed(tmp_path):
    class Bad(cl.Callback):
        def after_fit(self, learn):
            raise KeyError("its end")

    learn = learner(Bad(), cl.GradientStats(), run=tmp_path / "run")
    with pytest.raises(KeyError, match="its end"):
        learn.fit(1, 1e-3)
    assert isinstance(learn.error, KeyError)
    assert cl.open_run(tmp_path / "run").meta["status"] == "failed"


@pytest.mark.parametrize("error", [None, ValueError("the first")])
def test_a_record_that_cannot_be_closed_does_not_take_the_place_of_anything(
    tmp_path, monkeypatch, error
):
    close = RunWriter.close

    def fail(self, *args):
        close(self, *args)
        raise cl.RunError("the disk is full")

    monkeypatch.setattr(RunWriter, "close", fail)
    learn = learner(*([raising("after_step", error)] if error else []), run=tmp_path / "run")
    raised = pytest.raises(ValueError, match="the first") if error else contextlib.nullcontext()
    with pytest.warns(cl.ConvlensWarning, match="the disk is full"), raised:
        learn.fit(1, 1e-3)
    assert learn.error is error


# ---- late errors ------------------------------------------------------------------------------


def test_a_validation_that_fails_does_not_cost_the_epoch(tmp_path):
    def broken(output, y):
        raise ZeroDivisionError("by zero")

    learn = learner(valid=BATCHES[:1], metrics=[broken], run=tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, 1e-2)
    other = nn.Linear(3, 1)
    facts = load_checkpoint(tmp_path / "run" / "checkpoints", other)
    assert facts == {"epoch": 0, "step": 4}
    assert torch.equal(other.weight, learn.model.weight)
    run = cl.open_run(tmp_path / "run")
    assert (run.meta["status"], len(run.steps)) == ("failed", 4)


def test_the_checkpoint_has_the_weights_of_the_training_not_of_the_validation(tmp_path):
    class Average(cl.Callback):
        """Validates with other weights."""

        def before_validation(self, learn):
            self.kept = learn.model.weight.detach().clone()
            learn.model.weight.data.zero_()

        def after_validation(self, learn):
            learn.model.weight.data.copy_(self.kept)

    learn = learner(Average(), valid=BATCHES[:1], run=tmp_path / "run")
    learn.fit(1, 1e-2)
    other = nn.Linear(3, 1)
    load_checkpoint(tmp_path / "run" / "checkpoints", other)
    assert torch.equal(other.weight, learn.model.weight)


def test_a_model_that_cannot_be_saved_is_refused_before_training(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    learn = learner(model=Extra(3, 1), run=tmp_path / "run")
    with pytest.raises(cl.ArgumentError, match=r"'_extra_state' is of type dict, .*run=None"):
        learn.fit(1, 1e-2)
    assert not (tmp_path / "run").exists()
    learn.run = None
    learn.fit(1, 1e-2)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(tmp_path):
    class InTheWay(cl.Callback):
        def before_epoch(self, learn):
            if learn.epoch == 0:
                (learn.run_path / "checkpoints").write_text("a file of this name")
            if learn.epoch == 1:
                (learn.run_path / "checkpoints").unlink()

    learn = learner(InTheWay(), run=tmp_path / "run")
    with pytest.warns(cl.ConvlensWarning) as said:
        learn.fit(2, 1e-2)
    assert str(said[0].message).startswith("The checkpoint of epoch 0 is not saved. folder=")
    assert str(said[1].message).startswith("Checkpoints are saved in ")
    assert len(learn.recorder.epochs) == 2
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1

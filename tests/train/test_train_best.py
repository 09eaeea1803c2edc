"""The averaged, the best and the last weights: EMA, BestCheckpoint, EarlyStopping."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl
from convlens.runs.checkpoints import best_checkpoint, list_checkpoints, load_checkpoint

BATCHES = [
    (torch.randn(8, 3, generator=torch.Generator().manual_seed(i)), torch.ones(8, 1))
    for i in range(3)
]


class Scripted(cl.Callback):
    """Replaces the validation's numbers by written ones, and keeps the weights of each epoch."""

    order = -95

    def __init__(self, *losses, **metrics):
        self.losses, self.metrics, self.validated, self.trained = losses, metrics, [], []

    def before_validation(self, learn):
        self.trained.append(learn.model.weight.detach().clone())

    def after_validation(self, learn):
        learn.validation = {"loss": self.losses[learn.epoch]}
        learn.validation |= {name: values[learn.epoch] for name, values in self.metrics.items()}
        self.validated.append(learn.model.weight.detach().clone())


def score(output, y):
    return float(-F.mse_loss(output, y))


def accuracy(output, y):
    return float((output > 0).float().mean())


def learner(*callbacks, valid=BATCHES[:1], run=None, **options):
    torch.manual_seed(0)
    options = {"loss": F.mse_loss, "optimizer": torch.optim.SGD, "progress": False, **options}
    dls = cl.DataLoaders(BATCHES, valid)
    return cl.Learner(dls, nn.Linear(3, 1), callbacks=callbacks, run=run, **options)


# ---- EMA ----------------------------------------------------------------------------------------


class Weights(cl.Callback):
    def __init__(self):
        self.steps, self.at_start = [], []

    def before_epoch(self, learn):
        self.at_start.append(learn.model.weight.detach().clone())

    def after_step(self, learn):
        self.steps.append(learn.model.weight.detach().clone())


@pytest.mark.parametrize("valid", [BATCHES[:1], None])
def test_the_average_is_validated_saved_and_left(tmp_path, valid):
    script = Scripted(*[0.0] * 2)
    learn = learner(cl.EMA(0.7), Weights(), script, valid=valid, run=tmp_path / "run")
    average = learn.model.weight.detach().clone()
    learn.fit(2, 0.05)
    averages = []
    for t, weight in enumerate(learn.weights.steps):
        average = average.lerp(weight, 1 - min(0.7, (1 + t) / (10 + t)))
        averages.append(average)
    torch.testing.assert_close(learn.model.weight.detach(), averages[-1])
    assert torch.equal(learn.weights.at_start[1], learn.weights.steps[2])  # it trains with its own
    if valid is not None:
        torch.testing.assert_close(script.validated, [averages[2], averages[5]])
        torch.testing.assert_close(script.trained, learn.weights.steps[2::3])
    other = nn.Linear(3, 1)
    load_checkpoint(best_checkpoint(tmp_path / "run"), other)
    assert best_checkpoint(tmp_path / "run").parent.name == "averaged"
    torch.testing.assert_close(other.weight.detach(), averages[-1])
    load_checkpoint(tmp_path / "run" / "checkpoints", other)
    assert torch.equal(other.weight, learn.weights.steps[-1])


def test_buffers_are_averaged_but_not_masks_and_counts():
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

        def forward(self, x):
            return super().forward(self.norm(x))

    learn = cl.Learner(
        cl.DataLoaders(BATCHES), Net(), loss=F.mse_loss, callbacks=[cl.EMA()], run=None,
        progress=False,
    )  # fmt: skip
    learn.fit(1, 0.01)
    assert learn.model.norm.num_batches_tracked == 3
    assert learn.model.mask.tolist() == [0.0, -torch.inf]
    assert 0 < learn.model.norm.running_mean.abs().sum() < 1


def test_an_average_ends_with_the_fit_however_it_ends():
    class Ends(cl.Callback):
        def __init__(self, error):
            self.error = error

        def after_step(self, learn):
            if learn.step == 4:
                self.trained = learn.model.weight.detach().clone()
                raise self.error

    for error, is_average in (
        (cl.CancelFitError(), True), (KeyboardInterrupt(), True), (ValueError("x"), False)
    ):  # fmt: skip
        learn = learner(cl.EMA(0.9), Ends(error))
        with _suppressed(error):
            learn.fit(3, 0.05)
        assert torch.equal(learn.model.weight, learn.ends.trained) is not is_average


def _suppressed(error):
    from contextlib import suppress

    return suppress(type(error))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_a_decay_that_cannot_work(decay):
    with pytest.raises(cl.ArgumentError, match=r"decay must be at least 0 and below 1, got"):
        cl.EMA(decay)


# ---- the best ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_run", [True, False])
@pytest.mark.parametrize("averaging", [True, False])
def test_the_best_weights_are_those_that_were_validated(tmp_path, in_run, averaging):
    script = Scripted(0.5, 0.2, np.nan, 0.4)
    best = cl.BestCheckpoint()
    averages = [cl.EMA(0.5)] if averaging else []
    run = tmp_path / "run" if in_run else None
    learn = learner(best, script, *averages, run=run)
    learn.fit(4, 0.05)
    assert torch.equal(learn.model.weight, script.validated[1])
    assert torch.equal(script.validated[1], script.trained[1]) is not averaging
    assert (best.value, best.epoch) == (0.2, 1)
    assert repr(best) == "BestCheckpoint('valid_loss', 0.2 at epoch 2)"
    if in_run:
        other = nn.Linear(3, 1)
        facts = load_checkpoint(best_checkpoint(run), other)
        assert facts == {"epoch": 1, "step": 6, "metric": "valid_loss", "value": 0.2}
        assert torch.equal(other.weight, script.validated[1])
        assert len(list_checkpoints(run / "best")) == 1
        assert cl.open_run(run).meta["best"]["epoch"] == 1


def test_by_a_score_and_by_the_loss_of_the_training():
    script = Scripted(1.0, 1.0, 1.0, accuracy=[0.5, 0.9, 0.7])
    learn = learner(cl.BestCheckpoint("accuracy", restore=False), script, metrics=[accuracy])
    learn.fit(3, 0.05)
    assert learn.best_checkpoint.epoch == 1
    assert torch.equal(learn.model.weight, script.trained[2])
    of_training = learner(cl.BestCheckpoint("train_loss"), valid=None)
    of_training.fit(3, 0.05)
    assert of_training.best_checkpoint.epoch == 2


def test_nan_alone_is_never_best():
    learn = learner(cl.BestCheckpoint(), Scripted(np.nan, np.nan))
    learn.fit(2, 0.05)
    assert (learn.best_checkpoint.value, learn.best_checkpoint.epoch) == (None, -1)


@pytest.mark.parametrize("kind", [cl.EarlyStopping, cl.BestCheckpoint])
def test_a_metric_that_is_not_measured(kind, tmp_path):
    for metric, valid, sentence in (
        ("acuracy", BATCHES, r"metric='acuracy' is not measured .* known are 'train_loss', 'valid_l"
         r"oss', 'accuracy'. Others are given to the Learner as metrics. Closest: 'accuracy'"),
        ("valid_loss", None, r"is measured on validation data, but dls.valid is None; give me"),
        ("accuracy", None, r"is measured on validation data, but dls.valid is None; give me"),
    ):  # fmt: skip
        learn = learner(kind(metric, mode="max"), valid=valid, metrics=[accuracy])
        before = learn.model.weight.detach().clone()
        with pytest.raises(cl.ArgumentError, match=sentence):
            learn.fit(1, 0.01)
        assert torch.equal(before, learn.model.weight)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metric": "niceness"}, r"whether a larger 'niceness' is better is not known; give mode="),
        ({"mode": "up"}, r"mode must be 'min', 'max' or None, got 'up'"),
        ({"metric": 3}, r"metric must be a name such as 'valid_loss', got 3"),
        ({"patience": 0}, r"patience must be a whole number of at least 1, got 0"),
        ({"min_delta": -1}, r"min_delta must be a number of at least 0, got -1"),
    ],
)
def test_arguments_that_cannot_work(arguments, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        cl.EarlyStopping(**arguments)


# ---- the end -------------------------------------------------------------------------------------


def test_an_early_stop_says_why(tmp_path, capsys):
    losses = [1.0, 0.5, 0.49, 0.48, 0.1]
    learn = learner(
        cl.EarlyStopping(patience=2, min_delta=0.05), cl.BestCheckpoint(), Scripted(*losses),
        run=tmp_path / "run", progress=True,
    )  # fmt: skip
    learn.fit(5, 0.05)
    reason = "valid_loss has not improved on 0.5 (epoch 2) for 2 epochs"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == f"stopped: {reason}"
    assert (len(learn.recorder.epochs), learn.epochs_done, learn.error) == (4, 4, None)
    meta = cl.open_run(tmp_path / "run").meta
    assert (meta["status"], meta["error"]) == ("stopped", reason)
    assert learn.best_checkpoint.epoch == 3
    assert repr(learn.early_stopping) == "EarlyStopping('valid_loss', patience=2)"


def test_a_second_fit_goes_on_with_the_optimizer_and_the_data(tmp_path):
    learn = learner(
        cl.EarlyStopping(patience=1), Scripted(1.0, 2.0, 3.0), optimizer=torch.optim.AdamW
    )
    learn.fit(3, 0.01)
    optimizer = learn.optimizer
    assert (learn.epochs_done, learn.cancelled) == (2, True)
    learn.fit(1, 0.01)
    assert learn.optimizer is optimizer
    assert optimizer.state[learn.model.weight]["step"] == 9
    assert (learn.epochs_done, learn.cancelled, learn.stop_reason) == (3, False, "")


def test_a_second_fit_to_the_same_folder_says_what_to_do(tmp_path):
    learn = learner(run=tmp_path / "run")
    learn.fit(1, 0.01)
    before = learn.model.weight.detach().clone()
    with pytest.raises(cl.RunError, match=r"run='.*run' holds the last fit of this Learner; set"):
        learn.fit(1, 0.01)
    assert torch.equal(before, learn.model.weight)
    learn.run = tmp_path / "again"
    learn.fit(1, 0.01)
    assert cl.open_run(tmp_path / "again").meta["status"] == "finished"


def test_a_checkpoint_of_another_architecture(tmp_path):
    learn = learner(run=tmp_path / "run")
    learn.fit(1, 0.01)
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(cl.CheckpointError, match=r"another model: weight is \(1, 3\), the mod"):
        cl.load_checkpoint(best_checkpoint(learn.run_path), model)
    assert torch.equal(model.weight, before)


def test_a_loader_of_ones_own_whose_last_batch_has_one_image():
    data = TensorDataset(torch.randn(9, 3), torch.ones(9, 1))
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def made(**options):
        dls = cl.DataLoaders(DataLoader(data, batch_size=4, **options))
        return cl.Learner(dls, model, loss=F.mse_loss, run=None, progress=False)

    with pytest.raises(cl.TrainingError, match=r"'1' \(BatchNorm1d\) is batch n.*drop_last=True"):
        made().fit(1, 0.01)
    made(drop_last=True).fit(1, 0.01)

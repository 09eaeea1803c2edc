"""The loop, its events, and what it records."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

import convlens as cl
from convlens.runs.checkpoints import load_checkpoint
from convlens.train.callbacks.base import EVENTS
from convlens.train.optimizers import NamedOptimizer


def data(n=96, batch_size=32, n_valid=40, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n + n_valid)
    x = rng.normal(size=(n + n_valid, 1, 8, 8)).astype(np.float32) + y[:, None, None, None]
    return cl.from_arrays(
        x[:n], y[:n], layout="NCHW", valid=(x[n:], y[n:]), batch_size=batch_size, name="toy"
    )


def net():
    torch.manual_seed(0)
    return cl.simple_cnn(1, 3, norm="batch", widths=(4, 8))


def learner(callbacks=(), run=None, **kwargs):
    kwargs.setdefault("metrics", [cl.accuracy])
    return cl.Learner(data(), net(), callbacks=callbacks, run=run, progress=False, **kwargs)


class Log(cl.Callback):
    def __init__(self):
        self.events = []


def _logging(name):
    def event(self, learn):
        self.events.append(name if learn.training or "batch" not in name else f"valid {name}")

    return event


for _name in EVENTS:
    setattr(Log, _name, _logging(_name))


def hand_written(dls, model, schedule, n_epochs):
    optimizer = NamedOptimizer("adamw")(model.parameters(), lr=1.0)
    losses, step, n_steps = [], 0, n_epochs * len(dls.train)
    for epoch in range(n_epochs):
        dls.train.set_epoch(epoch)
        model.train()
        for x, y in dls.train:
            lr, momentum = schedule(step, n_steps)
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = lr, (momentum, 0.99)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
    return losses


def test_equals_a_hand_written_loop_bit_for_bit():
    model = net()
    losses = hand_written(data(), model, cl.OneCycle(0.05), 3)
    learn = learner([cl.ActivationStats(), cl.Pictures()])
    learn.fit_one_cycle(3, 0.05)
    assert learn.recorder.steps.loss.tolist() == losses
    ours, theirs = learn.model.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_order_of_events():
    log = Log()
    learner([log]).fit(1, 0.01)
    batch = ["before_batch", "before_loss", "after_loss", "before_backward", "after_backward",
             "before_step", "after_step", "after_batch"]  # fmt: skip
    valid = ["valid before_batch", "before_loss", "after_loss", "valid after_batch"] * 2
    assert log.events == [
        "before_fit", "before_epoch", *batch * 3, "before_validation", *valid,
        "after_validation", "after_epoch", "after_fit",
    ]  # fmt: skip


def test_callbacks_are_reachable_in_snake_case():
    learn = learner([cl.ActivationStats(), Log()])
    assert isinstance(learn.recorder, cl.Recorder)
    assert isinstance(learn.activation_stats, cl.ActivationStats)
    assert isinstance(learn.log, Log)
    with pytest.raises(AttributeError, match=r"no 'other'; callbacks of this one: learn.recorder"):
        _ = learn.other
    assert isinstance(copy.copy(learn).recorder, cl.Recorder)
    for name, snake in (("LRFinder", "lr_finder"), ("Ema2", "ema2")):
        assert type(name, (cl.Callback,), {}).attribute() == snake


@pytest.mark.parametrize("name", ["Model", "FitOneCycle", "Optimizer"])
def test_a_callback_that_would_hide_something_is_refused(name):
    callback = type(name, (cl.Callback,), {})()
    with pytest.raises(cl.ArgumentError, match=rf"callback {name} would hide learn\.\w+; give its"):
        learner([callback])
    sentence = r"callbacks has two of Log, which would share the name learn.log"
    with pytest.raises(cl.ArgumentError, match=sentence):
        learner([Log(), Log()])


class Cancel(cl.Callback):
    """Raises an exception in an event of the second step."""

    def __init__(self, event, error):
        self.event, self.error, self.n_after_batch = event, error, 0
        setattr(type(self), event, lambda self, learn: self._raise(learn))

    def _raise(self, learn):
        if learn.training and learn.step == 1 and learn.epoch == 0:
            raise self.error


def cancelling(event, error):
    return type("Cancelling", (Cancel,), {})(event, error)


def test_cancel_a_batch():
    class Skip(cl.Callback):
        seen = 0

        def before_backward(self, learn):
            Skip.seen += 1
            if Skip.seen == 2:
                raise cl.CancelBatchError

    log = Log()
    learn = learner([log, Skip()])
    learn.fit(1, 0.01)
    assert learn.recorder.steps.step.tolist() == [0, 1]
    assert log.events.count("after_batch") == 3


def test_cancel_an_epoch():
    log = Log()
    learn = learner([log, cancelling("after_step", cl.CancelEpochError())])
    learn.fit(2, 0.01)
    assert log.events.count("before_epoch") == 2
    assert log.events.count("before_validation") == 1
    assert [epoch.epoch for epoch in learn.recorder.epochs] == [1]
    assert learn.recorder.steps.epoch.tolist() == [0, 0, 1, 1, 1]


def test_cancel_a_fit_closes_the_run(tmp_path):
    log = Log()
    learn = learner([log, cancelling("before_loss", cl.CancelFitError())], run=tmp_path / "run")
    learn.fit(2, 0.01)
    assert log.events[-1] == "after_fit"
    with cl.open_run(tmp_path / "run") as run:
        assert run.meta["status"] == "stopped"
        assert run.steps.step.tolist() == [0]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("error", [cl.CancelBatchError, cl.CancelEpochError, cl.CancelFitError])
def test_cancelling_in_every_event(event, error):
    """It cancels, or says in a sentence that there is nothing to cancel; the end always comes."""

    class Always(cl.Callback):
        pass

    def cancel(self, learn):
        raise error

    setattr(Always, event, cancel)
    log = Log()
    learn = learner([log, Always()])
    allowed = () if error is cl.CancelFitError else (cl.TrainingError, cl.ArgumentError)
    with contextlib.suppress(*allowed):
        learn.fit(2, 0.01)
    assert log.events[-1] == "after_fit"


def test_cancelling_where_there_is_nothing_to_cancel_is_said():
    class Early(cl.Callback):
        def before_epoch(self, learn):
            raise cl.CancelBatchError

    with pytest.raises(cl.TrainingError, match="raised CancelBatchError in an event where there"):
        learner([Early()]).fit(1, 0.01)


def test_a_batch_cancelled_at_the_end_of_an_epoch_is_one_step():
    class Skip(cl.Callback):
        def before_step(self, learn):
            if learn.epoch == 0 and learn.step == 2:
                raise cl.CancelBatchError

    learn = learner([Skip(), cl.ActivationStats()])
    learn.fit(2, 0.01)
    history = learn.activation_stats["0.0"]
    assert history.first_step.tolist() == [0, 1, 2, 3, 4]
    assert history.calls.tolist() == [1, 1, 2, 1, 1]


def test_a_callback_may_validate_before_the_first_validation():
    class Look(cl.Callback):
        def before_epoch(self, learn):
            self.result = learn.validate()

    learn = learner([cl.Pictures(), Look()])
    learn.fit(1, 0.01)
    assert set(learn.look.result) == {"loss", "accuracy"}


def accuracy_again(output, y):
    return cl.accuracy(output, y)


accuracy_again.__name__ = "accuracy"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metrics": "accuracy"}, r"metrics must be a list of functions .* got 'accuracy'"),
        (
            {"metrics": cl.accuracy},
            r"metrics must be a list of functions .* got <function accuracy",
        ),
        ({"metrics": [cl.accuracy, accuracy_again]}, r"metrics has more than one 'accuracy'"),
        ({"metrics": [Log]}, r"metrics must be a list of functions .* got \[<class"),
        ({"callbacks": [cl.Pictures]}, r"callbacks must be a list of callbacks, .* got \[<class"),
        ({"callbacks": cl.Pictures()}, r"callbacks must be a list of callbacks, .* got Pictures"),
        ({"device": "nonsense"}, r"device='nonsense' cannot be used here"),
        ({"dls": [1]}, r"dls must be DataLoaders, from cl.mnist, .* got list"),
        ({"model": 3}, r"model must be a torch.nn.Module, got int"),
        ({"loss": nn.CrossEntropyLoss}, r"loss=CrossEntropyLoss is a class; give an object, Cross"),
        ({"loss": 3}, r"loss must be a function of \(output, y\) or a name, got 3"),
        ({"optimizer": "adan"}, r"optimizer=.adan. is not known; .* Closest: 'adam"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)},
            r"optimizer is an object of class SGD; give the class, torch.optim.SGD, or a function",
        ),
    ],
)
def test_learner_arguments_that_cannot_work(arguments, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        cl.Learner(**{"dls": data(), "model": net(), "run": None, **arguments})


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("my own"), "failed", "ValueError: my own"),
        (KeyboardInterrupt(), "stopped", "interrupted from the keyboard"),
    ],
)
def test_an_error_closes_the_run_and_removes_hooks(tmp_path, error, status, text):
    learn = learner(
        [cancelling("after_backward", error), cl.ActivationStats()], run=tmp_path / "run"
    )
    with pytest.raises(type(error)):
        learn.fit(1, 0.01)
    assert learn.error is error
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in learn.model.modules())
    with cl.open_run(tmp_path / "run") as run:
        assert run.meta["status"] == status
        assert run.meta["error"] == text


def test_after_fit_comes_to_those_whose_before_fit_came():
    class Fails(cl.Callback):
        order = 1000

        def before_fit(self, learn):
            raise ValueError("at once")

    log = Log()
    with pytest.raises(ValueError, match="at once"):
        learner([log, Fails()]).fit(1, 0.01)
    assert log.events == ["before_fit", "after_fit"]


def test_recorder_keeps_every_step_and_epoch():
    class Read(cl.Callback):
        def after_step(self, learn):
            self.read = [*getattr(self, "read", []), learn.recorder.steps]

    learn = learner([Read()], metrics=[cl.accuracy])
    assert len(learn.recorder.steps) == 0
    learn.fit_one_cycle(25, 0.05)
    steps = learn.recorder.steps
    assert steps.step.tolist() == list(range(75))  # more than one block
    assert steps.epoch.tolist() == [e for e in range(25) for _ in range(3)]
    assert set(steps.hypers) >= {"lr", "momentum", "beta2", "eps", "weight_decay"}
    expected = [cl.OneCycle(0.05)(s, 75) for s in range(75)]
    np.testing.assert_allclose(steps.hypers["lr"][:, 0], [lr for lr, _ in expected])
    np.testing.assert_allclose(steps.hypers["momentum"][:, 0], [m for _, m in expected])
    assert (np.diff(steps.wall_s) > 0).all()
    epoch = learn.recorder.epochs[-1]
    assert (epoch.first_step, epoch.last_step) == (72, 74)
    assert epoch.train_loss == pytest.approx(steps.loss[-3:].mean(), rel=1e-6)
    assert set(epoch.metrics) == {"accuracy"}
    assert epoch.valid_loss is not None
    assert epoch.wall_s > 0
    for n, read in enumerate(learn.read.read, start=1):
        np.testing.assert_array_equal(read.loss, steps.loss[:n])
    assert repr(learn.recorder) == "Recorder(75 steps, 25 epochs)"
    assert repr(learn) == (
        "Learner(Sequential with 649 parameters, DataLoaders 'toy', cpu, 25 epochs trained)"
    )


def test_every_parameter_group_is_recorded():
    def two_groups(parameters, lr):
        parameters = list(parameters)
        groups = [{"params": parameters[:2], "weight_decay": 0.5}, {"params": parameters[2:]}]
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)

    learn = learner(optimizer=two_groups)
    learn.fit(1, 0.01)
    hypers = learn.recorder.steps.hypers
    assert hypers["weight_decay"].tolist() == [[0.5, 0.0]] * 3
    assert hypers["lr"].shape == (3, 2)


def test_train_loss_is_weighted_by_batch_size():
    learn = cl.Learner(data(n=40, batch_size=32), net(), run=None, progress=False)
    learn.fit(1, 0.01)
    expected = np.average(learn.recorder.steps.loss, weights=[32, 8])
    assert learn.recorder.epochs[0].train_loss == pytest.approx(expected)


def test_validation_is_weighted_and_leaves_every_mode_alone():
    learn = learner()
    learn.model[0][2].eval()  # a frozen batch normalization
    x, y = (torch.cat(parts) for parts in zip(*data(n_valid=40).valid, strict=True))
    result = learn.validate([(x[:7], y[:7]), (x[7:], y[7:])])
    with torch.no_grad():
        output = learn.model.eval()(x)
    assert result["loss"] == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-5)
    assert result["accuracy"] == pytest.approx((output.argmax(1) == y).float().mean().item())
    learn.model.train()
    learn.model[0][2].eval()
    learn.fit(1, 0.01)
    assert learn.model.training
    assert not learn.model[0][2].training
    assert learn.model[0][2].num_batches_tracked == 0


def test_a_second_fit_records_a_run_of_its_own():
    learn = learner(run="auto")
    learn.fit(1, 0.01)
    first = learn.run_path
    learn.fit(2, 0.01)
    assert (first.name, learn.run_path.name) == ("toy-0001", "toy-0002")
    assert len(learn.recorder.epochs) == 2
    assert learn.epochs_done == 3
    before = sorted((learn.run_path / "checkpoints").iterdir())
    checkpoints, learn.run = learn.run_path / "checkpoints", None
    learn.fit(1, 0.01)
    assert sorted(checkpoints.iterdir()) == before
    assert learn.run_path is None


def test_the_run_holds_what_the_learner_holds(tmp_path):
    learn = learner([cl.ActivationStats(), cl.Pictures(n_worst=5)], run=tmp_path / "run", seed=3)
    learn.fit_one_cycle(25, 0.05)
    with cl.open_run(tmp_path / "run") as run:
        assert run.meta["status"] == "finished"
        assert run.meta["seed"] == 3
        assert run.meta["data"]["n_train"] == 96
        assert run.meta["model"]["n_parameters"] == sum(p.numel() for p in net().parameters())
        assert run.meta["optimizer"]["class"] == "AdamW"
        assert run.meta["schedule"]["lr_max"] == 0.05
        assert len(run.meta["summary"]["rows"]) > 3
        np.testing.assert_array_equal(run.steps.loss, learn.recorder.steps.loss)
        np.testing.assert_array_equal(
            run.steps.hypers["momentum"], learn.recorder.steps.hypers["momentum"]
        )
        assert list(run.epochs) == list(learn.recorder.epochs)
        assert run.activation_stats.names == learn.activation_stats.names
        for name in run.activation_stats:
            here, there = learn.activation_stats[name], run.activation_stats[name]
            np.testing.assert_array_equal(here.counts, there.counts)
            np.testing.assert_array_equal(here.first_step, np.arange(75))
        assert len(run.pictures("batch")) == 1
        worst = run.pictures("worst")[-1]
        assert worst.images.shape == (5, 8, 8)
        np.testing.assert_array_equal(worst.images, learn.pictures.pictures["worst"].images)
    other = cl.simple_cnn(1, 3, norm="batch", widths=(4, 8))
    facts = load_checkpoint(tmp_path / "run" / "checkpoints", other)
    assert facts["epoch"] == 24
    assert all(
        torch.equal(a, b)
        for a, b in zip(other.state_dict().values(), learn.model.state_dict().values(), strict=True)
    )
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_the_worst_predictions_are_the_worst():
    learn = learner([cl.Pictures(n_worst=3)])
    learn.fit(2, 0.01)
    x, y = (torch.cat(parts) for parts in zip(*learn.dls.valid, strict=True))
    with torch.no_grad():
        losses = F.cross_entropy(learn.model.eval()(x), y, reduction="none")
    worst = losses.topk(3)
    captions = learn.pictures.pictures["worst"].captions
    for caption, loss, index in zip(captions, worst.values, worst.indices, strict=True):
        assert caption.startswith(f"{y[index]}, predicted ")
        assert caption.endswith(f"loss {loss:.2f}")


def test_pictures_of_something_that_is_no_classification():
    batches = [(torch.randn(4, 1, 3, 3), torch.randn(4, 9))] * 2
    learn = cl.Learner(
        cl.DataLoaders(batches, batches, name="values"),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 9)),
        loss=F.mse_loss, callbacks=[cl.Pictures()], run=None, progress=False,
    )  # fmt: skip
    learn.fit(1, 0.01)
    assert set(learn.pictures.pictures) == {"batch"}
    assert learn.pictures.pictures["batch"].captions == [""] * 4


def test_the_same_seed_gives_the_same_training():
    class Dropout(cl.Callback):
        def before_batch(self, learn):
            learn.x = F.dropout(learn.x)

    losses = []
    for seed in (1, 1, 2):
        learn = learner([Dropout()], seed=seed)
        learn.fit(1, 0.01)
        losses.append(learn.recorder.steps.loss.tolist())
    assert losses[0] == losses[1] != losses[2]


def test_foreign_batches_and_no_validation():
    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))] * 3
    learn = cl.Learner(cl.DataLoaders(batches, name="mine"), net(), run=None, progress=False)
    learn.fit(1, 0.01)
    assert learn.recorder.epochs[0].valid_loss is None
    assert learn.summary().rows
    with pytest.raises(cl.ArgumentError, match=r"dls.valid is None; call validate\(batches\)"):
        learn.validate()


def test_a_summary_says_what_it_does_not_know(tmp_path):
    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))] * 3
    dls = cl.DataLoaders(batches, name="mine")
    cl.Learner(dls, net(), run=tmp_path / "a", progress=False).fit(1, 0.01)
    notes = cl.open_run(tmp_path / "a").meta["summary"]["notes"]
    assert notes == ["No summary: the shape of the images is not known beforehand."]

    class Depends(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x) if x.sum().item() < 1e9 else x

    learn = cl.Learner(data(), Depends(), run=tmp_path / "b", progress=False)
    learn.fit(1, 0.01)
    notes = cl.open_run(tmp_path / "b").meta["summary"]["notes"]
    assert notes[0].startswith("run on an image of zeros, since the Depends decides by values")
    assert len(learn.recorder.steps) == 3


@pytest.mark.parametrize("n_epochs", [0, -1, 1.5, "2"])
def test_no_epochs(n_epochs):
    sentence = rf"n_epochs must be a whole number of at least 1, got {n_epochs!r}"
    with pytest.raises(cl.ArgumentError, match=sentence):
        learner().fit(n_epochs)


def test_loaders_without_a_length_or_a_batch_are_refused_before_training():
    class Endless:
        def __iter__(self):
            return iter([])

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(1, 8, 8), 0)])

    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))]
    for train, valid, sentence in (
        (Endless(), None, r"dls.train \(Endless\) has no length"),
        (DataLoader(Stream()), None, r"dls.train \(DataLoader\) has no length"),
        ([], batches, r"dls.train has no batches"),
        (batches, [], r"dls.valid has no batches"),
    ):
        learn = cl.Learner(cl.DataLoaders(train, valid), net(), run=None, progress=False)
        with pytest.raises(cl.ArgumentError, match=sentence):
            learn.fit(1)
        assert len(learn.recorder.steps) == 0


def test_nothing_to_read_before_a_fit():
    learn = learner([cl.ActivationStats()])
    with pytest.raises(cl.TrainingError, match=r"made by the first fit; call learn.fit"):
        _ = learn.optimizer
    with pytest.raises(cl.ArgumentError, match=r"activation_stats holds nothing yet: call"):
        len(learn.activation_stats)


class Poison(cl.Callback):
    """Makes the weights of one layer infinite before the third step."""

    def before_batch(self, learn):
        if learn.training and learn.step == 2:
            with torch.no_grad():
                learn.model[1][0].weight.fill_(math.inf)


def test_a_loss_that_is_not_finite_names_step_and_layer(tmp_path):
    learn = learner([Poison(), cl.ActivationStats()], run=tmp_path / "run")
    with pytest.raises(
        cl.NonFiniteLossError,
        match=r"loss became nan at step 2 \(epoch 0\); the first layer whose output was not "
        r"finite is '1.0' \(Conv2d\). Lower the learning rate",
    ):
        learn.fit(1, 0.01)
    assert len(learn.recorder.steps) == 2
    # The search for the layer is no step and changes nothing.
    assert learn.activation_stats["0.0"].calls.tolist() == [1, 1, 1]
    assert learn.model[0][2].num_batches_tracked == 3
    run = cl.open_run(tmp_path / "run")
    assert run.meta["status"] == "failed"
    assert run.activation_stats["1.0"].nonfinite[-1] == 1.0
    assert run.activation_stats["0.0"].nonfinite[-1] == 0.0


def test_a_loss_in_half_precision():
    learn = learner(loss=lambda output, y: F.cross_entropy(output, y).bfloat16())
    learn.fit(1, 0.01)
    assert len(learn.recorder.steps) == 3


def test_a_loss_that_is_not_finite_because_of_the_input_or_the_loss():
    class Spoil(cl.Callback):
        def before_batch(self, learn):
            learn.x[0, 0, 0, 0] = math.nan

    def broken(output, y):
        return F.cross_entropy(output, y) * math.inf

    with pytest.raises(cl.NonFiniteLossError, match="not finite is the input itself"):
        learner([Spoil()]).fit(1, 0.01)
    with pytest.raises(cl.NonFiniteLossError, match="so it is the loss function or the labels"):
        learner(loss=broken).fit(1, 0.01)


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on a GPU, where looking at every loss would mean waiting."""

    device = property(lambda self: torch.device("cuda"))


def test_elsewhere_the_loss_is_looked_at_every_32_steps():
    class Late(cl.Callback):
        order = -6  # before the guard

        def after_loss(self, learn):
            value = learn.loss * (math.nan if learn.step == 40 else 1.0)
            learn.loss = value.as_subclass(Elsewhere)

    learn = cl.Learner(
        data(n=80, batch_size=2), net(), callbacks=[Late()], run=None, progress=False
    )
    with pytest.raises(cl.NonFiniteLossError, match=r"at one of the steps 40 to 71"):
        learn.fit(2, 0.001)


class CountItems(TorchDispatchMode):
    """Counts how often a tensor's value is fetched into Python."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_item_per_step():
    counts = []
    for n_epochs in (10, 20):  # 30 and 60 steps: both within one block
        # SGD, because AdamW reads its own step counter
        learn = learner([cl.ActivationStats()], optimizer=torch.optim.SGD)
        with CountItems() as counter:
            learn.fit_one_cycle(n_epochs, 0.01)
        counts.append(counter.n)
    assert counts[1] - counts[0] <= 10  # none per step; at most one per epoch


def test_activation_stats_draws_with_epochs_marked():
    learn = learner([cl.ActivationStats()])
    learn.fit(2, 0.01)
    assert len(learn.activation_stats.epochs) == 2
    ax = learn.activation_stats.color_dim(-2)
    assert ax.get_xlabel()
    assert len(learn.activation_stats.plot_layer_stats("0.0")) == 3
    assert learn.recorder.plot_loss().get_ylabel()
    assert len(learn.recorder.plot_sched()) == 2

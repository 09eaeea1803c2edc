"""`WatchCallback` under real Lightning trainers."""

import os
import signal
import subprocess
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl
from convlens.integrations.lightning import WatchCallback

# What torch says of Lightning, and Lightning of a trainer as small as these.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the log"),
]


class Digits(pl.LightningModule):
    """Calls its network, never itself, as most training steps do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(4),
            nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def logits(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Digits):
    def validation_step(self, batch, batch_idx):
        self.log("valid_loss", F.cross_entropy(self.logits(batch[0]), batch[1]))


@pytest.fixture(scope="module")
def data():
    loaders = cl.mnist(batch_size=256, device="cpu")
    x, y = next(iter(loaders.train))
    return TensorDataset(x, y)


def loader(data, batch_size=32):
    return DataLoader(data, batch_size)


def trainer(callback, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(
        **{"accelerator": "cpu", "max_epochs": 1, "callbacks": [callback]} | quiet | options
    )


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def n_modes():
    return len(torch.overrides._get_current_function_mode_stack())


def by_hand(data, steps, accumulate=1, **options):
    """The same training in a loop of one's own, watched by `cl.watch`."""
    model = Digits()
    optimizer = model.configure_optimizers()
    batches = iter(loader(data))
    with cl.watch(model, count_forwards=False, **options) as stats:
        for _ in range(steps):
            stats.step()
            for _ in range(accumulate):
                x, y = next(batches)
                (F.cross_entropy(model(x), y) / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()
    return stats


def assert_same(here, there):
    assert here.names == there.names
    assert list(here.layers) == list(there.layers)
    for name in there:
        a, b = here[name], there[name]
        for field in ("first_step", "last_step", "calls", "counts", "mean", "std", "near_zero"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
        np.testing.assert_array_equal(a.dead_channels, b.dead_channels)
        np.testing.assert_array_equal(a.silent_channels, b.silent_channels)


def test_the_columns_are_those_of_a_loop_of_ones_own(data):
    callback = WatchCallback(eps=0.1)
    trainer(callback).fit(Digits(), loader(data))
    assert callback.stats["net.3"].first_step.tolist() == list(range(8))
    assert [layer.feeds_relu for layer in callback.stats.layers] == [True, False, True, False]
    assert_same(callback.stats, by_hand(data, 8, eps=0.1))
    assert callback.run_path is None


def test_accumulated_batches_are_one_column_and_every_nth_step(data):
    callback = WatchCallback()
    trainer(callback, accumulate_grad_batches=2).fit(Digits(), loader(data))
    assert callback.stats["net.0"].calls.tolist() == [2] * 4
    assert_same(callback.stats, by_hand(data, 4, accumulate=2))
    callback = WatchCallback(["0"], module="net", every=3)
    trainer(callback).fit(Digits(), loader(data))
    assert callback.stats.names == ["0"]
    assert callback.stats[0].first_step.tolist() == [0, 3, 6]


class CallsItself(Digits):
    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.net[6](torch.ones(1, 288))  # after the module's own forward
        return loss


class Between(Validated):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 4 else None

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.net(batch[0])

    def on_train_epoch_end(self):  # after a batch that was skipped and so has no end
        self.net(torch.zeros(5, 1, 28, 28))


class Checkpointed(Digits):
    def logits(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


class Frozen(Digits):
    def on_train_epoch_start(self):
        self.net[2].eval()


@pytest.mark.parametrize(
    ("module", "epochs", "last"),
    [(CallsItself, 1, 2), (Between, 2, 1), (Checkpointed, 1, 1), (Frozen, 1, 1)],
)
def test_what_a_training_batch_runs_is_counted_once(data, module, epochs, last):
    callback = WatchCallback()
    validation = [loader(data)] if module is Between else []
    trainer(callback, max_epochs=epochs).fit(module(), loader(data), *validation)
    assert callback.stats["net.0"].first_step.tolist() == list(range(8))
    assert callback.stats["net.0"].calls.tolist() == [1] * 8
    assert callback.stats["net.6"].calls.tolist() == [last] * 8
    if module is Frozen:
        assert np.isnan(callback.stats["net.2"].batch_mean).all()
        assert callback.stats["net.2"].running_mean.tolist() == [0.0] * 8


def test_sanity_check_and_validation_are_not_counted(data):
    callback = WatchCallback()
    options = {"max_epochs": 2, "num_sanity_val_steps": 2, "val_check_interval": 4}
    trainer(callback, **options).fit(Validated(), loader(data), loader(data, 64))
    assert callback.stats["net.0"].first_step.tolist() == list(range(16))
    assert callback.stats["net.0"].n.tolist() == [32 * 4 * 169] * 16


def test_a_first_batch_that_is_skipped_does_not_hide_the_relus(data):
    class SkipsFirst(Digits):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch == 0 else None

    callback = WatchCallback()
    trainer(callback, max_epochs=2).fit(SkipsFirst(), loader(data))
    assert callback.stats["net.0"].layer.feeds_relu
    assert len(callback.stats["net.0"]) == 8


def test_manual_optimization_with_two_optimizers(data):
    class Manual(Digits):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self):
            halves = self.net[:3], self.net[3:]
            return [torch.optim.SGD(half.parameters(), lr=0.1) for half in halves]

    callback = WatchCallback()
    trainer(callback).fit(Manual(), loader(data))
    assert callback.stats["net.0"].first_step.tolist() == list(range(0, 16, 2))
    assert callback.stats["net.0"].calls.tolist() == [2] * 8


class Measured(Digits):
    """Keeps the gradient that each optimizer's step gets."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def on_before_optimizer_step(self, optimizer):
        self.norms.append(self.net[0].weight.grad.norm().item())


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("every", [1, 2])
def test_each_step_has_its_own_gradient(data, accumulate, every):
    callback, model = WatchCallback(gradients=True, updates=True, every=every), Measured()
    trainer(callback, accumulate_grad_batches=accumulate).fit(model, loader(data))
    steps = list(range(0, 8 // accumulate, every))
    history, update = callback.stats.gradients["net.0.weight"], callback.stats.updates[0]
    assert history.first_step.tolist() == update.update.first_step.tolist() == steps
    assert history.calls.tolist() == [1] * len(steps)
    np.testing.assert_allclose(history.norm, [model.norms[k] for k in steps], rtol=1e-6)
    np.testing.assert_allclose(update.update.norm, 0.1 * history.norm, rtol=1e-4)
    assert callback.stats.notes == ()


def test_a_clipped_gradient_is_the_one_that_the_optimizer_gets(data):
    callback, model = WatchCallback(gradients=True), Measured()
    trainer(callback, gradient_clip_val=0.01).fit(model, loader(data))
    squares = sum(callback.stats.gradients[n].norm ** 2 for n in callback.stats.gradients)
    np.testing.assert_allclose(np.sqrt(squares), [0.01] * 8, rtol=1e-3)
    assert min(model.norms) > 0.01


def test_an_optimizer_that_evaluates_its_closure_many_times(data):
    class Quasi(Measured):
        def training_step(self, batch, batch_idx):
            self.evaluations.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            self.evaluations = []
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    callback, model = WatchCallback(gradients=True), Quasi()
    trainer(callback).fit(model, loader(data))
    firsts = [model.evaluations.index(batch) for batch in range(8)]
    assert len(model.evaluations) > 16
    history = callback.stats.gradients["net.0.weight"]
    assert history.first_step.tolist() == list(range(8))
    np.testing.assert_allclose(history.norm, [model.norms[k] for k in firsts], rtol=1e-6)


def test_a_backbone_that_is_unfrozen_later(data):
    class Unfreezes(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

    class Head(Digits):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    watch = WatchCallback(gradients=True, run="mine")
    trainer(watch, max_epochs=2, callbacks=[Unfreezes(), watch]).fit(Head(), loader(data))
    for gradients in (watch.stats.gradients, cl.open_run("mine").gradient_stats):
        assert gradients.names[:2] == ["net.0.weight", "net.0.bias"]
        assert gradients["net.0.weight"].first_step.tolist() == list(range(8, 16))
        assert gradients["net.3.weight"].first_step.tolist() == list(range(16))


# Dynamo itself looks at .grad of what a compiled part is given, watched or not.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_module_with_batch_normalization(data):
    plain, callback = WatchCallback(gradients=True), WatchCallback(gradients=True, run="mine")
    trainer(plain).fit(Digits(), loader(data))
    model = torch.compile(Digits(), backend="aot_eager")
    try:
        with pytest.warns(cl.ConvlensWarning, match="no dead channels are counted"):
            trainer(callback).fit(model, loader(data))
    finally:
        torch.compiler.reset()
    assert callback.stats.names == plain.stats.names
    for name in plain.stats:
        here, there = callback.stats[name], plain.stats[name]
        assert here.first_step.tolist() == there.first_step.tolist() == list(range(8))
        np.testing.assert_allclose(here.mean, there.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(here.batch_var, there.batch_var, rtol=1e-3)
    here, there = callback.stats.gradients, plain.stats.gradients
    np.testing.assert_allclose(here[0].norm, there[0].norm, rtol=1e-4)
    assert cl.open_run("mine").meta["notes"] == list(callback.stats.notes)


def test_a_recorded_fit_is_read_from_disk(data):
    callback, model = WatchCallback(run="auto"), Digits()
    trainer(callback).fit(model, loader(data))
    assert n_hooks(model) == 0
    assert str(callback.run_path) == "runs/watch-0001"
    run = cl.open_run(callback.run_path)
    assert run.meta["status"] == "finished"
    assert run.meta["model"]["class"] == "Digits"
    assert_same(run.activation_stats, callback.stats)
    assert "net.3" in cl.report(run).read_text()


def test_losses_rates_and_metrics_are_recorded(data):
    class Logs(Validated):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_acc", 0.5, on_epoch=True)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    callback = WatchCallback(run="auto")
    trainer(callback, max_epochs=3, check_val_every_n_epoch=2).fit(
        Logs(), loader(data), loader(data, 64)
    )
    for record in (cl.open_run(callback.run_path).record(), callback.stats.record()):
        assert record.steps.step.tolist() == list(range(24))
        assert (record.steps.loss > 0).all()
        assert record.steps.hypers["lr"][:, 0].tolist() == [0.1] * 8 + [0.05] * 8 + [0.025] * 8
        assert record.steps.hypers["weight_decay"][:, 0].tolist() == [0.01] * 24
        assert [e.valid_loss is None for e in record.epochs] == [True, False, True]
        assert [e.metrics["train_acc"] for e in record.epochs] == [0.5] * 3
        loop = record.loop
        assert loop["training_forwards"] == loop["backwards"] == loop["optimizer_steps"] == 24
        assert (loop["steps_without_reset"], loop["resets_checked"]) == (0, 23)
        assert loop["validation_forwards"] == 4
        assert loop["validation_in_training_mode"] == 0
        assert loop["output_gradient"]["cross_entropy"] == 1
        assert loop["target"]["max"] == 9


def test_the_loss_of_a_step_of_several_batches(data):
    callback = WatchCallback()
    trainer(callback, accumulate_grad_batches=2).fit(Digits(), loader(data))
    model, losses = Digits(), []
    optimizer, batches = model.configure_optimizers(), iter(loader(data))
    for _ in range(4):
        parts = [F.cross_entropy(model(x), y) / 2 for x, y in (next(batches), next(batches))]
        sum(parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(parts).item())
    np.testing.assert_allclose(callback.stats.recorder.steps.loss, losses, rtol=1e-5)


def test_each_fit_begins_anew_and_records_to_a_run_of_its_own(data):
    callback, model = WatchCallback(run="auto"), Digits()
    trainer(callback).fit(model, loader(data))
    first = callback.stats
    trainer(callback, max_steps=3).fit(model, loader(data))
    assert len(first["net.0"]) == 8
    assert len(callback.stats["net.0"]) == 3
    assert [info.name for info in cl.list_runs()] == ["watch-0001", "watch-0002"]


def test_a_resumed_fit_goes_on_counting(data, tmp_path):
    callback = WatchCallback()
    first = trainer(callback)
    first.fit(Digits(), loader(data))
    first.save_checkpoint(tmp_path / "one-epoch.ckpt")
    trainer(callback, max_epochs=2).fit(
        Digits(), loader(data), ckpt_path=tmp_path / "one-epoch.ckpt", weights_only=True
    )
    assert callback.stats["net.0"].first_step.tolist() == list(range(8, 16))


class Fails(Digits):
    error: BaseException = ValueError("in the midst of a step")
    step = 3

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_step == self.step:
            raise self.error
        return loss


@pytest.mark.parametrize("step", [0, 3])
def test_an_exception_leaves_no_hooks_and_a_failed_run(data, step):
    callback, model = WatchCallback(run="mine"), Fails()
    model.step = step
    with pytest.raises(ValueError, match="in the midst of a step"):
        trainer(callback).fit(model, loader(data))
    assert n_hooks(model) == 0
    assert n_modes() == 0
    run = cl.open_run("mine")
    assert (run.meta["status"], run.meta["error"]) == (
        "failed",
        "ValueError: in the midst of a step",
    )
    assert run.activation_stats["net.6"].first_step.tolist() == list(range(step + 1))


def test_an_exception_before_training_is_not_hidden(data):
    class FailsToConfigure(Digits):
        def configure_optimizers(self):
            raise ValueError("before anything was attached")

    with pytest.raises(ValueError, match="before anything was attached"):
        trainer(WatchCallback(run="mine")).fit(FailsToConfigure(), loader(data))
    assert cl.list_runs(".") == []


def test_an_interrupt_from_the_keyboard_stops_the_run(data):
    callback, model = WatchCallback(run="mine"), Fails()
    model.error = KeyboardInterrupt()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):  # Lightning's way to end
            trainer(callback).fit(model, loader(data))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from here on
    assert n_hooks(model) == 0
    assert cl.open_run("mine").meta["status"] == "stopped"


@pytest.fixture
def _no_handler_of_others():
    """Lightning calls a handler that is there already, and coverage's would end the tests."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_no_handler_of_others")
def test_a_termination_stops_the_run(data):
    class Terminated(Digits):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, batch_idx)

    callback, model = WatchCallback(run="mine"), Terminated()
    with pytest.raises(SystemExit):
        trainer(callback, max_epochs=3).fit(model, loader(data))
    assert n_hooks(model) == 0
    run = cl.open_run("mine")
    assert run.meta["status"] == "stopped"
    assert run.activation_stats["net.0"].first_step.tolist()[:4] == [0, 1, 2, 3]


def test_watching_does_not_change_the_training(data):
    plain, watched = Digits(), Digits()
    trainer(pl.Callback()).fit(plain, loader(data))
    trainer(WatchCallback()).fit(watched, loader(data))
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_work_gets_a_sentence(data):
    with pytest.raises(cl.LayerNotFoundError, match=r"layer='conv' is not among"):
        trainer(WatchCallback(["conv"])).fit(Digits(), loader(data))
    with pytest.raises(cl.ArgumentError, match=r"WatchCallback holds nothing yet; train with it"):
        _ = WatchCallback().stats
    assert repr(WatchCallback()) == "WatchCallback(nothing recorded yet, run=None)"
    with pytest.raises(cl.ArgumentError, match=r"WatchCallback takes no mode: it records what tr"):
        WatchCallback(mode="eval")
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        WatchCallback(evry=2)


SCRIPT = """
import sys
import torch
import pytorch_lightning as pl  # the same library under its other name
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl
from convlens.integrations.lightning import WatchCallback


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    watch = WatchCallback(run="mine")
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.callbacks.append(watch)
    trainer.fit(Net(), DataLoader(TensorDataset(x), 32))
    found = sorted(name for name in sys.modules if name in ("lightning", "pytorch_lightning"))
    sys.stdout.write(f"{found}\\n")  # at once: both ranks write to the same pipe
"""


@pytest.mark.slow  # test_watching_ranks has two processes without Lightning
def test_the_ranks_write_one_run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['pytorch_lightning']"
    run = cl.open_run(tmp_path / "mine")
    assert (run.meta["status"], run.meta["ranks"]) == ("finished", 2)
    assert sorted(p.name for p in run.path.glob("*.db")) == ["rank-1.db", "run.db"]
    history = run.activation_stats["net.0"]
    assert history.n.tolist() == [64 * 6]
    assert history.columns.calls.tolist() == [2]  # each rank's own half of the batch
    torch.manual_seed(0)
    layer = nn.Linear(4, 6)  # the script's first, drawn from the same seed
    with cl.watch(layer) as stats:
        layer(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    # The sampler divides the 64 rows in an order of its own; together they are all there.
    np.testing.assert_array_equal(history.counts, stats[0].counts)

"""`ActivationWatch` around real models."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import convlens as cl
from convlens.watching.layer_selection import channel_axis, channel_rule


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3),
    )  # fmt: skip


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def train(model, steps, n=6):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x = torch.randn(n, 1, 12, 12, generator=generator)
        F.cross_entropy(model(x), torch.arange(n) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_every_step_of_a_loop_of_ones_own():
    model, seen = small_net(), []
    with cl.watch(model) as stats:
        model[3].register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
        train(model, 70)  # more than one block of 64
    history = stats["3"]
    x = torch.stack(seen).flatten(1).double().numpy()
    assert len(history) == 70
    np.testing.assert_array_equal(history.first_step, np.arange(70))
    np.testing.assert_array_equal(history.last_step, np.arange(70))
    np.testing.assert_array_equal(history.n, x.shape[1])
    np.testing.assert_allclose(history.mean, x.mean(axis=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(history.std, x.std(axis=1), rtol=1e-6)
    np.testing.assert_allclose(history.near_zero, (abs(x) <= np.float32(0.05)).mean(axis=1))
    np.testing.assert_allclose(history.nonpositive, (x <= 0).mean(axis=1))
    np.testing.assert_array_equal(history.zeros, (x == 0).mean(axis=1))
    assert history.nonfinite.sum() == 0
    assert history.counts.sum() == x.size
    channels = torch.stack(seen).movedim(2, 1).flatten(2).numpy()
    np.testing.assert_array_equal(history.dead_channels, (channels.max(axis=2) <= 0).sum(axis=1))


def test_layers_by_index_and_name():
    model = small_net()
    with cl.watch(model) as stats:
        train(model, 1)
    assert stats.names == ["0", "2", "3", "6"]
    assert stats[-1].layer.name == "6"
    assert stats[1].layer.kind == "BatchNorm2d"
    assert [name for name in stats if stats[name].layer.feeds_relu] == ["0", "3"]
    assert stats["0"].nonpositive[0] > 0.2  # before its ReLU, which works in place
    assert stats["0"].zeros[0] == 0


def test_a_dead_channel_is_counted():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, 0.01, 2.0]))
    with cl.watch(model) as stats:
        model(torch.randn(2, 1, 5, 5))
    assert stats[0].dead_channels.tolist() == [1]
    assert stats[0].silent_channels.tolist() == [1]
    assert stats[0].channels == 3


def test_evaluation_is_not_counted():
    model = small_net()
    with cl.watch(model) as stats:
        train(model, 2)
        model.eval()
        model(torch.randn(2, 1, 12, 12))
        model.train()
        train(model, 1)
    assert len(stats["0"]) == 3
    assert stats["0"].calls.tolist() == [1, 1, 1]


def test_steps_that_the_user_says():
    model = small_net()
    with cl.watch(model, count_forwards=False) as stats:
        model(torch.randn(2, 1, 12, 12))  # before the first step: belongs to none
        for _ in range(2):
            stats.step()
            model(torch.randn(2, 1, 12, 12))
            model(torch.randn(4, 1, 12, 12))
    assert stats["0"].calls.tolist() == [2, 2]
    assert stats["0"].n.tolist() == [6 * 4 * 36, 6 * 4 * 36]


def test_a_loop_that_calls_only_parts_of_the_model():
    model = small_net()
    with cl.watch(model, count_forwards=False) as stats:
        for number in (0, 0, 1):
            stats.step(number)
            stats.enter()
            x = model[1](model[0](torch.randn(2, 1, 12, 12)))
            model(torch.randn(2, 1, 12, 12))  # as well, without ending what was entered
            model[2](x)
            stats.leave()
            model[0](torch.randn(2, 1, 12, 12))
    assert stats["0"].calls.tolist() == [4, 2]
    assert stats["2"].calls.tolist() == [4, 2]
    assert stats["6"].calls.tolist() == [2, 1]
    assert [name for name in stats if stats[name].layer.feeds_relu] == ["0", "3"]


def test_entering_without_a_call_does_not_hide_the_relus():
    model = small_net()
    with cl.watch(model) as stats:
        stats.enter()
        stats.leave()
        train(model, 1)
    assert [name for name in stats if stats[name].layer.feeds_relu] == ["0", "3"]
    assert stats["0"].first_step.tolist() == [1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_backward_pass_computes_again_is_not_counted(reentrant):
    model = small_net()
    with cl.watch(model, count_forwards=False) as stats:
        stats.step()
        stats.enter()
        x = torch.randn(2, 1, 12, 12, requires_grad=True)
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        stats.leave()
    assert stats["0"].calls.tolist() == [1]


def test_detaching_while_entered_leaves_nothing_behind():
    model = small_net()
    with cl.watch(model, count_forwards=False) as stats:
        stats.step()
        stats.enter()
        model[0](torch.randn(2, 1, 12, 12))
    assert n_hooks(model) == 0
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    with stats.attach():
        stats.step()
        model[0](torch.randn(2, 1, 12, 12))  # outside of any forward
    assert stats["0"].calls.tolist() == [1]


def test_a_summary_of_a_watched_model_is_no_step():
    model = small_net()
    with cl.watch(model) as stats:
        train(model, 1)
        cl.summary(model, (1, 1, 12, 12))
        cl.receptive_field(model, (1, 1, 12, 12))
    assert stats["0"].calls.tolist() == [1]


def test_a_module_called_twice_in_a_step():
    shared = nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = shared

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    with cl.watch(model) as stats:
        model(torch.randn(3, 4))
    assert stats["layer"].calls.tolist() == [2]
    assert stats["layer"].n.tolist() == [24]


def test_a_module_of_two_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.other = self.one

        def forward(self, x):
            return self.other(self.one(x))

    model = Tied()
    with cl.watch(model) as stats, cl.watch(model, ["other"]) as chosen:
        model(torch.randn(3, 4))
    assert stats.names == chosen.names == ["one"]
    for name in ("one", "other"):
        assert stats[name].calls.tolist() == chosen[name].calls.tolist() == [2]
        assert stats[name].n.tolist() == [24]


def test_modules_that_return_dataclasses():
    @dataclass
    class Result:
        loss: torch.Tensor | None
        value: torch.Tensor

    class Odd(nn.Linear):
        def forward(self, x):
            return Result(None, super().forward(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd(4, 5)

        def forward(self, x):
            return self.odd(x).value

    for compiled in (False, True):
        model = Net()
        with cl.watch(model) as stats:
            run = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
            run(torch.randn(3, 4))
        assert stats["odd"].n.tolist() == [15]


def test_modules_that_return_tuples_and_dicts():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return {"index": torch.arange(3), "value": [x * self.weight]}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.odd = nn.LSTM(4, 5, batch_first=True), Odd()

        def forward(self, x):
            return self.odd(self.lstm(x)[0])["value"][0]

    model = Net()
    with cl.watch(model) as stats:
        model(torch.randn(2, 3, 4))
    assert stats["lstm"].n.tolist() == [30]
    assert stats["odd"].n.tolist() == [30]
    assert stats["odd"].channels == 0


def test_hooks_are_gone_after_an_exception():
    model = small_net()
    with pytest.raises(RuntimeError, match="shape"), cl.watch(model) as stats:
        train(model, 2)
        model(torch.randn(2, 1, 30, 30))
    assert n_hooks(model) == 0
    assert len(stats["0"]) == 3  # the failed forward had reached this layer
    assert len(stats["6"]) == 2
    assert len(torch.overrides._get_current_function_mode_stack()) == 0


def test_a_failing_first_forward_does_not_hide_the_relus():
    model = small_net()
    with cl.watch(model) as stats:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 3, 12, 12))
        train(model, 1)
    assert [name for name in stats if stats[name].layer.feeds_relu] == ["0", "3"]


def test_an_interrupt_in_the_first_forward_leaves_no_mode_behind():
    class Interrupted(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(2, 2), Interrupted())
    with pytest.raises(KeyboardInterrupt), cl.watch(model):
        model(torch.randn(3, 2))
    assert len(torch.overrides._get_current_function_mode_stack()) == 0


def test_attach_twice_and_detach():
    model = small_net()
    stats = cl.watch(model).attach().attach()
    train(model, 1)
    hooks = n_hooks(model)
    stats.detach()
    stats.detach()
    train(model, 1)
    assert hooks == 9  # one a layer, one more before the batch normalization, four of the model
    assert n_hooks(model) == 0
    assert stats["0"].calls.tolist() == [1]


def test_watching_does_not_change_the_training():
    plain, watched = small_net(), small_net()
    train(plain, 5)
    with cl.watch(watched, gradients=True, updates=True):
        train(watched, 5)
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_choosing_layers():
    model = small_net()
    assert cl.watch(model, "all").names == [str(i) for i in range(7)]
    assert cl.watch(model, ["3", model[0], nn.ReLU]).names == ["0", "1", "3", "4"]
    assert cl.watch(nn.Linear(2, 2)).names == ["(root)"]


def test_a_watcher_knows_its_run():
    model = nn.Linear(2, 2)
    assert cl.watch(model).run_path is None
    with cl.watch(model, run="auto") as stats:
        model(torch.ones(1, 2))
    assert str(stats.run_path) == "runs/watch-0001"
    assert len(cl.open_run(stats.run_path).activation_stats["(root)"]) == 1


def test_a_recorded_loop_is_read_from_disk(tmp_path):
    model = small_net()
    with cl.watch(model, gradients=True, updates=True, run=tmp_path / "mine") as stats:
        assert stats.run_path == tmp_path / "mine"
        assert stats["0"].counts.shape == (0, stats.layout.size)
        train(model, 70)
    with cl.open_run(tmp_path / "mine") as run:
        for name in stats:
            here, there = stats[name], run.activation_stats[name]
            assert here.layer == there.layer
            np.testing.assert_array_equal(here.counts, there.counts)
            np.testing.assert_array_equal(here.mean, there.mean)
            np.testing.assert_array_equal(here.dead_channels, there.dead_channels)
        for name in stats.gradients:
            here, there = stats.gradients[name], run.gradient_stats[name]
            np.testing.assert_array_equal(here.counts, there.counts)
            np.testing.assert_array_equal(here.norm, there.norm)
            np.testing.assert_array_equal(stats.updates[name].ratio, run.update_stats[name].ratio)


def test_a_killed_loop_leaves_what_was_written(tmp_path):
    program = """
import os, torch, convlens as cl
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
stats = cl.watch(model, run="mine").attach()
for _ in range(130):
    model(torch.randn(8, 4))
# The writer has a thread of its own, and says first which layers there are.
while not (seen := cl.open_run("mine").activation_stats) or len(seen["0"]) < 128:
    pass
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == -9
    run = cl.open_run(tmp_path / "mine")
    assert run.meta["status"] == "crashed"
    assert run.meta["model"]["class"] == "Sequential"
    assert run.activation_stats["0"].first_step.tolist() == list(range(128))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("mine"), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(0), "stopped"),
        (SystemExit("terminated"), "failed"),
    ],
)
def test_a_recorded_loop_that_raises_is_not_finished(tmp_path, error, status):
    stats = cl.watch(small_net(), run=tmp_path / "mine")
    with pytest.raises(type(error)), stats:
        raise error
    assert cl.open_run(tmp_path / "mine").meta["status"] == status
    with pytest.raises(cl.ArgumentError, match="has closed its run and cannot be attached again"):
        stats.attach()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layers": "conv"}, r"layers='conv' is not known; use 'trainable', 'all', or a list"),
        ({"layers": [nn.LSTM]}, r"chooses none of the 8 modules of Sequential; name at least one"),
        ({"eps": -1.0}, r"eps must be at least 0, got -1.0"),
        ({"every": 0}, r"every must be at least 1, got 0; 1 records all steps"),
        ({"every": 2.5}, r"every must be at least 1, got 2.5"),
        ({"every": None}, r"every must be at least 1, got None"),
        ({"eps": float("nan")}, r"eps must be a finite number, got nan"),
        ({"eps": "0.1"}, r"eps must be a finite number, got '0.1'"),
        ({"sample": "all"}, r"sample must be above 0 and at most 1, got 'all'"),
        ({"sample": 0.0}, r"sample must be above 0 and at most 1, got 0.0"),
        ({"sample": 1.5}, r"sample must be above 0 and at most 1, got 1.5"),
        ({"mode": "evaluation"}, r"mode must be 'train', 'eval' or 'both', got 'evaluation'"),
        ({"mode": ["train"]}, r"mode must be 'train', 'eval' or 'both', got \['train'\]"),
        (
            {"layers": nn.Conv2d},
            r"layers=<class '.*Conv2d'> is not known; use 'trainable', 'all', or",
        ),
        ({"layers": nn.ReLU()}, r"layers=ReLU\(\) is not known"),
        ({"layers": 5}, r"layers=5 is not known"),
        (
            {"layers": ["0", nn.ReLU()]},
            r"layers has ReLU\(\), which is none of the 8 modules of Seq",
        ),
        (
            {"layers": ["0", 5]},
            r"layers has 5, which is none of the 8 modules of Sequential; give na",
        ),
        ({"run": True}, r"run must be 'auto' or the path of a new directory, got True"),
    ],
)
def test_arguments_that_cannot_work(arguments, sentence):
    with pytest.raises(cl.ArgumentError, match=sentence):
        cl.watch(small_net(), **arguments)


def test_a_model_that_is_no_module():
    with pytest.raises(cl.ArgumentError, match=r"model must be a torch.nn.Module, got a function"):
        cl.watch(F.relu)


def test_a_step_below_zero():
    with (
        cl.watch(small_net(), count_forwards=False) as stats,
        pytest.raises(cl.ArgumentError, match=r"number must be at least 0, got -1"),
    ):
        stats.step(-1)


def test_layers_that_are_not_there():
    with pytest.raises(cl.LayerNotFoundError, match=r"layer='7' is not among the 8"):
        cl.watch(small_net(), ["7"])
    stats = cl.watch(small_net())
    with pytest.raises(cl.LayerNotFoundError, match=r"layer=9 is out of range: there are 4 layers"):
        _ = stats[9]
    with pytest.raises(cl.LayerNotFoundError, match=r"layer=1.5 is neither a module"):
        _ = stats[1.5]


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv1d(2, 3, 1), (4, 3, 9), 1),
        (nn.Conv2d(2, 3, 1), (3, 9, 9), 0),
        (nn.ConvTranspose3d(2, 3, 1), (4, 3, 2, 2, 2), 1),
        (nn.InstanceNorm2d(3, affine=True), (4, 3, 5, 5), 1),
        (nn.GroupNorm(1, 3), (4, 3, 5, 5), 1),
        (nn.LayerNorm(6), (4, 3, 6), 2),
        (nn.Linear(2, 6), (6,), 0),
        (nn.Linear(2, 6), (), None),
        (nn.Bilinear(2, 2, 6), (4, 6), 1),
        (nn.LSTM(2, 3), (4, 5, 3), None),
        (nn.Conv3d(1, 1, 1), (2, 2), None),
        (nn.BatchNorm1d(3), (3,), None),
    ],
)
def test_channel_axis(module, shape, axis):
    assert channel_axis(channel_rule(module), len(shape)) == axis

"""Loops of other shapes: what is recorded belongs to the right step, what is not seen is said."""

import copy
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from test_watching_watch import small_net, train
from torch import nn

import convlens as cl


class Regression:
    """A small network, its data, and a closure as optimizers take it."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        self.x, self.y = torch.randn(16, 4), torch.randn(16, 1)
        self.gradients = []  # of the first weight, after every evaluation

    def closure(self):
        self.model.zero_grad()
        loss = (self.model(self.x) - self.y).square().mean()
        loss.backward()
        self.gradients.append(self.weight.grad.norm().item())
        return loss

    @property
    def weight(self):
        return self.model[0].weight


# ---- closures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_with_a_closure_has_its_own_gradient(make, by_name):
    task = Regression()
    optimizer, sizes = make(task.model.parameters(), lr=0.1), []
    with cl.watch(task.model, gradients=True, updates=True) as stats:
        for _ in range(4):
            before = task.weight.detach().clone()
            optimizer.step(closure=task.closure) if by_name else optimizer.step(task.closure)
            sizes.append((task.weight.detach() - before).norm().item())
    gradient, update = stats.gradients["0.weight"], stats.updates["0.weight"]
    assert gradient.first_step.tolist() == update.update.first_step.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(gradient.norm, task.gradients, rtol=1e-6)
    np.testing.assert_allclose(update.update.norm, sizes, rtol=1e-5)
    assert stats.notes == ()


@pytest.mark.parametrize("every", [1, 3])
def test_of_a_closure_that_is_evaluated_many_times_the_first_gradient_counts(every):
    task = Regression()
    optimizer = torch.optim.LBFGS(
        task.model.parameters(), max_iter=5, line_search_fn="strong_wolfe"
    )
    firsts, sizes = [], []
    with cl.watch(task.model, gradients=True, updates=True, every=every) as stats:
        for _ in range(3):
            firsts.append(len(task.gradients))
            before = task.weight.detach().clone()
            optimizer.step(task.closure)
            sizes.append((task.weight.detach() - before).norm().item())
    assert len(task.gradients) > 6
    history, update = stats.gradients["0.weight"], stats.updates["0.weight"]
    watched = [k for k, first in enumerate(firsts) if first % every == 0]
    assert history.first_step.tolist() == [firsts[k] for k in watched]
    assert update.update.first_step.tolist() == update.parameter.first_step.tolist()
    assert update.update.first_step.tolist() == history.first_step.tolist()
    np.testing.assert_allclose(history.norm, [task.gradients[firsts[k]] for k in watched], 1e-6)
    np.testing.assert_allclose(update.update.norm, [sizes[k] for k in watched], rtol=1e-5)
    # Every forward of a closure is one of the model, of those that are watched.
    assert stats["0"].first_step.tolist() == list(range(0, len(task.gradients), every))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_that_raises_ends_its_step_only(make):
    task = Regression()
    optimizer = make(task.model.parameters(), lr=1e-3)

    def fails():
        task.model(task.x)
        raise RuntimeError("skip this batch")

    with cl.watch(task.model, gradients=True, updates=True) as stats:
        for step in range(4):
            if step == 1:
                with pytest.raises(RuntimeError, match="skip this batch"):
                    optimizer.step(fails)
            else:
                optimizer.step(task.closure)
    steps = stats.gradients["0.weight"].first_step.tolist()
    assert len(steps) == len(stats.updates["0.weight"]) == 3
    assert stats.notes == ()


def test_a_layer_that_is_replaced_while_watching_is_said():
    model, x = small_net(), torch.randn(2, 1, 12, 12)
    sentence = r"Of the watched layers 1 are no longer part of the model, .*: '6'\. Watch the model"
    with pytest.warns(cl.ConvlensWarning, match=sentence), cl.watch(model) as stats:
        model(x)
        model[6] = torch.nn.Linear(model[6].in_features, 3)
        model(x)
    assert len(stats["0"]) == 2
    assert len(stats["6"]) == 1


def test_a_closure_does_not_change_the_training():
    plain, watched = Regression(), Regression()
    for task in (plain, watched):
        optimizer = torch.optim.LBFGS(task.model.parameters(), max_iter=4)
        with cl.watch(task.model if task is watched else nn.Linear(1, 1), updates=True):
            losses = [optimizer.step(task.closure).item() for _ in range(3)]
        task.losses = losses
    assert plain.losses == watched.losses
    assert torch.equal(plain.weight, watched.weight)


def test_a_closure_that_raises_leaves_nothing_behind():
    task = Regression()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)

    def fails():
        task.model(task.x)
        raise ValueError("mine")

    with cl.watch(task.model, gradients=True) as stats:
        with pytest.raises(ValueError, match="mine"):
            optimizer.step(fails)
        task.closure()
        torch.optim.SGD(task.model.parameters(), lr=0.1).step()  # another one, without a closure
        optimizer.step(task.closure)
    assert stats.gradients["0.weight"].first_step.tolist() == [1, 2]
    np.testing.assert_allclose(stats.gradients["0.weight"].norm, task.gradients, rtol=1e-6)


def test_an_optimizer_that_moves_the_weights_before_its_closure():
    """As sharpness-aware minimization does; the update is what the whole step has added."""

    class Sharpness(torch.optim.SGD):
        def step(self, closure):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(0.05 * p.grad)
            loss = closure()
            super().step()
            return loss

    task = Regression()
    optimizer = Sharpness(task.model.parameters(), lr=0.1)
    with cl.watch(task.model, updates=True, gradients=True, count_forwards=False) as stats:
        stats.step()
        task.closure()
        before = task.weight.detach().clone()
        optimizer.step(task.closure)
        change = (task.weight.detach() - before).norm().item()
    np.testing.assert_allclose(stats.updates["0.weight"].update.norm, [change], rtol=1e-5)
    size = stats.updates["0.weight"].parameter.norm
    np.testing.assert_allclose(size, [before.norm().item()], rtol=1e-6)
    np.testing.assert_allclose(stats.gradients["0.weight"].norm, task.gradients[1:], rtol=1e-6)


# ---- optimizers ---------------------------------------------------------------------------------


def test_an_optimizer_that_calls_its_base_class_is_one_step():
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.mul_(0.9)

    task, sizes = Regression(), []
    optimizer = Own(task.model.parameters(), lr=0.1)
    with cl.watch(task.model, gradients=True, updates=True) as stats:
        for _ in range(3):
            task.closure()
            before = task.weight.detach().clone()
            optimizer.step()
            sizes.append((task.weight.detach() - before).norm().item())
    assert stats.gradients["0.weight"].calls.tolist() == [1, 1, 1]
    np.testing.assert_allclose(stats.gradients["0.weight"].norm, task.gradients, rtol=1e-6)
    np.testing.assert_allclose(stats.updates["0.weight"].update.norm, sizes, rtol=1e-5)


def test_a_step_that_raises_has_a_gradient_and_no_update():
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if next(turns) == 1:
                raise ValueError("mine")
            return super().step(closure)

    task, turns = Regression(), iter(range(3))
    optimizer = Fails(task.model.parameters(), lr=0.1)
    with cl.watch(task.model, gradients=True, updates=True) as stats:
        for _ in range(3):
            task.closure()
            with suppress(ValueError):
                optimizer.step()
    assert stats.gradients["0.weight"].first_step.tolist() == [0, 1, 2]
    np.testing.assert_allclose(stats.gradients["0.weight"].norm, task.gradients, rtol=1e-6)
    update = stats.updates["0.weight"]
    assert update.update.first_step.tolist() == update.parameter.first_step.tolist() == [0, 2]
    assert np.isfinite(update.ratio).all()


def test_several_optimizers_for_one_forward():
    model = small_net()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:3], model[3:])]
    with cl.watch(model, gradients=True, updates=True) as stats:
        for _ in range(3):
            model(torch.randn(4, 1, 12, 12)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for name in ("0.weight", "6.weight"):
        assert stats.gradients[name].first_step.tolist() == [0, 1, 2]
        assert stats.gradients[name].calls.tolist() == [1, 1, 1]
    assert stats.notes == ()


def test_a_discriminator_that_is_called_three_times_a_step(tmp_path):
    """Its columns are forwards, and that is what the axis says, also of a run on disk."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.1)
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.1)
    with cl.watch(critic, gradients=True, run=tmp_path / "run") as stats:
        for _ in range(5):
            fake = generator(torch.randn(8, 2))
            (critic(fake.detach()).mean() - critic(torch.randn(8, 4)).mean()).backward()
            of_critic.step()
            of_critic.zero_grad()
            critic(fake).mean().backward()
            of_generator.step()
            of_generator.zero_grad()
            of_critic.zero_grad()
    assert stats["0"].first_step.tolist() == list(range(15))
    assert stats.gradients["0.weight"].first_step.tolist() == list(range(1, 15, 3))
    run = cl.open_run(tmp_path / "run")
    for histories in (stats, stats.gradients, run.activation_stats, run.gradient_stats):
        assert (
            histories.plot_layer_stats("0" if "0" in histories.names else "0.weight")[
                0
            ].get_xlabel()
            == "forward of the model"
        )
        rows = histories.plot_layer_stats()
        assert rows[0][0].figure.get_supxlabel() == "forward of the model"
        assert histories.color_dim(0).get_xlabel() == "forward of the model"


@pytest.mark.parametrize("count_forwards", [True, False])
def test_a_loop_of_several_forwards_a_step_is_told_how_to_count_iterations(count_forwards):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = pytest.warns(cl.ConvlensWarning) if count_forwards else nullcontext()
    with expected, cl.watch(model, count_forwards=count_forwards) as stats:
        for _ in range(10):
            if not count_forwards:
                stats.step()
            for _ in range(3):
                model(torch.randn(2, 1, 12, 12)).sum().backward()
            optimizer.step()
    said = "Each column is a forward, and there were 30 for 10 optimizer steps. For a column"
    assert [note.startswith(said) for note in stats.notes] == [True] * count_forwards


def test_an_optimizer_that_is_not_torchs_is_said():
    class ByHand:
        def __init__(self, parameters):
            self.parameters = list(parameters)

        def step(self):
            with torch.no_grad():
                for p in self.parameters:
                    p.sub_(0.1 * p.grad)
                    p.grad = None

    model = small_net()
    optimizer = ByHand(model.parameters())
    with cl.watch(model, gradients=True) as stats, pytest.warns(cl.ConvlensWarning) as said:
        for step in range(110):
            model(torch.randn(2, 1, 12, 12)).sum().backward()
            optimizer.step()
            assert len(said) == (step >= 99)  # after a while, not only at the end
    assert len(stats.notes) == 1
    assert "in the first 110 steps no torch.optim.Optimizer with a parameter" in stats.notes[0]
    assert len(stats.gradients["0.weight"]) == 0


def test_parameters_that_no_optimizer_steps_are_said():
    model = small_net()
    optimizer = torch.optim.SGD(model[6].parameters(), lr=0.1)
    with (
        pytest.warns(
            cl.ConvlensWarning, match="Of the parameters that need a gradient 6 had none in any"
        ),
        cl.watch(model, gradients=True) as stats,
    ):
        model(torch.randn(2, 1, 12, 12)).sum().backward()
        optimizer.step()
    assert "'0.weight', '0.bias', '2.weight' and 3 more" in stats.notes[0]


# ---- freezing -----------------------------------------------------------------------------------


def test_a_parameter_is_looked_at_while_it_is_not_frozen(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model, gradients=True, updates=True, run=tmp_path / "run") as stats:
        assert stats.gradients.names == ["2.weight", "2.bias"]
        for step in range(6):
            if step in (2, 4):  # and frozen again
                model[0].requires_grad_(step == 2)
            optimizer.zero_grad()
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()
            if step == 0:
                assert stats.updates.names == ["2.weight", "2.bias"]
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    run = cl.open_run(tmp_path / "run")
    for gradients, updates in (
        (stats.gradients, stats.updates),
        (run.gradient_stats, run.update_stats),
    ):
        assert gradients.names == updates.names == names
        assert gradients["0.weight"].first_step.tolist() == [2, 3]
        assert gradients["2.weight"].first_step.tolist() == list(range(6))
        assert updates["0.weight"].update.first_step.tolist() == [2, 3]
        assert updates["0.weight"].parameter.first_step.tolist() == [2, 3]
    np.testing.assert_array_equal(stats.gradients[0].counts, run.gradient_stats[0].counts)
    assert stats.notes == ()


def test_a_parameter_that_stays_frozen_is_nowhere(tmp_path):
    model = small_net()
    model[0].weight.requires_grad_(False)
    with cl.watch(model, gradients=True, updates=True, run=tmp_path / "run") as stats:
        train(model, 70)
    run = cl.open_run(tmp_path / "run")
    for names in (stats.gradients.names, run.gradient_stats.names, run.update_stats.names):
        assert names == [name for name, _ in model.named_parameters()][1:]
    for name in stats.gradients:  # its index is free, and the others are found by theirs
        here, there = stats.gradients[name], run.gradient_stats[name]
        assert here.layer == there.layer
        np.testing.assert_array_equal(here.norm, there.norm)
    assert cl.report(run).exists()


def test_a_lazy_parameter_keeps_its_series(tmp_path):
    model = nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    with cl.watch(model, gradients=True, updates=True, run=tmp_path / "run") as stats:
        for step in range(3):
            out = model(torch.randn(2, 1, 8, 8))
            if step == 0:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            out.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [layer.kind for layer in stats.layers] == ["Conv2d", "BatchNorm2d", "Linear"]
    assert stats["0"].layer.feeds_relu is False
    assert stats["1"].layer.feeds_relu
    assert [stats[name].channels for name in stats] == [8, 8, 10]
    assert np.isfinite(stats["1"].batch_var).all()
    assert stats.gradients["0.weight"].n.tolist() == [8 * 9] * 3
    assert stats.gradients["4.weight"].layer.kind == "10×288"
    assert cl.open_run(tmp_path / "run").gradient_stats["0.weight"].layer.kind == "8×1×3×3"
    assert stats.notes == ()


# ---- evaluation ---------------------------------------------------------------------------------


def test_a_model_left_in_evaluation_mode_is_said(tmp_path):
    model = small_net().eval()
    with (
        pytest.warns(cl.ConvlensWarning, match="the model was in eval mode in all of its 3 forw"),
        cl.watch(model, run=tmp_path / "run") as stats,
    ):
        for _ in range(3):
            model(torch.randn(2, 1, 12, 12))
    assert stats.notes == (
        "Nothing was recorded: the model was in eval mode in all of its 3 forwards; "
        "call model.train() before, or watch with mode='eval' or 'both'.",
    )
    assert cl.open_run(tmp_path / "run").meta["notes"] == list(stats.notes)
    assert "nan" not in str(stats.cost)


@pytest.mark.parametrize(
    ("mode", "columns"), [("train", [0, 2]), ("eval", [1, 3, 4]), ("both", [0, 1, 2, 3, 4])]
)
def test_the_mode_says_which_forwards_are_counted(mode, columns):
    model, seen = small_net(), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.mean().item()))
    with cl.watch(model, mode=mode) as stats:
        for training in (True, False, True, False, False):
            model.train(training)
            model(torch.randn(6, 1, 12, 12))
    assert stats["0"].first_step.tolist() == list(range(len(columns)))
    np.testing.assert_allclose(stats["0"].mean, [seen[i] for i in columns], rtol=1e-5)
    training = np.array([(True, False, True, False, False)[i] for i in columns])
    np.testing.assert_array_equal(np.isfinite(stats["2"].batch_mean), training)
    assert np.isfinite(stats["2"].running_mean).all()
    assert stats.notes == ()


def test_no_forward_at_all_is_said():
    model = small_net()
    with (
        pytest.warns(cl.ConvlensWarning, match="no forward of the model was seen; call the model"),
        cl.watch(model),
    ):
        model[0](torch.randn(2, 1, 12, 12))


def test_steps_that_were_never_said_are_said():
    model = small_net()
    with (
        pytest.warns(cl.ConvlensWarning, match=r"stats.step\(\) was never called"),
        cl.watch(model, count_forwards=False),
    ):
        model(torch.randn(2, 1, 12, 12))


def test_a_loop_that_fails_says_only_what_failed():
    stats = cl.watch(small_net(), gradients=True)
    with pytest.raises(ValueError, match="mine"), stats:
        raise ValueError("mine")
    assert stats.notes == ()


# ---- several processes and devices --------------------------------------------------------------


def test_data_parallel_without_devices():
    plain, model = small_net(), nn.DataParallel(small_net())
    with cl.watch(plain, gradients=True) as expected, cl.watch(model, gradients=True) as stats:
        train(plain, 3)
        train(model, 3)
    assert stats.names == ["module." + name for name in expected.names]
    for name in expected:
        np.testing.assert_array_equal(stats["module." + name].counts, expected[name].counts)
    for name in expected.gradients:
        found = stats.gradients["module." + name]
        np.testing.assert_array_equal(found.counts, expected.gradients[name].counts)
    assert stats.notes == ()


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        plain = small_net()
        model = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        with cl.watch(plain, updates=True) as expected, cl.watch(model, updates=True) as stats:
            train(plain, 3)
            train(model, 3)
    finally:
        torch.distributed.destroy_process_group()
    for name in expected:
        np.testing.assert_array_equal(stats["module." + name].counts, expected[name].counts)
    for name in expected.updates:
        found, true = stats.updates["module." + name], expected.updates[name]
        np.testing.assert_array_equal(found.update.counts, true.update.counts)
    assert stats.notes == ()

"""What a watcher yields besides the output of every layer: anyone's loop, anything in it."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from test_watching_watch import n_hooks, small_net, train
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import convlens as cl
from convlens.watching import ActivationWatch
from convlens.watching.cost import Cost


def gradients_by_hand(model, steps, optimizer=None):
    """Train as `train` does; a copy of every gradient and of every weight before and after."""
    generator = torch.Generator().manual_seed(1)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(steps):
        x = torch.randn(6, 1, 12, 12, generator=generator)
        F.cross_entropy(model(x), torch.arange(6) % 3).backward()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        after = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        seen.append((gradients, before, after))
    return seen


# ---- gradients and updates ----------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_and_updates(fused):
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    with cl.watch(model, gradients=True, updates=True) as stats:
        seen = gradients_by_hand(model, 5, optimizer)
    assert stats.gradients.names == [name for name, _ in model.named_parameters()]
    for name in stats.gradients:
        g = np.stack([gradients[name].double().numpy().ravel() for gradients, _, _ in seen])
        history = stats.gradients[name]
        assert history.layer.quantity == "gradient"
        assert history.first_step.tolist() == list(range(5))
        np.testing.assert_array_equal(history.n, g.shape[1])
        np.testing.assert_allclose(history.norm, np.linalg.norm(g, axis=1), rtol=1e-6)
        np.testing.assert_allclose(history.mean, g.mean(axis=1), rtol=1e-5, atol=1e-9)
        update = stats.updates[name]
        change = [np.linalg.norm((after[name] - w[name]).numpy()) for _, w, after in seen]
        size = [np.linalg.norm(before[name].numpy()) for _, before, _ in seen]
        np.testing.assert_allclose(update.update.norm, change, rtol=1e-5)
        np.testing.assert_allclose(update.parameter.norm, size, rtol=1e-5)
        expected = [c / w if w else np.nan for c, w in zip(change, size, strict=True)]
        np.testing.assert_allclose(update.ratio, expected, rtol=1e-5)


def test_accumulated_gradients_are_counted_once():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model, gradients=True) as stats:
        for _ in range(3):
            for _ in range(2):
                model(torch.randn(4, 1, 12, 12)).sum().backward()
            expected = model[0].weight.grad.norm().item()
            optimizer.step()
            optimizer.zero_grad()
    assert stats["0"].calls.tolist() == [1] * 6
    history = stats.gradients["0.weight"]
    assert history.first_step.tolist() == [1, 3, 5]  # the forward right before the step
    assert history.calls.tolist() == [1, 1, 1]
    assert history.norm[-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("every", "accumulated", "columns"),
    [(2, 2, [0, 2, 4, 6, 8, 10]), (4, 4, [0, 4, 8]), (5, 3, [0, 5, 10]), (3, 1, [0, 3, 6, 9])],
)
def test_watching_some_steps_of_an_accumulating_loop(every, accumulated, columns):
    """A watched forward's gradients are those of the next optimizer's step, however late it is."""
    model, seen = small_net(), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with cl.watch(model, gradients=True, updates=True, every=every) as stats:
        for step in range(12):
            model(torch.randn(4, 1, 12, 12)).sum().backward()
            if (step + 1) % accumulated == 0:
                seen[step] = model[0].weight.grad.norm().item()
                optimizer.step()
                optimizer.zero_grad()
    assert stats["0"].first_step.tolist() == columns
    history = stats.gradients["0.weight"]
    assert history.first_step.tolist() == columns
    assert stats.updates["0.weight"].update.first_step.tolist() == columns
    assert history.calls.tolist() == [1] * len(columns)
    expected = [min((at, norm) for at, norm in seen.items() if at >= c)[1] for c in columns]
    np.testing.assert_allclose(history.norm, expected, rtol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_those_without_the_scale(fused):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with cl.watch(model, gradients=True) as stats:
        loss = F.cross_entropy(model(torch.randn(6, 1, 12, 12)), torch.arange(6) % 3)
        scaler.scale(loss).backward()
        expected = (model[0].weight.grad / 1024).norm().item()
        scaler.step(optimizer)
        scaler.update()
    assert stats.gradients["0.weight"].norm[0] == pytest.approx(expected, rel=1e-6)


def test_a_step_that_the_scaler_skips_is_not_counted():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with cl.watch(model, gradients=True, updates=True) as stats:
        for factor in (float("inf"), 1.0):
            scaler.scale(model(torch.randn(6, 1, 12, 12)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert stats.gradients["0.weight"].first_step.tolist() == [1]
    assert stats.updates["0.weight"].update.first_step.tolist() == [1]


def test_another_models_optimizer_is_none_of_its_business():
    model, other = small_net(), small_net()
    with cl.watch(model, gradients=True) as stats:
        train(model, 1)
        train(other, 2)
    assert stats.gradients["0.weight"].calls.tolist() == [1]


def test_gradients_that_were_not_asked_for():
    stats = cl.watch(small_net())
    for name in ("gradients", "updates"):
        with pytest.raises(cl.ArgumentError, match=rf"{name} were not watched; .*, {name}=True\)"):
            getattr(stats, name)


def test_optimizers_are_looked_at_by_nobody_afterwards():
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    model, registered = small_net(), []
    for _ in range(2):
        stats = cl.watch(model, gradients=True, updates=True)
        with pytest.raises(ValueError, match="mine"), stats:
            train(model, 1)
            raise ValueError("mine")
        train(model, 1)
        assert stats.gradients["0.weight"].calls.tolist() == [1]
        registered.append((len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)))
    assert registered[0] == registered[1]  # one pair for all watchers, which stays


# ---- batch normalization ------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_batch_statistics_beside_the_running_ones(momentum):
    model = small_net()
    model[2].momentum = momentum
    inputs, running = [], []
    model[2].register_forward_pre_hook(lambda m, a: inputs.append(a[0].detach().clone()))
    with cl.watch(model) as stats:
        for _ in range(6):
            train(model, 1)
            running.append((model[2].running_mean.clone(), model[2].running_var.clone()))
    history = stats["2"]
    dims = (0, 2, 3)
    mean = [x.mean(dims).mean().item() for x in inputs]
    var = [x.var(dims, correction=0).mean().item() for x in inputs]
    np.testing.assert_allclose(history.batch_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.batch_var, var, rtol=1e-4)
    np.testing.assert_allclose(history.running_mean, [m.mean().item() for m, _ in running], 1e-6)
    np.testing.assert_allclose(history.running_var, [v.mean().item() for _, v in running], 1e-6)
    assert np.isnan(stats["0"].batch_mean).all()


# ---- some images only ---------------------------------------------------------------------------


def test_a_sample_of_the_images():
    torch.manual_seed(0)
    model, x = small_net(), torch.randn(64, 1, 12, 12)
    with cl.watch(model, sample=0.25) as stats, cl.watch(model, ["0"]) as everything:
        model(x)
    history = stats["0"]
    out = model[0](x).detach()
    assert history.n.tolist() == [16 * 4 * 36]
    assert history.mean[0] == pytest.approx(out[:16].mean().item(), rel=1e-5)
    assert history.sample == 0.25
    assert everything["0"].standard_error("mean").tolist() == [0.0]


def test_standard_errors_are_those_of_the_images():
    """Over many samples of one batch, figures spread as widely as their standard errors say."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 3, 3)
    images = torch.randn(200, 1, 8, 8) * torch.rand(200, 1, 1, 1) + torch.randn(200, 1, 1, 1)
    figures = ("mean", "std", "near_zero", "near_zero_after_relu")
    with cl.watch(layer, sample=0.2, every=1) as stats:
        for _ in range(400):
            layer(images[torch.randperm(200)])
    history = stats[0]
    for figure in figures:
        found = getattr(history, figure)
        error = history.standard_error(figure)
        assert np.sqrt((error**2).mean()) == pytest.approx(found.std(), rel=0.15), figure
    with torch.no_grad():
        true = layer(images)
    inside = abs(history.mean - true.mean().item()) < 2 * history.standard_error("mean")
    assert 0.9 < inside.mean() <= 1.0


def test_one_image_has_no_standard_error():
    with cl.watch(nn.Linear(2, 2), sample=0.5) as stats:
        stats.model(torch.randn(2, 2))
    assert np.isnan(stats[0].standard_error("mean")).all()
    with pytest.raises(cl.ArgumentError, match=r"figure must be one of .* got 'max'"):
        stats[0].standard_error("max")


# ---- anyone's model -----------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(
            lambda x: self.second(self.first(x).relu()), x, use_reentrant=self.reentrant
        )


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_computed_again_is_not_counted_twice(reentrant):
    model = Checkpointed(reentrant)
    with cl.watch(model) as stats:
        for _ in range(3):
            model(torch.randn(5, 4, requires_grad=True)).sum().backward()
    assert stats["first"].calls.tolist() == [1, 1, 1]
    assert stats["second"].n.tolist() == [20, 20, 20]


def test_a_whole_model_computed_again_is_no_step():
    model = small_net()
    with cl.watch(model) as stats:
        for _ in range(2):
            x = torch.randn(4, 1, 12, 12, requires_grad=True)
            checkpoint(model, x, use_reentrant=False).sum().backward()
    assert stats["0"].calls.tolist() == [1, 1]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_autocast(dtype):
    model, seen = small_net(), []
    with cl.watch(model) as stats, torch.autocast("cpu", dtype):
        model[0].register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
        model(torch.randn(6, 1, 12, 12))
    assert seen[0].dtype == dtype
    assert stats["0"].mean[0] == pytest.approx(seen[0].double().mean().item(), rel=1e-6)
    assert stats["0"].near_zero[0] == pytest.approx((seen[0].float().abs() <= 0.05).float().mean())


def test_channels_last():
    plain, model = small_net(), small_net().to(memory_format=torch.channels_last)
    x = torch.randn(6, 1, 12, 12)
    with cl.watch(plain) as expected, cl.watch(model) as stats:
        plain(x)
        model(x.to(memory_format=torch.channels_last))
    for name in stats:
        assert abs(stats[name].counts - expected[name].counts).sum() <= 4
        np.testing.assert_array_equal(stats[name].columns.positive, expected[name].columns.positive)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_without_hooks(way):
    model, seen = small_net(), []
    model[0].register_forward_hook(print)  # the user's own stays
    with cl.watch(model, updates=True) as stats:
        train(model, 1)
        if way == "deepcopy":
            other = copy.deepcopy(model)
        elif way == "pickle":
            other = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        seen.append(n_hooks(model))
        train(model, 1)
    assert n_hooks(other) == 1
    assert seen == [10]
    assert "__getstate__" not in vars(other)
    assert "__getstate__" not in vars(model)
    assert stats["0"].calls.tolist() == [1, 1]
    for a, b in zip(model.state_dict(), other.state_dict(), strict=True):
        assert a == b


@pytest.mark.parametrize("first_leaves_first", [False, True])
def test_copies_of_a_model_that_two_watch(tmp_path, first_leaves_first):
    model = small_net()
    watchers = [cl.watch(model, run=tmp_path / "run").attach(), cl.watch(model, ["0"]).attach()]
    train(model, 1)
    both = copy.deepcopy(model)
    left, stays = watchers if first_leaves_first else watchers[::-1]
    left.detach()
    one = pickle.loads(pickle.dumps(model))
    assert n_hooks(model) > 0
    stays.detach()
    assert [n_hooks(m) for m in (both, one, model)] == [0, 0, 0]
    assert not any("__getstate__" in vars(m) for m in model.modules())


def test_a_module_with_a_state_of_its_own_is_copied_as_it_wants():
    class Own(nn.Linear):
        def __getstate__(self):
            return {**self.__dict__, "copied": True}

    model = nn.Sequential(Own(2, 2))
    with cl.watch(model):
        other = copy.deepcopy(model)
    assert other[0].copied
    assert n_hooks(other) == 0


def test_a_subclass_of_a_convolution_has_its_channels():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(
        Own(1, 4, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), nn.ReLU()
    )
    with cl.watch(model) as stats:
        model(torch.randn(2, 1, 12, 12))
    assert [stats["0"].channels, stats["1"].channels] == [4, 8]


@pytest.mark.parametrize("sample", [1.0, 0.5])
def test_a_batch_without_images(sample):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with cl.watch(model, sample=sample) as stats:
        model(torch.randn(0, 4))
        model(torch.randn(8, 4))
    assert stats["0"].n.tolist() == [0, int(32 * sample)]
    assert np.isnan(stats["0"].mean).tolist() == [True, False]
    assert np.isnan(stats["0"].standard_error("mean")).tolist() == [sample < 1, False]


def test_an_optimizer_around_another_is_one_step():
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, {})

        def step(self):
            self.inner.step()

    model = small_net()
    optimizer = Around(torch.optim.SGD(model.parameters(), lr=0.1))
    with cl.watch(model, gradients=True, updates=True) as stats:
        seen = gradients_by_hand(model, 3, optimizer)
    assert stats.gradients["0.weight"].calls.tolist() == [1, 1, 1]
    change = [(after["0.weight"] - before["0.weight"]).norm().item() for _, before, after in seen]
    np.testing.assert_allclose(stats.updates["0.weight"].update.norm, change, rtol=1e-5)


def test_updates_of_some_steps_with_a_closure():
    """The forward is inside the optimizer's step, and so are its gradients."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    sizes = []
    with cl.watch(model, updates=True, every=2) as stats:
        for _ in range(5):
            before = model.weight.detach().clone()
            optimizer.step(closure)
            sizes.append((model.weight.detach() - before).norm().item())
    history = stats.updates["weight"]
    assert history.parameter.first_step.tolist() == [0, 2, 4]
    assert history.update.first_step.tolist() == [0, 2, 4]
    np.testing.assert_allclose(history.update.norm, sizes[::2], rtol=1e-5)


def test_complex_parameters_are_left_out():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.complex64))
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(self.layer(x)) * self.scale)

    model = Spectrum()
    with cl.watch(model, gradients=True, updates=True) as stats:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    assert stats.gradients.names == stats.updates.names == ["layer.weight", "layer.bias"]


def test_an_exported_graph_is_without_operators():
    model = small_net()
    with cl.watch(model):
        exported = torch.export.export(model, (torch.randn(2, 1, 12, 12),))
    assert not [n for n in exported.graph.nodes if "convlens" in str(n.target)]


def test_steps_counted_again_are_added():
    model = small_net()
    with cl.watch(model, count_forwards=False) as stats:
        for number in (0, 1, 70, 1, 200):
            stats.step(number)
            model(torch.randn(2, 1, 12, 12))
    assert stats["0"].first_step.tolist() == [0, 1, 70, 200]
    assert stats["0"].calls.tolist() == [1, 2, 1, 1]


# ---- bounded memory -----------------------------------------------------------------------------


def test_a_long_run_keeps_at_most_4096_columns(tmp_path):
    layer = nn.Linear(2, 2)
    rows = torch.randn(5000, 3, 2)
    with cl.watch(layer, run=tmp_path / "run", count_forwards=False) as stats:
        for step in range(5000):
            stats.step(step)
            layer(rows[step])
    with torch.no_grad():
        out = layer(rows).double().numpy().reshape(2500, -1)  # two steps a column
    run = cl.open_run(tmp_path / "run")
    for history in (stats[0], run.activation_stats[0]):
        assert history.first_step.tolist() == list(range(0, 5000, 2))
        assert history.last_step.tolist() == list(range(1, 5000, 2))
        assert history.calls.tolist() == [2] * 2500
        np.testing.assert_allclose(history.mean, out.mean(axis=1), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(history.std, out.std(axis=1), rtol=1e-5)
        np.testing.assert_allclose(history.near_zero, (abs(out) <= np.float32(0.05)).mean(axis=1))


# ---- what it costs ------------------------------------------------------------------------------


def test_it_says_what_it_costs():
    model = small_net()
    with cl.watch(model) as stats:
        assert np.isnan(stats.cost.share)
        train(model, 20)
        live = stats.cost
    cost = stats.cost
    assert 0 < live.kernel_s <= cost.kernel_s < cost.training_s
    assert 0 < cost.hooks_s < cost.training_s
    assert 0 < cost.share < 1
    assert stats.cost.training_s == cost.training_s  # it stands still after watching
    words = "watching took 0.50 s of 4.00 s (12.5%): kernels 0.30 s, hooks 0.10 s"
    assert str(Cost(0.3, 0.1, 0.1, 4.0)).startswith(words)


def test_a_watch_is_forgotten_with_its_last_name():
    import gc
    import weakref

    stats = ActivationWatch(small_net())
    with stats:
        train(stats.model, 1)
    gone = weakref.ref(stats)
    del stats
    gc.collect()
    assert gone() is None


def test_a_model_that_moves_to_another_type_and_reading_while_it_goes_on():
    model = small_net()
    with cl.watch(model) as stats:
        train(model, 65)
        assert len(stats["0"]) == 65
        model.double()
        model(torch.randn(2, 1, 12, 12, dtype=torch.float64))
        assert len(stats["0"]) == 66
    assert stats["0"].n[-1] == 2 * 4 * 36

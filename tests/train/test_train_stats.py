"""Gradients and updates through a Learner, live and from its run."""

import numpy as np
import pytest
import torch

import convlens as cl


def learner(*callbacks, run=None, **options):
    torch.manual_seed(0)
    dls = cl.mnist(batch_size=512, device="cpu", seed=0)
    short = cl.DataLoaders(_First(dls.train, 5), None, classes=dls.classes)
    model = cl.simple_cnn(1, 10, norm="batch")
    return cl.Learner(short, model, callbacks=callbacks, run=run, progress=False, seed=0, **options)


class _First:
    """The first batches of a loader."""

    def __init__(self, loader, n):
        self.loader, self.n = loader, n

    def __len__(self):
        return self.n

    def __iter__(self):
        return (pair for pair, _ in zip(self.loader, range(self.n), strict=False))


class Norms(cl.Callback):
    """Gradient, weight and update of one parameter, by hand."""

    def __init__(self, name):
        self.name, self.gradient, self.ratio = name, [], []

    def before_step(self, learn):
        self.weight = learn.model.get_parameter(self.name)
        self.before = self.weight.detach().clone()
        self.gradient.append(self.weight.grad.norm().item())

    def after_step(self, learn):
        change = self.weight.detach() - self.before
        self.ratio.append((change.norm() / self.before.norm()).item())


def test_live_and_from_the_run(tmp_path):
    by_hand = Norms("1.0.weight")
    learn = learner(
        cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats(), by_hand, run=tmp_path / "run"
    )
    learn.fit(2, 0.01)
    run = cl.open_run(tmp_path / "run")
    for gradients, updates in (
        (learn.gradient_stats, learn.update_stats),
        (run.gradient_stats, run.update_stats),
    ):
        assert gradients.names == [name for name, _ in learn.model.named_parameters()]
        history = gradients["1.0.weight"]
        assert history.first_step.tolist() == list(range(10))
        assert history.eps == 1e-7
        np.testing.assert_allclose(history.norm, by_hand.gradient, rtol=1e-5)
        np.testing.assert_allclose(updates["1.0.weight"].ratio, by_hand.ratio, rtol=1e-4)
        assert len(gradients.color_dim("1.0.weight").collections) > 0
    assert run.activation_stats["0.0"].eps == 0.05
    assert len(learn.gradient_stats.epochs) == 2


def test_every_second_step():
    learn = learner(cl.GradientStats(every=2))
    learn.fit(1, 0.01)
    assert learn.gradient_stats[0].first_step.tolist() == [0, 2, 4]


def test_a_skipped_step_has_no_gradient_of_its_own():
    """Two batches are accumulated: the gradient is read once, before the step."""

    class EverySecond(cl.Callback):
        order = 50

        def after_backward(self, learn):
            self.n = getattr(self, "n", 0) + 1
            if self.n % 2:
                raise cl.CancelBatchError

    learn = learner(cl.GradientStats(), EverySecond())
    learn.fit(1, 0.01)
    assert learn.gradient_stats[0].calls.tolist() == [1, 1]


def test_watching_does_not_change_the_training():
    plain, watched = learner(), learner(cl.GradientStats(), cl.UpdateStats(), cl.ActivationStats())
    plain.fit(1, 0.01)
    watched.fit(1, 0.01)
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_sample_of_the_images_and_the_cost(tmp_path):
    learn = learner(cl.ActivationStats(sample=0.25), run=tmp_path / "run")
    learn.fit(1, 0.01)
    for history in (learn.activation_stats["0.0"], cl.open_run(tmp_path / "run").history(0)):
        assert history.n.tolist() == [128 * 8 * 14 * 14] * 5
        assert history.sample == 0.25
        assert (history.standard_error("near_zero") > 0).all()
    assert 0 < learn.activation_stats.cost.share < 1


@pytest.mark.parametrize("kind", [cl.GradientStats, cl.UpdateStats])
def test_before_anything_was_fitted(kind):
    callback = kind()
    with pytest.raises(cl.ArgumentError, match=f"{kind.attribute()} holds nothing yet: call learn"):
        _ = callback[0]
    with pytest.raises(cl.ArgumentError, match="every must be at least 1, got 0"):
        kind(every=0)
    with pytest.raises(cl.ArgumentError, match="eps must be at least 0, got -1"):
        kind(eps=-1)


@pytest.mark.parametrize("arguments", [{"every": 0}, {"eps": -1}, {"sample": 0}])
def test_arguments_that_cannot_work_are_refused_before_a_fit(arguments):
    with pytest.raises(cl.ArgumentError):
        cl.ActivationStats(**arguments)

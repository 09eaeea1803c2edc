"""Batches, outputs and losses that do not fit: a sentence each, before the weights change."""

from collections import namedtuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl

X = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 10
CLASSES = [str(i) for i in range(10)]


def learner(batches, model=None, *, classes=(), valid=None, **kwargs):
    model = cl.simple_cnn(1, 10) if model is None else model
    return cl.Learner(
        cl.DataLoaders(batches, valid, classes=classes), model, run=None, progress=False, **kwargs
    )


def linear(n, n_in=784):
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n))


def refused(learn, error, sentence, cause=None):
    """The fit says it before a weight has changed; ``cause`` is what torch had raised."""
    before = {name: value.detach().clone() for name, value in learn.model.named_parameters()}
    with pytest.raises(error, match=sentence) as caught:
        learn.fit(1, 0.01)
    assert cause is None or isinstance(caught.value.__cause__, cause)
    assert all(torch.equal(v, before[name]) for name, v in learn.model.named_parameters())


Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y)])
def test_pairs_of_any_kind(batch):
    learn = learner([batch], valid=[batch])
    learn.fit(1, 0.01)
    assert len(learn.recorder.steps) == 1


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"image": X, "label": Y}, r"are a dict with the keys 'image', 'label'; expected pairs"),
        ((X, Y, Y), r"are a tuple of length 3; expected pairs \(x, y\) of tensors, images \(N, C"),
        ([X], r"are a list of length 1; expected pairs"),
        (X, r"are a Tensor; expected pairs"),
        ((X.numpy(), Y), r"batches \(x, y\) whose x is of type ndarray; expected tensors"),
        ((X, ["a"] * 20), r"batches \(x, y\) whose y is of type list; expected tensors"),
    ],
)
def test_a_batch_that_is_no_pair(batch, sentence):
    refused(learner([batch]), cl.ArgumentError, rf"dls.train gives .*{sentence}")
    with pytest.raises(cl.ArgumentError, match=sentence):
        cl.DataLoaders([batch]).show_batch()
    with pytest.raises(cl.ArgumentError, match=rf"dls.valid gives .*{sentence}"):
        learner([(X, Y)], valid=[batch]).validate()
    with pytest.raises(cl.ArgumentError, match=sentence):
        learner([batch]).summary()


def test_a_summary_of_a_loader_leaves_what_comes_next_alone():
    def loaders():
        torch.manual_seed(3)
        data = TensorDataset(X, Y)
        own = torch.Generator().manual_seed(5)
        return [
            DataLoader(data, batch_size=4, shuffle=True),
            DataLoader(data, batch_size=4, shuffle=True, generator=own),
        ]

    for which in (0, 1):
        plain, looked_at = loaders()[which], loaders()[which]
        torch.manual_seed(7)
        labels = [y.tolist() for _, y in plain]
        learn = learner(looked_at)
        torch.manual_seed(7)
        learn.summary()
        plt.close(learn.dls.show_batch(2).figure)
        assert [y.tolist() for _, y in looked_at] == labels


@pytest.mark.parametrize(
    ("x", "model", "sentence"),
    [
        (
            X,
            cl.simple_cnn(3, 10),
            r"Layer '0.0' \(Conv2d\) takes C = 3 channels, but its input is \(N, C, H, W\) = "
            r"\(20, 1, 28, 28\)\. The batch x is \(N, C, H, W\) = \(20, 1, 28, 28\), float32\.",
        ),
        (X[:, 0], None, r"'0.0' \(Conv2d\) takes \(N, C, H, W\), but its input has shape \(20, 28"),
        (X, linear(10, 100), r"Layer '1' \(Linear\) takes 100 features, but its input is \(N, F\)"),
        (
            X,
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(3)),
            r"Layer '1' \(BatchNorm2d\) takes C = 3 channels, but its input is .* \(20, 4, 26, 26",
        ),
        (
            X[:, :, :3, :3],
            nn.Sequential(nn.Conv2d(1, 4, 5)),
            r"\(Conv2d\) cannot take its input \(N, C, H, W\) = \(20, 1, 3, 3\): .*Kernel size",
        ),
        (
            X.byte(),
            None,
            r"has weights of float32, but its input is uint8; .* x.to\(torch.float32\)",
        ),
        (X.double(), None, r"has weights of float32, but its input is float64; convert the images"),
        (
            X,
            cl.simple_cnn(1, 10).half(),
            r"weights of float16, but .* with x.to\(torch.float16\)\.",
        ),
    ],
)
def test_images_that_the_model_cannot_take(x, model, sentence):
    refused(learner([(x, Y)], model), cl.TrainingError, sentence, RuntimeError)
    with pytest.raises(cl.TrainingError, match=sentence):
        learner([(X, Y)], model, valid=[(x, Y)]).validate()


def test_a_last_batch_of_one_with_batch_normalization():
    learn = learner([(X[:19], Y[:19]), (X[19:], Y[19:])], cl.simple_cnn(1, 10, norm="batch"))
    with pytest.raises(
        cl.TrainingError, match=r"is batch normalization.*last batch of one image w"
    ):
        learn.fit(1, 0.01)
    assert len(learn.recorder.steps) == 1


def test_an_error_of_the_models_own_is_left_as_it_is_with_a_note():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear(10)

        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        learner([(X, Y)], Own()).fit(1)
    assert caught.value.__notes__ == ["The batch x is (N, C, H, W) = (20, 1, 28, 28), float32."]


def of_ones_own(output, y):
    return F.cross_entropy(output, y)


def images(size, n=12):
    x = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return cl.from_arrays(x, np.arange(n) % 3, layout="NHWC", valid=0.25, batch_size=4)


def test_more_outputs_than_classes():
    learn = cl.Learner(images(64), cl.simple_cnn(3, 3), run=None, progress=False)
    refused(learn, cl.TrainingError, r"gives 12 outputs for each image .* but there are 3 classes")
    with pytest.raises(cl.TrainingError, match=r"gives 12 outputs for each image"):
        learn.validate()
    own = cl.Learner(
        images(64), cl.simple_cnn(3, 3), loss=of_ones_own,
        run=None, progress=False,
    )  # fmt: skip
    with pytest.warns(cl.ConvlensWarning, match="gives 12 outputs for each image, but there are 3"):
        own.fit(1, 0.01)


def mean(output, y):
    return ((output.squeeze(1) - y) ** 2).mean()


@pytest.mark.parametrize(
    ("y", "model", "loss", "sentence"),
    [
        (Y, cl.simple_cnn(1, 8), F.cross_entropy, r"go from 0 to 9, but the model gives 8 outputs"),
        (Y, cl.simple_cnn(1, 8), nn.NLLLoss(), r"go from 0 to 9, but the model gives 8 outputs"),
        (Y - 1, None, F.cross_entropy, r"The labels y go from -1 to 8, but the model gives 10 out"),
        (
            Y,
            cl.simple_cnn(1, 8),
            of_ones_own,
            r"The labels y go from 0 to 9, but the model gives 8 outputs for each image, for lab",
        ),
        (Y.int(), None, F.cross_entropy, r"y are int32; the loss cross_entropy takes int64"),
        (Y[:, None], None, F.cross_entropy, r"cannot take the output of shape \(20, 10\), float32"),
        (
            torch.randn(20),
            linear(1),
            F.mse_loss,
            r"The loss mse_loss compares outputs and labels number by number, but the output has "
            r"shape \(20, 1\) and y \(20,\)",
        ),
        (torch.randn(20), linear(1), nn.L1Loss(), r"The loss L1Loss compares outputs and labels"),
        (Y[:, None], linear(1), nn.MSELoss(), r"The labels y are int64, but the output is float32"),
        (torch.randn(20, 1).double(), linear(1), F.mse_loss, r"The labels y are float64, but the"),
        (torch.rand(20), linear(1), nn.BCEWithLogitsLoss(), r"shape \(20, 1\) and y \(20,\)"),
        (
            Y,
            None,
            nn.CrossEntropyLoss(reduction="none"),
            r"The loss CrossEntropyLoss must give one number, .* got shape \(20,\)",
        ),
        (Y, None, lambda output, y: 3.0, r"The loss <lambda> must give one number, .* got float"),
    ],
)
def test_a_loss_that_does_not_fit_outputs_or_labels(y, model, loss, sentence):
    refused(learner([(X, y)], model, loss=loss), cl.TrainingError, sentence)


def test_what_a_loss_may_well_take():
    class Scores(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.net, self.last = linear(10), last

        def forward(self, x):
            return self.last(self.net(x))

    spared = Y.clone()
    spared[:3] = -100
    masks = torch.zeros(20, 28, 28, dtype=torch.int64)
    soft = F.one_hot(Y, 10).float()
    for y, model, loss, classes in (
        (Y, None, F.cross_entropy, CLASSES),
        (spared, None, nn.CrossEntropyLoss(), CLASSES),
        (soft, None, F.cross_entropy, CLASSES),
        (masks, nn.Conv2d(1, 2, 1), F.cross_entropy, ["off", "on"]),
        (torch.randn(20), linear(1), mean, ()),
        (Y, Scores(lambda z: {"scores": z}), lambda z, y: F.cross_entropy(z["scores"], y), CLASSES),
        (Y, Scores(lambda z: z.log_softmax(1)), F.nll_loss, CLASSES),
    ):
        learn = learner([(X, y)], model, loss=loss, classes=classes)
        learn.fit(1, 0.01)
        assert len(learn.recorder.steps) == 1


def test_an_output_that_is_no_tensor():
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = linear(10)

        def forward(self, x):
            return {"scores": self.net(x)}

    refused(
        learner([(X, Y)], Answers()),
        cl.TrainingError,
        r"output is of type dict, and the loss",
    )


def test_nothing_to_train():
    model = cl.simple_cnn(1, 10).requires_grad_(False)
    refused(
        learner([(X, Y)], model), cl.TrainingError, r"The loss depends on no parameter that needs a"
    )


@pytest.mark.parametrize(
    ("optimizer", "model", "sentence"),
    [
        (torch.optim.LBFGS, None, r"optimizer=LBFGS makes a LBFGS, whose step needs a closure"),
        (
            lambda parameters, lr: None,
            None,
            r"optimizer=<lambda> must return a torch.optim.Optimizer, it returned a N",
        ),
        (lambda parameters: None, None, r"with the model's parameters and lr=0.01: .*unexpected"),
        (torch.optim.SGD, nn.Flatten(), r"optimizer=SGD cannot be called .* empty parameter list"),
    ],
)
def test_an_optimizer_that_cannot_be_made(optimizer, model, sentence):
    refused(learner([(X, Y)], model, optimizer=optimizer), cl.ArgumentError, sentence)


def half(output, y):
    return 0.5


def broken(output, y):
    raise ZeroDivisionError("by zero")


def table(output, y):
    return {"a": 1.0}


def test_metrics_that_give_numbers_of_any_kind():
    def numpy(output, y):
        return np.float64(0.25)

    def one(output, y):
        return torch.tensor([0.75])

    learn = learner([(X, Y)], valid=[(X, Y)] * 2, metrics=[half, numpy, one])
    assert learn.validate() == pytest.approx(
        {"loss": learn.validate()["loss"], "half": 0.5, "numpy": 0.25, "one": 0.75}
    )


def test_metrics_that_fail_are_named():
    with pytest.raises(cl.TrainingError, match=r"metric 'table' must give one number, .* got dict"):
        learner([(X, Y)], valid=[(X, Y)], metrics=[table]).fit(1)
    with pytest.raises(ZeroDivisionError) as caught:
        learner([(X, Y)], valid=[(X, Y)], metrics=[broken]).fit(1)
    assert caught.value.__notes__ == ["The metric 'broken' raised it."]


@pytest.mark.parametrize(
    ("output", "y"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 1)),
        (torch.zeros(4, 1), torch.zeros(4)),
        (torch.zeros(4), torch.zeros(4)),
    ],
)
def test_accuracy_of_labels_that_would_be_compared_each_with_each(output, y):
    with pytest.raises(cl.ArgumentError, match=r"accuracy needs outputs \(N, K\), K at least 2"):
        cl.accuracy(output, y)


def test_an_error_of_the_device_stays_what_it_is() -> None:
    """Loops catch it to try a smaller batch."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.rand(1, 1, 6, 6))

    def no_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model[0]._conv_forward = no_memory
    dls = cl.DataLoaders([(torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 0, 1]))])
    learn = cl.Learner(dls, model, run=None, progress=False)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        learn.fit(1)
    assert "(4, 1, 6, 6)" in raised.value.__notes__[0]

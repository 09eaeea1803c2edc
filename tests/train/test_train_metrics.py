"""Metrics of the whole validation set, held to torchmetrics, and the losses by name."""

import math

import pytest
import torch
import torchmetrics.classification as by_class
import torchmetrics.regression as by_number
from torch import nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

import convlens as cl
from convlens.core.wording import without_classes
from convlens.train.callbacks.progress import epoch_line
from convlens.train.losses import focal_loss, label_focal_loss
from convlens.train.named_metrics import metric_names, usual_metrics

NAMES = ("cat", "dog", "hen", "owl", "pig", "rat")
K, N, BATCH = len(NAMES), 41, 8  # a last batch of one item


class Given(nn.Module):
    """A network whose output is what was stored as the image."""

    def __init__(self, n_out):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.n_out = n_out

    def forward(self, x):
        return self.scale * x.flatten(1)[:, : self.n_out]


def outputs_and_targets(kind):
    """Logits, many between 0 and 1, which torchmetrics would take for probabilities."""
    if kind == "classes":
        y = torch.randint(K, (N,))
        return torch.rand(N, K) + 0.7 * F.one_hot(y, K), y
    if kind == "labels":
        y = (torch.rand(N, K) < 0.4).float()
        return torch.randn(N, K) + y, y
    y = torch.randn(N)
    return (y + 0.5 * torch.randn(N))[:, None], y


def loaders(kind, output, y, classes=NAMES):
    x = torch.zeros(len(output), 1, 1, K)
    x[:, 0, 0, : output.shape[1]] = output
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    classes = () if kind == "numbers" else classes
    return cl.DataLoaders(batches, batches, classes=classes, kind=kind)


def learner(kind, metrics=(), classes=NAMES, **options):
    torch.manual_seed(0)
    output, y = outputs_and_targets(kind)
    dls = loaders(kind, output, y, classes)
    options = {"run": None, "progress": False, **options}
    learn = cl.Learner(dls, Given(output.shape[1]), metrics=metrics, **options)
    return learn, output, y


def of_library(kind, name):
    """torchmetrics' object for a name, as its documentation says."""
    if kind == "numbers":
        return {
            "mae": by_number.MeanAbsoluteError(),
            "mse": by_number.MeanSquaredError(),
            "rmse": by_number.MeanSquaredError(squared=False),
            "r2": by_number.R2Score(),
        }[name]
    prefix, number = (
        ("Multiclass", "num_classes") if kind == "classes" else ("Multilabel", "num_labels")
    )
    if name == "top5":
        return by_class.MulticlassAccuracy(K, top_k=5, average="micro")
    base, _, rest = name.partition("_per_")
    rest = "none" if rest else "micro" if base == "accuracy" and kind == "classes" else "macro"
    cls = {"f1": "F1Score", "auroc": "AUROC", "map": "AveragePrecision"}.get(base, base.title())
    return getattr(by_class, prefix + cls)(**{number: K, "average": rest})


def test_the_accuracy_of_labels_is_right_for_probabilities():
    torch.manual_seed(0)
    logits, y = outputs_and_targets("labels")
    expected = ((logits > 0) == (y > 0.5)).float().mean()
    for output, loss in (
        (logits, "bce"),
        (logits, "focal"),
        (logits.sigmoid(), F.binary_cross_entropy),
        (logits, lambda o, y: 2 * F.binary_cross_entropy_with_logits(o, y)),
    ):
        dls = loaders("labels", output, y)
        learn = cl.Learner(dls, Given(K), loss, metrics=["accuracy"], run=None, progress=False)
        assert learn.validate()["accuracy"] == pytest.approx(float(expected))


def test_small_logits_of_the_focal_loss_are_not_taken_for_probabilities():
    output, y = torch.tensor([[0.2, 0.3, 0.1, 0.4, 0.1, 0.2]] * 4), torch.ones(4, K)
    dls = loaders("labels", output, y)
    learn = cl.Learner(dls, Given(K), "focal", metrics=["f1"], run=None, progress=False)
    assert learn.validate()["f1"] == 1.0


def test_the_focal_loss_is_computed_in_float32_under_autocast():
    output, y = torch.randn(8, K).bfloat16(), torch.randint(K, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        found = focal_loss(output, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, focal_loss(output.float(), y))


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_every_name_equals_torchmetrics_over_all_items(kind):
    names = metric_names(kind)
    groups = [[n for n in names if "_per_" not in n], [n for n in names if "_per_" in n]]
    for group in groups:
        learn, output, y = learner(kind, group)
        found = learn.validate()
        probabilities = {"classes": output.softmax(1), "labels": output.sigmoid()}.get(
            kind, output[:, 0]
        )
        for name in group:
            expected = of_library(kind, name)(probabilities, y.long() if kind == "labels" else y)
            base = name.removesuffix("_per_class")
            keys = [f"{base}[{c}]" for c in NAMES] if base != name else [name]
            values = [found.pop(key) for key in keys]
            assert values == pytest.approx(expected.reshape(-1).tolist(), abs=1e-6), name
        assert list(found) == ["loss"]


def test_objects_of_the_user_are_computed_over_all_items_and_stay_as_they_are():
    mine = by_class.MulticlassAUROC(K)
    several = MetricCollection(
        {"macro": by_class.MulticlassRecall(K), "each": by_class.MulticlassRecall(K, average=None)}
    )
    learn, output, y = learner("classes", [mine, several])
    twice = [learn.validate(), learn.validate()]
    assert twice[0] == twice[1]
    expected = by_class.MulticlassAUROC(K)(output.softmax(1), y)
    assert twice[0]["MulticlassAUROC"] == pytest.approx(float(expected))
    assert twice[0]["macro"] == pytest.approx(sum(twice[0][f"each[{c}]"] for c in NAMES) / K)
    assert mine._update_count == 0
    learn, output, y = learner("numbers", [by_number.PearsonCorrCoef()])
    assert learn.validate()["PearsonCorrCoef"] == pytest.approx(
        float(by_number.PearsonCorrCoef()(output[:, 0], y))
    )


def test_a_validation_that_is_interrupted_leaves_nothing_behind():
    class Interrupted(list):
        def __iter__(self):
            yield from self[:3]
            raise KeyboardInterrupt

    mine = by_class.MulticlassRecall(K)
    learn, *_ = learner("classes", ["f1", "auroc", mine])
    before = learn.validate()
    with pytest.raises(KeyboardInterrupt):
        learn.validate(Interrupted(learn.dls.valid))
    assert mine._update_count == 0
    assert learn.validate(learn.dls.valid[:2]) != before
    assert learn.validate() == before


def test_a_class_without_items_has_no_value_and_says_so_in_the_line_of_the_epoch(tmp_path):
    output, y = outputs_and_targets("classes")
    dls = loaders("classes", output, y.clamp(max=K - 2))
    metric = by_class.MulticlassAveragePrecision(K, average=None)
    run = tmp_path / "run"
    learn = cl.Learner(dls, Given(K), metrics=["accuracy", metric], progress=False, run=run)
    learn.fit(1, 1e-6)
    (epoch,) = learn.recorder.epochs
    assert math.isnan(epoch.metrics["MulticlassAveragePrecision[rat]"])
    (recorded,) = cl.open_run(run).epochs
    assert math.isnan(recorded.metrics["MulticlassAveragePrecision[rat]"])
    line = epoch_line(epoch, 1)
    assert "accuracy " in line
    assert line.count("MulticlassAveragePrecision") == 1
    means = without_classes(epoch.metrics)
    known = [v for k, v in epoch.metrics.items() if "[" in k and not math.isnan(v)]
    assert means["MulticlassAveragePrecision"] == pytest.approx(sum(known) / (K - 1))
    assert "recall –" in epoch_line(type(epoch)(0, 0, 1, 0.1, 0.1, {"recall": math.nan}, 1.0), 1)


def named_loss(output, y):
    return F.cross_entropy(output, y)


@pytest.mark.parametrize(
    ("kind", "metrics", "classes", "message"),
    [
        ("classes", ["acuracy"], NAMES, r"metrics has 'acuracy'.*Closest: 'accuracy'"),
        ("classes", ["mae"], NAMES, r"metric 'mae' is for numbers, but the data has classes; .*f1"),
        ("labels", ["top5"], NAMES, r"metric 'top5' is for classes, but the data has labels"),
        ("numbers", ["f1"], NAMES, r"metric 'f1' is for classes or labels.* there are mae, mse"),
        ("numbers", [cl.accuracy], NAMES, r"metric 'accuracy' is for classes or labels"),
        ("classes", ["top6"], NAMES, r"metric 'top6' is always 1 with 6 classes"),
        ("classes", ["f1"], (), r"metric 'f1' needs the number of classes.*classes=\[…\]"),
        ("classes", ["f1", "f1_per_class"], NAMES, r"more than one 'f1'"),
        ("classes", [by_class.MulticlassRecall(5)], NAMES, r"num_classes=5, but .* 6 classes"),
        ("classes", [by_class.MultilabelRecall(6)], NAMES, r"MultilabelRecall is for labels"),
        ("classes", [by_class.BinaryRecall()], NAMES, r"give MulticlassRecall\(num_classes=6\)"),
        (
            "labels",
            [by_number.R2Score()],
            NAMES,
            r"R2Score is for numbers, but the data has labels",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_before_the_first_step(
    kind, metrics, classes, message
):
    with pytest.raises(cl.ArgumentError, match=message):
        learner(kind, metrics, classes)


def test_a_missing_library_and_a_result_that_is_no_number(monkeypatch):
    learn, *_ = learner("classes", [by_class.MulticlassConfusionMatrix(K)])
    with pytest.raises(
        cl.TrainingError, match=r"MulticlassConfusionMatrix' must compute one numbe"
    ):
        learn.validate()
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    with pytest.raises(cl.MissingLibraryError, match=r"pip install 'convlens\[metrics\]'"):
        learner("classes", ["f1"])
    assert set(learner("classes", ["accuracy", "top5"])[0].validate()) == {
        "loss", "accuracy", "top5",
    }  # fmt: skip


def test_the_usual_metrics_of_each_kind():
    found = {kind: usual_metrics(learner(kind)[0].dls) for kind in ("classes", "labels", "numbers")}
    assert found == {"classes": ["accuracy"], "labels": ["f1", "map"], "numbers": ["mae"]}


# ---- losses --------------------------------------------------------------------------------------


def test_the_labels_of_the_training_are_smoothed_those_of_the_validation_not():
    learn, output, y = learner("classes", label_smoothing=0.1)
    smooth = F.cross_entropy(output[:BATCH], y[:BATCH], label_smoothing=0.1)
    assert learn.validate()["loss"] == pytest.approx(float(F.cross_entropy(output, y)))
    learn.fit(1, 1e-6)
    assert learn.recorder.steps.loss[0] == pytest.approx(float(smooth))


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("classes", "cross_entropy", F.cross_entropy),
        ("classes", "focal", lambda o, y: ((1 - (p := o.softmax(1).gather(1, y[:, None]))) ** 2
                                           * -p.log()).mean()),
        ("labels", "bce", F.binary_cross_entropy_with_logits),
        ("labels", "focal", lambda o, y: ((1 - (p := torch.where(y > 0, o, -o).sigmoid())) ** 2
                                          * -p.log()).mean()),
        ("numbers", "mse", lambda o, y: F.mse_loss(o[:, 0], y)),
        ("numbers", "mae", lambda o, y: F.l1_loss(o[:, 0], y)),
        ("numbers", "huber", lambda o, y: F.huber_loss(o[:, 0], y)),
    ],
)  # fmt: skip
def test_losses_by_name(kind, name, expected):
    learn, output, y = learner(kind, loss=name)
    assert learn.validate()["loss"] == pytest.approx(float(expected(output, y)), rel=1e-5)


@pytest.mark.parametrize(("loss", "function"), [(None, F.cross_entropy), ("focal", focal_loss)])
def test_with_class_weights_the_loss_is_that_of_all_items_however_they_are_batched(loss, function):
    torch.manual_seed(0)
    output, y = outputs_and_targets("classes")
    y[3] = -100 if loss is None else y[3]  # which the cross entropy ignores
    dls, weights = loaders("classes", output, y), torch.rand(K) * 5
    dls.class_weights = weights
    learn = cl.Learner(dls, Given(K), loss, run=None, progress=False)
    expected = float(function(output, y, weights))
    assert learn.validate()["loss"] == pytest.approx(expected, rel=1e-6)
    whole = torch.cat([x for x, _ in dls.valid]), y
    assert learn.validate([whole])["loss"] == pytest.approx(expected, rel=1e-6)
    ignored = torch.full_like(y, -100)
    if loss is None:  # a batch in which nothing counts, and nothing but such batches
        found = learn.validate([whole, (whole[0], ignored)])["loss"]
        assert found == pytest.approx(expected, rel=1e-6)
        assert math.isnan(learn.validate([(whole[0], ignored)])["loss"])


@pytest.mark.parametrize(("mean", "std"), [(20_000, 6), (1e6, 58), (250_000, 175)])
def test_r2_of_numbers_far_from_0(mean, std):
    torch.manual_seed(0)
    output, y = (mean + std * part for part in outputs_and_targets("numbers"))
    metrics = ["r2", MetricCollection({"own": by_number.R2Score()})]
    learn = cl.Learner(loaders("numbers", output, y), Given(1), metrics=metrics, run=None,
                       progress=False)  # fmt: skip
    errors, deviations = output[:, 0].double() - y.double(), y.double() - y.double().mean()
    expected = float(1 - errors.square().sum() / deviations.square().sum())
    found = learn.validate()
    assert found["r2"] == found["own"] == pytest.approx(expected, rel=1e-6)
    assert metrics[1]["own"].dtype == torch.float32  # the user's object is as it was


def test_focal_losses_without_focus_are_cross_entropies():
    output, y = outputs_and_targets("classes")
    weight, shares = torch.rand(K) + 0.1, torch.rand(N, K).softmax(1)
    for target, given in ((y, None), (y, weight), (shares, None)):
        got = focal_loss(output, target, given, gamma=0)
        torch.testing.assert_close(got, F.cross_entropy(output, target, given))
    pixels, mask = torch.randn(2, K, 3, 4), torch.randint(K, (2, 3, 4))
    torch.testing.assert_close(
        focal_loss(pixels, mask, weight, gamma=0), F.cross_entropy(pixels, mask, weight)
    )
    output, y = outputs_and_targets("labels")
    torch.testing.assert_close(
        label_focal_loss(output, y, gamma=0), F.binary_cross_entropy_with_logits(output, y)
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "classes",
            {"loss": "cross_entrpy"},
            r"loss='cross_entrpy' is not known.*Closest: 'cross_",
        ),
        ("labels", {"loss": "huber"}, r"loss='huber' is for numbers, but the data has labels"),
        ("classes", {"label_smoothing": 1.0}, r"label_smoothing must be from 0 to below 1, got 1"),
        (
            "classes",
            {"label_smoothing": "0"},
            r"label_smoothing must be from 0 to below 1, got '0'",
        ),
        ("labels", {"label_smoothing": 0.1}, r"cannot be used with the loss 'bce'"),
        ("classes", {"label_smoothing": 0.1, "loss": named_loss}, r"used with a loss of yours"),
    ],
)
def test_losses_that_cannot_be_are_refused(kind, options, message):
    with pytest.raises(cl.ArgumentError, match=message):
        learner(kind, **options)

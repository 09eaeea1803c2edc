"""What `Pictures` keeps is what the model does, and training is the same with and without it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl
from convlens.core.snapshots import (
    BEFORE,
    N_WORST,
    ClassActivationMaps,
    Confusion,
    EffectiveFieldMap,
    FeatureMaps,
    FieldIntervals,
    Kernels,
    Mistakes,
    Probes,
)
from convlens.data.loaders import TensorLoader
from convlens.geometry import effective_receptive_field, receptive_field
from convlens.train.callbacks import snapshot_limits as limits
from convlens.train.callbacks.layer_snapshots import (
    LayerSnapshots,
    padding_before,
    quantize,
)
from convlens.train.callbacks.misclassified import Misclassified
from convlens.train.callbacks.probe_images import choose, choose_probes

N_TRAIN, N_VALID = 128, 96


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """224 digits."""
    return next(iter(cl.mnist(batch_size=N_TRAIN + N_VALID).train))


@pytest.fixture
def dls(images: tuple[Tensor, Tensor]) -> cl.DataLoaders:
    return loaders(images)


def loaders(images: tuple[Tensor, Tensor], valid: bool = True) -> cl.DataLoaders:
    x, y = images
    train = DataLoader(TensorDataset(x[:N_TRAIN], y[:N_TRAIN]), batch_size=64, shuffle=True)
    test = DataLoader(TensorDataset(x[N_TRAIN:], y[N_TRAIN:]), batch_size=40)
    return cl.DataLoaders(train, test if valid else None, name="digits")


def fit(
    dls: cl.DataLoaders, model: nn.Module, n_epochs: int = 2, callbacks: Sequence[cl.Callback] = (),
    **options: Any,
) -> cl.Learner:  # fmt: skip
    learn = cl.Learner(
        dls, model, callbacks=callbacks or [cl.Pictures()], progress=False, seed=1, **options
    )
    learn.fit(n_epochs, 0.01)
    return learn


class Everything(nn.Module):
    """In-place ReLU, shared weights, dropout, tuple outputs, an odd buffer, a normalized image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 20, 3, stride=2, padding="valid")
        self.norm = nn.BatchNorm2d(20)
        self.relu = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(20, 20, 3, padding="same", bias=False)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(20, 10)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.shared(x))
        x, _ = self.pool(self.relu(self.shared(x)))
        return self.head(self.drop(x).mean((2, 3)))


# ---- the epochs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_epochs", [1, 19, 20, 21, 50, 100, 12345])
@pytest.mark.parametrize("n_kept", [1, 2, 20])
def test_kept_epochs_are_on_a_logarithmic_scale(n_epochs: int, n_kept: int) -> None:
    kept = limits.kept_epochs(n_epochs, n_kept)
    assert len(kept) == min(n_epochs, n_kept)
    assert kept[-1] == n_epochs - 1
    assert list(kept) == sorted(set(kept))
    if n_kept > 1:
        assert kept[0] == 0
        gaps = np.diff(kept)
        assert (gaps[1:] >= gaps[:-1] - 1).all()  # rounding may take one away
        ratios = (np.array(kept[1:]) + 1) / (np.array(kept[:-1]) + 1)
        wide = ratios[gaps > 3]
        assert not len(wide) or wide.max() <= 1.25 * wide.min()


def test_kept_epochs_of_a_hundred() -> None:
    assert limits.kept_epochs(100) == (
        0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 23, 28, 35, 43, 53, 65, 80, 99,
    )  # fmt: skip


def test_what_is_kept_fits_its_budget_however_large_the_network() -> None:
    grids, planes = [(112, 112)] * 64, [8 * 16] * 64
    side = limits.choose_cells(grids, planes)
    assert side in limits.CELLS[1:]
    assert sum(n * side * side for n in planes) <= limits.MAP_BYTES
    assert limits.choose_cells([(14, 14)] * 9, [128] * 9) == 32
    wide = [(512, 512, 3, 3)] * 60
    n_out, n_in = limits.choose_planes(wide)
    assert 60 * n_out * n_in * 9 * 4 <= limits.KERNEL_BYTES
    assert limits.choose_planes([(64, 32, 3, 3)] * 5) == (64, 16)
    kept = limits.kept_epochs(100)
    for n_bytes in (1, 22_000, 1 << 20, 1 << 30):
        epochs = limits.effective_epochs(kept, n_bytes)
        assert {-1, 99} <= epochs <= {-1, *kept}
        assert len(epochs) * n_bytes <= limits.EFFECTIVE_BYTES or len(epochs) == 2


# ---- training is untouched ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [Everything, lambda: cl.simple_cnn(1, 10, norm="batch")])
@pytest.mark.parametrize("valid", [True, False])
def test_training_is_the_same_to_the_last_bit(images, make, valid: bool) -> None:
    states = []
    for callbacks in ([cl.ActivationStats()], [cl.ActivationStats(), cl.Pictures()]):
        torch.manual_seed(0)
        random.seed(0)
        learn = fit(loaders(images, valid), make(), callbacks=callbacks, run=None)
        draws = torch.rand(3), torch.tensor(random.random())
        counts = torch.tensor(learn.activation_stats[0].counts)
        losses = torch.tensor(learn.recorder.steps.loss)
        optimizer = [v for s in learn.optimizer.state.values() for v in s.values()]
        states.append([*learn.model.state_dict().values(), *draws, counts, losses, *optimizer])
        assert all(p.grad is None for p in learn.model.parameters())
        assert all(m.training for m in learn.model.modules())
    assert len(states[0]) == len(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_loaders_own_generator_stays_where_it_is(images) -> None:
    x, y = images
    orders = []
    for n_probes in (0, 8):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(3)
        train = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, generator=generator)
        valid = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, generator=generator)
        pictures = cl.Pictures(n_probes=n_probes)
        learn = fit(cl.DataLoaders(train, valid), cl.simple_cnn(1, 10), 1, [pictures], run=None)
        assert (("probes", "") in pictures.snapshots) == bool(n_probes)
        orders.append(learn.recorder.steps.loss)
    np.testing.assert_array_equal(*orders)


def test_the_model_is_left_as_it_was_also_if_it_raises(dls) -> None:
    class Stubborn(Everything):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and not isinstance(x, torch._subclasses.FakeTensor):
                torch.rand(3)
                raise RuntimeError("never in evaluation")
            return super().forward(x)

    model = Stubborn()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    follower = LayerSnapshots(model, choose_probes(dls, 4)[0], 64, (0,))
    follower.take(BEFORE)
    assert any("never in evaluation" in note for note in follower.notes)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.norm.training) == (True, False)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- what is kept -------------------------------------------------------------------------------


def outputs_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """A module's last output, copied when it was made."""
    kept: list[Tensor] = []

    def keep(module, args, output) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    handle = model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model(x)
    handle.remove()
    return kept[-1]


@pytest.fixture(scope="module")
def followed(images, tmp_path_factory) -> cl.Learner:
    """Everything, trained for three epochs with a run."""
    return fit(loaders(images), Everything(), 3, base=tmp_path_factory.mktemp("followed"))


def test_feature_maps_are_the_layers_outputs(followed) -> None:
    run = cl.open_run(followed.run_path)
    model = copy.deepcopy(followed.model).eval()
    probes = run.snapshot(Probes)
    x = torch.from_numpy(probes.inputs)
    names = ["first", "norm", "relu", "shared", "pool"]
    assert run.snapshot_layers(FeatureMaps) == names
    for name in names:
        assert run.snapshot_epochs(FeatureMaps, name) == [-1, 0, 1, 2]
        found, real = run.snapshot(FeatureMaps, name), outputs_of(model, name, x)
        assert (found.n_channels, found.grid) == (20, tuple(real.shape[2:]))
        assert found.channels.tolist() == list(range(16))
        step = (found.high - found.low)[:, None, None] / 255
        value = found.low[:, None, None] + found.maps * step
        assert (np.abs(value - real[:, :16].numpy()) <= 0.51 * step + 1e-6).all(), name
    assert run.meta["pictures"]["notes"] == []
    assert run.meta["pictures"]["kept_epochs"] == [0, 1, 2]


def test_large_maps_hold_the_means_of_their_cells(images) -> None:
    conv = nn.Conv2d(1, 3, 3, padding=1)
    x = F.interpolate(images[0][:2], (40, 70))
    follower = LayerSnapshots(nn.Sequential(conv), x, 64, (0,))
    (maps,) = [s for s in follower.take(0) if isinstance(s, FeatureMaps)]
    assert (maps.maps.shape, maps.grid) == ((2, 3, 32, 32), (40, 70))
    real = conv(x).detach().numpy()
    for i, j in ((0, 0), (5, 31), (31, 17)):
        rows = slice(i * 40 // 32, -(-(i + 1) * 40 // 32))
        columns = slice(j * 70 // 32, -(-(j + 1) * 70 // 32))
        mean = real[:, :, rows, columns].mean((2, 3))
        step = (maps.high - maps.low) / 255
        assert (np.abs(maps.low + maps.maps[:, :, i, j] * step - mean) <= 0.51 * step).all()


def test_quantizing_what_is_not_finite() -> None:
    values = np.zeros((1, 4, 1, 3), np.float32)
    values[0, 0] = [-1, 0, 3]
    values[0, 1] = [np.nan, 2, np.inf]
    values[0, 2] = np.nan
    values[0, 3] = [-3e38, 0, 3e38]
    maps, low, high = quantize(values)
    assert maps[0, :, 0].tolist() == [[0, 64, 255], [0, 0, 255], [0, 0, 0], [0, 128, 255]]
    np.testing.assert_array_equal(low, np.float32([-1, 2, np.nan, -3e38]))
    np.testing.assert_array_equal(high, np.float32([3, 2, np.nan, 3e38]))


def test_kernels_are_the_weights(followed) -> None:
    run, model = cl.open_run(followed.run_path), followed.model
    assert run.snapshot_layers(Kernels) == ["first", "shared"]
    first, shared = (run.snapshot(Kernels, name) for name in ("first", "shared"))
    np.testing.assert_array_equal(first.weight, model.first.weight.detach())
    np.testing.assert_array_equal(first.bias, model.first.bias.detach())
    np.testing.assert_array_equal(shared.weight, model.shared.weight.detach()[:, :16])
    assert (first.reads_input, shared.reads_input) == (True, False)
    assert (shared.shape, shared.bias.shape) == ((20, 20, 3, 3), (0,))
    assert (first.stride, first.padding, shared.padding) == ((2, 2), (0, 0), (1, 1))
    assert (first.zero_padding, first.groups) == (True, 1)
    before = run.snapshot(Kernels, "first", BEFORE)
    assert not np.array_equal(before.weight, first.weight)


def test_what_a_unit_of_the_first_layer_adds_up_can_be_worked_out(dls) -> None:
    """The products of the sliding window, from the record alone."""
    run = cl.open_run(fit(dls, cl.simple_cnn(1, 10), 1).run_path)
    kernels, probes = run.snapshot(Kernels, "0.0"), run.snapshot(Probes)
    maps = run.snapshot(FeatureMaps, "0.0")
    (top, left), (down, across) = kernels.padding, kernels.stride
    padded = np.pad(probes.inputs[2], ((0, 0), (top, top), (left, left)))
    row, column, channel = 6, 9, 3
    window = padded[:, row * down :, column * across :][:, :5, :5]
    total = (window * kernels.weight[channel]).sum() + kernels.bias[channel]
    step = (maps.high[channel] - maps.low[channel]) / 255
    shown = maps.low[channel] + maps.maps[2, channel, row, column] * step
    assert abs(total - shown) <= 0.51 * step + 1e-5


def test_a_convolution_of_a_changed_image_does_not_read_the_input(images) -> None:
    class Shifted(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.conv, self.in_place = nn.Conv2d(1, 2, 3), in_place

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mul_(2) if self.in_place else x * 2)

    x = images[0][:2].clone()
    before = x.clone()
    for in_place in (False, True):
        follower = LayerSnapshots(Shifted(in_place), x, 64, (0,))
        (kernels,) = [s for s in follower.take(0) if isinstance(s, Kernels)]
        assert not kernels.reads_input
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("padding", "kernel", "dilation", "expected"),
    [
        (2, 5, 1, (2, 2)),
        ((1, 0), 3, 1, (1, 0)),
        ("valid", 3, 1, (0, 0)),
        ("same", (4, 3), 1, (1, 1)),
        ("same", 3, (1, 3), (1, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_padding_before_the_first_pixel(padding, kernel, dilation, expected) -> None:
    conv = nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation, bias=False)
    assert padding_before(conv) == expected
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 0, 0] = 1  # tap (rows, columns) of the kernel meets it at the output's corner
    corner = conv(image)[0, 0, 0, 0]
    assert (
        corner
        == conv.weight[0, 0, expected[0] // conv.dilation[0], expected[1] // conv.dilation[1]]
    )


def test_fields_are_the_theoretical_ones(dls) -> None:
    learn = fit(dls, cl.simple_cnn(1, 10, norm="batch"), 1)
    run = cl.open_run(learn.run_path)
    fields = receptive_field(learn.model, (1, 1, 28, 28))
    layers = run.snapshot_layers(FieldIntervals)
    assert layers == run.snapshot_layers(FeatureMaps)
    assert len(layers) == 14
    for name in layers:
        found = run.snapshot(FieldIntervals, name)
        assert found.epoch == BEFORE
        assert (found.grid, found.size) == (fields[name].grid, fields[name].size)
        row, column = found.grid[0] - 1, found.grid[1] // 2
        assert fields.rectangle(name, row, column) == (
            (found.first_row[row], found.last_row[row]),
            (found.first_column[column], found.last_column[column]),
        )


def test_effective_fields_are_those_of_the_centre_units(followed) -> None:
    run, model = cl.open_run(followed.run_path), copy.deepcopy(followed.model)
    x = torch.from_numpy(run.snapshot(Probes).inputs)
    for name in ("first", "norm", "shared"):
        found = run.snapshot(EffectiveFieldMap, name)
        expected = effective_receptive_field(model, x, name, unit=found.unit)
        assert found.unit == tuple(n // 2 for n in run.snapshot(FeatureMaps, name).grid)
        (top, left), (height, width) = found.corner, found.share.shape
        whole = np.zeros((28, 28))
        whole[top : top + height, left : left + width] = found.share
        np.testing.assert_allclose(whole, expected.share, rtol=0.005, atol=1e-9)
        assert found.share.sum() == pytest.approx(1.0, abs=2e-3)
        assert found.radius == {str(k): pytest.approx(v) for k, v in expected.radius.items()}
        field = run.snapshot(FieldIntervals, name)
        row, column = found.unit
        assert (top, left) == (field.first_row[row], field.first_column[column])
    assert run.snapshot_layers(EffectiveFieldMap) == run.snapshot_layers(FeatureMaps)


def test_the_confusion_and_the_mistakes_are_those_of_the_validation(images) -> None:
    learn = fit(loaders(images), cl.simple_cnn(1, 10, norm="batch"), 3)
    run = cl.open_run(learn.run_path)
    x, y = (part[N_TRAIN:] for part in images)
    with torch.no_grad():
        output = learn.model.eval()(x)
    losses, said = F.cross_entropy(output, y, reduction="none"), output.argmax(1)
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (y.numpy(), said.numpy()), 1)
    confusion = run.snapshot(Confusion)
    np.testing.assert_array_equal(confusion.counts, expected)
    assert confusion.classes == tuple("0123456789")
    assert run.snapshot_epochs(Confusion) == run.snapshot_epochs(Mistakes) == [0, 1, 2]

    mistakes = run.snapshot(Mistakes)
    wanted = set(losses.topk(32).indices.tolist())
    for true, predicted in np.argwhere(expected):
        if true != predicted:
            where = torch.nonzero((y == true) & (said == predicted))[:, 0]
            wanted.add(int(where[losses[where].argmax()]))
    assert set(mistakes.item.tolist()) == wanted
    item = mistakes.item
    np.testing.assert_array_equal(mistakes.true, y[item])
    np.testing.assert_array_equal(mistakes.predicted, said[item])
    np.testing.assert_allclose(mistakes.loss, losses[item], rtol=1e-4, atol=1e-6)
    assert (np.diff(mistakes.loss) <= 0).all()
    chance = output.softmax(1).max(1).values[item]
    np.testing.assert_allclose(mistakes.probability, chance, rtol=1e-4)
    assert mistakes.images.shape == (len(wanted), 28, 28)
    # Without a known scale black and white are the batch's own: the same images up to that.
    shown = mistakes.images[0].ravel().astype(float)
    assert np.corrcoef(shown, x[item[0], 0].ravel())[0, 1] > 0.999


def test_of_many_confusions_the_worst_are_kept_in_bounded_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    validation, outputs, labels = Misclassified(5), [], []
    for _ in range(12):
        output = torch.randn(50, 30, generator=generator) * 4
        y = torch.randint(0, 30, (50,), generator=generator)
        y[0] = -100  # a label that is none
        validation.add(output, y, torch.randn(50, 3, 90, 30, generator=generator))
        outputs.append(output)
        labels.append(y)
        held = [len(w._held.x) for w in (validation._full, validation._top, validation._pairs)]
        assert max(held) <= limits.N_PAIRS
    output, y = torch.cat(outputs), torch.cat(labels)
    losses, said = F.cross_entropy(output, y, reduction="none"), output.argmax(1)
    worst: dict[tuple[int, int], int] = {}
    for item in losses.argsort(descending=True).tolist():
        if y[item] >= 0 and y[item] != said[item]:
            worst.setdefault((int(y[item]), int(said[item])), item)
    pairs = sorted(worst.values(), key=lambda item: -losses[item])[: limits.N_PAIRS]
    wanted = set(pairs) | set(losses.topk(N_WORST).indices.tolist())
    found = validation.mistakes(0, tuple("abc"), lambda x: x[:, 0].to(torch.uint8).numpy())
    assert set(found.item.tolist()) == wanted
    assert found.images.shape == (len(wanted), 64, 21)
    assert validation.confusion(0, ()).counts.sum() == 12 * 49
    full = validation.worst()
    assert full.item.tolist() == losses.topk(5).indices.tolist()
    assert full.x.shape == (5, 3, 90, 30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_outputs_of_any_floating_type_are_judged(dtype: torch.dtype) -> None:
    output, y, x = torch.randn(20, 4).to(dtype), torch.randint(0, 4, (20,)), torch.rand(20, 1, 6, 6)
    validation = Misclassified(3)
    validation.add(output, y, x)
    kept = validation.mistakes(0, tuple("abcd"), to_bytes)
    losses = F.cross_entropy(output.double(), y, reduction="none")
    expected = losses.sort(descending=True).values
    np.testing.assert_allclose(kept.loss, expected[: len(kept.loss)], rtol=1e-5)


def test_images_without_a_class_are_no_mistakes_and_losses_that_are_nan_are() -> None:
    x = torch.rand(6, 1, 6, 6)
    validation, without, lost = Misclassified(6), Misclassified(3), Misclassified(3)
    validation.add(torch.randn(6, 4), torch.tensor([0, -100, 1, -100, 2, 3]), x)
    kept, worst = validation.mistakes(0, tuple("abcd"), to_bytes), validation.worst()
    assert sorted(kept.true.tolist()) == sorted(worst.true.tolist()) == [0, 1, 2, 3]
    assert validation.confusion(0, tuple("abcd")).counts.sum() == 4
    without.add(torch.randn(2, 4), torch.tensor([-100, -100]), x[:2])
    assert without.mistakes(0, tuple("abcd"), to_bytes) is without.worst() is None
    lost.add(torch.full((2, 4), torch.nan), torch.tensor([0, 1]), x[:2])
    assert np.isnan(lost.mistakes(0, tuple("abcd"), to_bytes).loss).tolist() == [True, True]


def to_bytes(x: Tensor) -> np.ndarray:
    return (x[:, 0] * 255).to(torch.uint8).numpy()


# ---- the probes ---------------------------------------------------------------------------------


def test_probes_are_of_as_many_classes_as_can_be(images) -> None:
    y = torch.tensor([3] * 50 + [1] * 2 + [7])
    assert y[choose(y, 3)].tolist() == [1, 3, 7]
    assert y[choose(y, 6)].tolist() == [1, 1, 3, 3, 3, 7]
    assert len(choose(y, 99)) == 53
    assert choose(torch.rand(9, 2), 4).tolist() == sorted(choose(torch.rand(9, 2), 4).tolist())
    order = torch.argsort(images[1][N_TRAIN:])  # a folder's images come class by class
    x, y = images[0][N_TRAIN:][order], images[1][N_TRAIN:][order]
    for valid in (
        DataLoader(TensorDataset(x, y), batch_size=8),
        TensorLoader(x, y, batch_size=8),
    ):
        _, labels = choose_probes(cl.DataLoaders([], valid), 8)
        assert len(set(labels.tolist())) >= 7


def test_probes_are_the_same_every_time_and_exactly_what_the_network_gets(dls, images) -> None:
    (x, y), (again, _) = choose_probes(dls, 8), choose_probes(dls, 8)
    assert torch.equal(x, again)
    valid = images[0][N_TRAIN:]
    assert all(any(torch.equal(one, other) for other in valid) for one in x)
    run = cl.open_run(fit(dls, cl.simple_cnn(1, 10), 1).run_path)
    np.testing.assert_array_equal(run.snapshot(Probes).inputs, x)
    assert run.snapshot(Probes).captions == tuple(str(label) for label in y.tolist())
    assert run.snapshot(Probes).images.shape == (8, 28, 28)


def test_without_validation_probes_are_training_images(images) -> None:
    x, y = (part[:N_TRAIN] for part in images)
    ours = cl.DataLoaders(TensorLoader(x, y, batch_size=64, shuffle=True))
    for dls in (loaders(images, valid=False), ours):
        run = cl.open_run(fit(dls, cl.simple_cnn(1, 10), 1).run_path)
        assert run.snapshot_epochs(FeatureMaps, "0.0") == [-1, 0]
        assert run.snapshot(Confusion) is run.snapshot(Mistakes) is None
        probes = torch.from_numpy(run.snapshot(Probes).inputs)
        assert all(any(torch.equal(one, other) for other in x) for one in probes)


# ---- odd trainings ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["inside", "after"])
def test_a_training_that_ends_early_keeps_its_last_epoch(dls, way: str) -> None:
    class Stop(cl.Callback):
        def before_loss(self, learn) -> None:
            if learn.epoch == 4 and learn.step == 9 and way == "inside":
                raise cl.CancelFitError

        def after_epoch(self, learn) -> None:
            if learn.epoch == 4:
                raise cl.CancelFitError

    learn = fit(dls, cl.simple_cnn(1, 10), 50, [cl.Pictures(n_epochs=3), Stop()])
    run = cl.open_run(learn.run_path)
    assert run.snapshot_epochs(FeatureMaps, "0.0") == [-1, 0, 4]
    # Inside an epoch the worst images are those of the validation before, of other weights.
    assert run.snapshot_epochs(ClassActivationMaps) == ([0] if way == "inside" else [0, 4])
    weight = run.snapshot(Kernels, "0.0").weight
    np.testing.assert_array_equal(weight, learn.model[0][0].weight.detach())


@pytest.mark.parametrize("compile_it", [lambda m: torch.compile(m, backend="eager"), None])
def test_a_compiled_model_is_followed_under_its_own_names(dls, compile_it) -> None:
    model = cl.simple_cnn(1, 10, widths=(4,))
    if compile_it is None:
        model.compile(backend="eager")
    model = compile_it(model) if compile_it else model
    learn = fit(dls, model, 2, [cl.ActivationStats(), cl.Pictures()])
    run = cl.open_run(learn.run_path)
    assert run.activation_stats["0.0"].columns.calls.tolist() == [1] * 4
    assert run.snapshot_layers(FeatureMaps) == ["0.0", "0.1", "1.0"]
    assert run.snapshot_epochs(FeatureMaps, "0.0") == [-1, 0, 1]
    assert run.meta["pictures"]["notes"] == []


def test_a_layer_of_another_order_of_axes_is_no_feature_map(dls) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(1, 6, 4, 4), nn.LayerNorm(6), nn.GELU()
            self.head = nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.norm(self.conv(x).permute(0, 2, 3, 1)))
            return self.head(x.mean((1, 2)))

    run = cl.open_run(fit(dls, Last(), 1).run_path)
    assert run.snapshot_layers(FeatureMaps) == ["conv"]


def test_what_cannot_be_followed_is_said(dls) -> None:
    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 10, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            x = torch.take(x, torch.arange(x.numel())).view(x.shape)
            return self.two(x).mean((2, 3))

    run = cl.open_run(fit(dls, Taken(), 1).run_path)
    assert run.snapshot_layers(FeatureMaps) == ["one", "two"]
    assert run.snapshot_layers(FieldIntervals) == ["one"]
    (note,) = run.meta["pictures"]["notes"]
    assert note == "No receptive fields after aten.take.default."


def test_more_layers_than_are_followed(dls) -> None:
    model = cl.simple_cnn(1, 10, norm="batch")
    run = cl.open_run(fit(dls, model, 1, [cl.Pictures(n_layers=4)]).run_path)
    assert run.snapshot_layers(FeatureMaps) == ["0.0", "1.1", "3.0", "4.1"]
    facts = run.meta["pictures"]
    assert (facts["n_layers"], facts["n_layers_in_all"]) == (4, 14)


def test_a_regression_keeps_maps_and_no_confusion() -> None:
    batches = [(torch.randn(4, 1, 8, 8), torch.randn(4, 4))] * 2
    model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    learn = fit(cl.DataLoaders(batches, batches), model, 1, loss=F.mse_loss)
    run = cl.open_run(learn.run_path)
    assert run.snapshot_layers(FeatureMaps) == ["0"]
    assert run.snapshot(Confusion) is run.snapshot(Mistakes) is None
    assert run.snapshot(Probes).captions == ("",) * 4


def test_a_long_training_keeps_mistakes_at_kept_epochs_only(monkeypatch, dls) -> None:
    monkeypatch.setattr(limits, "MISTAKE_BYTES", 1000)
    monkeypatch.setattr(limits, "CONFUSION_CLASSES", 9)
    learn = fit(dls, cl.simple_cnn(1, 10, widths=(4,)), 6, [cl.Pictures(n_epochs=2)])
    run = cl.open_run(learn.run_path)
    assert run.snapshot_epochs(Mistakes) == run.snapshot_epochs(Confusion) == [0, 5]


def test_no_probes_and_no_run(dls) -> None:
    pictures = cl.Pictures()
    fit(dls, cl.simple_cnn(1, 10), 2, [pictures], run=None)
    assert pictures.snapshots["maps", "0.1"].epoch == 1
    assert pictures.snapshots["confusion", ""].counts.sum() == N_VALID
    run = cl.open_run(fit(dls, cl.simple_cnn(1, 10), 1, [cl.Pictures(n_probes=0)]).run_path)
    assert run.snapshot(Probes) is None
    assert run.snapshot_layers(Kernels) == []
    assert run.snapshot(Confusion).counts.sum() == N_VALID


def test_arguments_that_cannot_work() -> None:
    for argument, least in (("n_batch", 1), ("n_worst", 1), ("n_probes", 0), ("n_epochs", 1)):
        text = f"{argument} must be at least {least}, got {least - 1}"
        with pytest.raises(cl.ArgumentError, match=text):
            cl.Pictures(**{argument: least - 1})

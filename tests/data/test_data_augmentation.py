from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from convlens.data.augmentation import (
    Affine,
    Augmentation,
    ColorJitter,
    Crop,
    CutMix,
    Cutout,
    Flip,
    Mixup,
    RandomResizedCrop,
    Rotate,
    augmentation_of,
    presets,
)
from convlens.data.color import adjusted
from convlens.data.geometric import Geometric, affine_matrices, geometry
from convlens.data.operations import Draws
from convlens.errors import ArgumentError

EVERY = [
    Flip(),
    Flip(0.5, vertical=True),
    Crop(2),
    Crop(2, mode="zeros"),
    RandomResizedCrop(),
    Rotate(15),
    Affine(10, (0.1, 0.2), (0.8, 1.2), 10),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    Cutout(),
    Mixup(),
    CutMix(),
]
PADS = {"reflect": "reflect", "edge": "replicate", "zeros": "constant"}
names = [type(operation).__name__ for operation in EVERY]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=8, c=3, h=12, w=12, seed=1):
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=generator(seed))


def smooth(n=8, c=3, h=24, w=24):
    """Images without fine detail, on which two ways to interpolate agree."""
    x = F.interpolate(images(n, c, 6, 6).float(), (h, w), mode="bicubic", align_corners=True)
    return x.clamp(0, 255).round().to(torch.uint8)


def augmented(operations, x, size=None, seed=0, y=None, **settings):
    size = tuple(x.shape[2:]) if size is None else size
    y = torch.arange(len(x)) % 3 if y is None else y
    settings = {"n_classes": 3} | settings
    return Augmentation(operations, size, **settings)(x, y, generator(seed))


def test_nothing_to_do_is_the_middle_of_the_images():
    x = images(h=15, w=13)
    out, _ = augmented([], x, (12, 10))
    assert out.dtype == torch.float32
    assert torch.equal(out, x[:, :, 1:13, 1:11] / 255)
    same, _ = augmented([Flip(p=0)], x, (12, 10))
    assert torch.equal(same, out), "the same place, whatever else is done"
    turned, _ = augmented([Rotate(0)], x, (12, 10))
    torch.testing.assert_close(turned, out, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), [(12, 12), (5, 8), (8, 5), (1, 1), (1, 7)])
def test_flips_are_exact(h, w):
    x = images(40, h=h, w=w)
    assert torch.equal(augmented([Flip(1)], x)[0], x.flip(3) / 255)
    assert torch.equal(augmented([Flip(1, vertical=True)], x)[0], x.flip(2) / 255)
    assert torch.equal(augmented([Flip(1), Flip(1, vertical=True)], x)[0], x.flip(2, 3) / 255)
    out, _ = augmented([Flip()], x)
    flipped = torch.tensor([torch.equal(a, b.flip(2) / 255) for a, b in zip(out, x, strict=True)])
    kept = torch.tensor([torch.equal(a, b / 255) for a, b in zip(out, x, strict=True)])
    assert bool((flipped | kept).all())
    if w > 1:
        assert 8 < flipped.sum() < 32


@pytest.mark.parametrize("mode", ["reflect", "edge", "zeros"])
@pytest.mark.parametrize(("h", "w"), [(12, 12), (7, 10)])
def test_crops_are_windows_of_the_padded_image(mode, h, w):
    x = images(60, h=h, w=w)
    padded = F.pad(x / 255, (3, 3, 3, 3), PADS[mode])
    out, _ = augmented([Crop(3, mode)], x)
    seen = set()
    for one, whole in zip(out, padded, strict=True):
        windows = whole.unfold(1, h, 1).unfold(2, w, 1)
        equal = (windows == one[:, None, None]).flatten(3).all(3).all(0).nonzero().tolist()
        assert len(equal) == 1
        seen.add(tuple(equal[0]))
    assert {top for top, _ in seen} == set(range(7))
    assert {left for _, left in seen} == set(range(7))


def test_a_crop_without_padding_is_a_window_of_the_larger_stored_image():
    x = images(30, h=14, w=17)
    out, _ = augmented([Crop(0), Flip(1)], x, (12, 12))
    for one, whole in zip(out, x / 255, strict=True):
        windows = whole.unfold(1, 12, 1).unfold(2, 12, 1)
        assert (windows == one.flip(2)[:, None, None]).flatten(3).all(3).all(0).any()


def test_a_padding_larger_than_the_image_is_mirrored_again():
    x = images(20, h=3, w=3)
    out, _ = augmented([Crop(9)], x)
    for one, image in zip(out, x / 255, strict=True):
        assert bool(torch.isin(one, image).all())


def test_digits_are_not_mirrored_and_keep_their_background():
    """A stroke near the edge has no second one beyond it, on black and on white paper."""
    x = torch.zeros(100, 1, 28, 28, dtype=torch.uint8)
    x[:, :, 25, 13:16] = 255
    out, _ = augmented(presets((28, 28))["digits"], x)
    assert out.sum((1, 2, 3)).max() < 3 * 1.25**2
    out, _ = augmented(presets((28, 28))["digits"], torch.full_like(x, 255))
    torch.testing.assert_close(out, torch.ones_like(out))


def test_whole_pixels_and_sampling_agree():
    x = images(16, h=14, w=11)
    for size in ((14, 11), (12, 8)):
        for mode in PADS:
            exact, _ = augmented([Flip(), Crop(3, mode)], x, size)
            sampled, _ = augmented([Flip(), Crop(3, mode), Affine(mode=mode)], x, size)
            torch.testing.assert_close(sampled, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("h", [24, 31])
def test_affine_agrees_with_torchvision(h):
    x = smooth(1, h=h, w=26)
    for angle, dx, dy, scale, shear in [
        (30, 0, 0, 1, 0), (0, 3, -2, 1, 0), (0, 0, 0, 1.3, 0), (0, 0, 0, 1, 20),
        (20, 2, -3, 0.8, 10), (-90, 0, 4, 1.1, -15),
    ]:  # fmt: skip
        theirs = TF.affine(
            x / 255, angle, [dx, dy], scale, [shear, 0], interpolation=InterpolationMode.BILINEAR
        )
        matrices = affine_matrices(*values_of(angle, dx, dy, scale, shear))
        ours, inside = fixed(matrices, x), fixed(matrices, whites(x))
        inside = (F.avg_pool2d(inside, 3, 1, 1) > 0.999).expand_as(ours)
        assert inside.float().mean() > 0.4
        torch.testing.assert_close(ours[inside], theirs[inside], atol=2e-5, rtol=0)


def values_of(*numbers):
    return (torch.tensor([float(v)]).double() for v in numbers)


def whites(x):
    return torch.full_like(x, 255)


class Fixed(Geometric):
    """Matrices that are not random."""

    def __init__(self, matrices):
        self._matrices = matrices

    def words(self):
        return "fixed"

    def matrices(self, draws, canvas, size):
        return self._matrices


def fixed(matrices, x):
    """The images moved by these matrices, black outside."""
    operations = [Fixed(matrices), Affine(mode="zeros")]
    return geometry(x, operations, Draws(len(x), generator()), tuple(x.shape[2:]))


def test_the_range_of_a_rotation_and_of_a_shift():
    """A point's place after a turn says the angle; it lies between the greatest ones."""
    x = torch.zeros(200, 1, 101, 101, dtype=torch.uint8)
    x[:, :, 50, 90] = 255
    out, _ = augmented([Rotate(30, mode="zeros")], x)
    ys, xs = centroid(out)
    angles = torch.rad2deg(torch.atan2(ys - 50, xs - 50))
    assert -30.5 < angles.min() < -25
    assert 25 < angles.max() < 30.5
    out, _ = augmented([Affine(translate=(0.1, 0.2), mode="zeros")], x[:, :, :, 30:])
    ys, xs = centroid(out)
    assert 6.5 < (xs - 60).abs().max() <= 7.2
    assert 18.5 < (ys - 50).abs().max() <= 20.3


def centroid(x):
    weights = x[:, 0] / x[:, 0].sum((1, 2), keepdim=True)
    ys = (weights.sum(2) * torch.arange(x.shape[2])).sum(1)
    return ys, (weights.sum(1) * torch.arange(x.shape[3])).sum(1)


@pytest.mark.parametrize(("h", "w", "size"), [(32, 32, (28, 28)), (28, 40, (16, 32))])
def test_a_resized_crop_is_an_area_of_the_image_with_bounded_distortion(h, w, size):
    """On a ramp of x and y the corners' values say which area is seen."""
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    x = torch.stack([xs * 6, ys * 6]).to(torch.uint8).expand(300, 2, h, w)
    out, _ = augmented([RandomResizedCrop((0.3, 0.9), (0.8, 1.25))], x, size)
    place = out * 255 / 6
    steps_x = (place[:, 0, :, -2] - place[:, 0, :, 1]).mean(1) / (size[1] - 3)
    steps_y = (place[:, 1, -2] - place[:, 1, 1]).mean(1) / (size[0] - 3)
    area = steps_x * size[1] * steps_y * size[0] / (h * w)
    assert 0.28 < area.min() < 0.4
    assert 0.8 < area.max() < 0.92
    distortion = steps_x / steps_y
    assert 0.78 < distortion.min() < 0.85
    assert 1.17 < distortion.max() < 1.27
    left = place[:, 0, :, 1].mean(1) - 1.5 * steps_x
    assert left.min() > -0.7, "never outside"


def test_a_resized_crop_agrees_with_torchvision():
    x = smooth(50, h=32, w=32)
    matrix = RandomResizedCrop().matrices
    matrices = matrix(Draws(50, generator()), (32, 32), (20, 20))
    ours, _ = augmented([RandomResizedCrop()], x, (20, 20))
    for i in range(50):  # theirs is of whole pixels: the nearest ones are almost the same
        wide, high = float(matrices[i, 0, 0]) * 20, float(matrices[i, 1, 1]) * 20
        left, top = (
            float(matrices[i, 0, 2]) + 16 - wide / 2,
            float(matrices[i, 1, 2]) + 16 - high / 2,
        )
        box = [round(top), round(left), round(high), round(wide)]
        theirs = TF.resized_crop(x[i] / 255, *box, [20, 20], antialias=False)
        assert (ours[i] - theirs).abs().mean() < 0.04
        assert min(left, top) >= -1e-6
        assert max(left + wide, top + high) <= 32 + 1e-6


def test_an_area_that_is_too_long_is_made_smaller_and_keeps_its_shape():
    wide = RandomResizedCrop((1, 1), (1, 1)).matrices(Draws(3, generator()), (20, 80), (10, 10))
    assert torch.equal(wide[:, 0, 0], torch.full((3,), 2.0).double())
    assert torch.equal(wide[:, 1, 1], torch.full((3,), 2.0).double())


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0, 1.7])
def test_colours_agree_with_torchvision(value):
    x = images(4) / 255
    one, given = torch.ones(4).double(), torch.full((4,), value).double()
    no_turn = torch.zeros(4).double()
    near = {"atol": 1e-3, "rtol": 0}  # their three weights of grey add up to 0.9999
    for grey in (False, True):
        x = x[:, :1] if grey else x
        ours = adjusted(x.clone(), given, one, one, no_turn)
        torch.testing.assert_close(ours, TF.adjust_brightness(x, value), **near)
        ours = adjusted(x.clone(), one, given, one, no_turn)
        torch.testing.assert_close(ours, TF.adjust_contrast(x, value), **near)
        ours = adjusted(x.clone(), one, one, given, no_turn)
        torch.testing.assert_close(ours, TF.adjust_saturation(x, value), **near)
    darker = torch.full((4,), 0.5).double()  # nothing is cut off on the way
    x = images(4) / 255 * 0.5
    theirs = TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(x, 0.5), value), 0.7)
    ours = adjusted(x.clone(), darker, given, one * 0.7, no_turn)
    torch.testing.assert_close(ours, theirs, **(near if value <= 1 else {"atol": 0.1, "rtol": 0}))


def test_hue_turns_colours_as_torchvision_does_and_keeps_brightness_and_grey():
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    one = torch.ones(3).double()
    x = 0.4 + 0.2 * torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 2, 2)  # reddish, greenish, bluish
    for turn in (1 / 3, -1 / 3):
        ours = adjusted(x.clone(), one, one, one, turn * one)
        assert torch.equal(ours.argmax(1), TF.adjust_hue(x, turn).argmax(1))
        torch.testing.assert_close((ours * luma).sum(1), (x * luma).sum(1))
    grey = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(3, 3, 4, 4)
    torch.testing.assert_close(adjusted(grey.clone(), one, one, 2 * one, 0.3 * one), grey)
    nothing = adjusted(x.clone(), one, one, one, 0 * one)
    torch.testing.assert_close(nothing, x)


def test_cutout_covers_a_square_with_the_mean_colour():
    x = images(50, h=16, w=20)
    out, _ = augmented([Cutout(0.5)], x)
    whole = 0
    for one, image in zip(out, x / 255, strict=True):
        mean = image.mean((1, 2), keepdim=True)
        covered = (one == mean).all(0)
        assert torch.equal(one[:, ~covered], image[:, ~covered])
        rows, columns = covered.any(1).sum(), covered.any(0).sum()
        assert covered.sum() == rows * columns
        assert rows <= 8
        assert columns <= 8
        whole += int(covered.sum() == 64)
    assert 5 < whole < 45, "some are cut at the border"


@pytest.mark.parametrize("shape", [(8, 3, 12, 12), (8, 1, 12, 9), (1, 1, 5, 8), (3, 3, 16, 10)])
@pytest.mark.parametrize("operation", EVERY, ids=names)
def test_every_operation_keeps_shape_and_range_and_its_input(operation, shape):
    x = images(*shape)
    before = x.clone()
    for seed in range(5):
        out, y = augmented([operation], x, seed=seed)
        assert out.shape == x.shape
        assert out.dtype == torch.float32
        assert out.is_contiguous()
        assert out.min() >= 0
        assert out.max() <= 1
        assert len(y) == len(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("operation", [*EVERY, *presets((12, 12))], ids=str)
def test_the_same_seed_gives_the_same_batch_and_each_image_its_own(operation):
    x = images(1).expand(64, 3, 12, 12)
    augmentation = augmentation_of(operation, 12, n_classes=64)
    first, soft = augmentation(x, torch.arange(64), generator(3))
    again, soft_again = augmentation(x, torch.arange(64), generator(3))
    assert torch.equal(first, again)
    assert torch.equal(soft, soft_again)
    other, _ = augmentation(images(64), torch.arange(64), generator(4))
    once_more, _ = augmentation(images(64), torch.arange(64), generator(5))
    assert not torch.equal(other, once_more)
    if not isinstance(operation, Mixup | CutMix):  # of 64 equal images
        different = len({one.numpy().tobytes() for one in first})
        assert different >= (2 if isinstance(operation, Flip) else 20)


def test_the_same_seed_gives_the_same_batch_in_another_process():
    program = (
        "import hashlib, sys, torch\n"
        "from convlens.data.augmentation import *\n"
        "g = lambda: torch.Generator().manual_seed(11)\n"
        "x = torch.randint(0, 256, (9, 3, 20, 20), dtype=torch.uint8, generator=g())\n"
        "a = augmentation_of([RandomResizedCrop(), ColorJitter(.2, .2, .2, .1), Cutout(), "
        "Mixup(), CutMix()], 16, n_classes=9)\n"
        "x, y = a(x, torch.arange(9), g())\n"
        "assert 'torchvision' not in sys.modules\n"
        "print(hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(said) == 1


def test_the_global_random_state_is_not_touched():
    before = torch.random.get_rng_state()
    augmented(EVERY[:3] + EVERY[4:], images())
    assert torch.equal(before, torch.random.get_rng_state())


def test_mixup_labels_are_the_weights():
    """Image i is the one-hot of i in its channels' place, so that weights can be read off."""
    x = (torch.eye(6)[:, :, None, None] * 255).to(torch.uint8).expand(6, 6, 4, 4)
    out, y = augmented([Mixup(1.0)], x, y=torch.arange(6), n_classes=6)
    assert y.shape == (6, 6)
    assert y.dtype == torch.float32
    torch.testing.assert_close(out.mean((2, 3)), y)
    torch.testing.assert_close(y.sum(1), torch.ones(6))
    assert ((y > 0).sum(1) <= 2).all()
    assert len(set(y.max(1).values.tolist())) > 3, "each image has weights of its own"


@pytest.mark.parametrize(("h", "w"), [(16, 16), (9, 30)])
def test_cutmix_labels_are_the_areas(h, w):
    x = (torch.eye(32)[:, :, None, None] * 255).to(torch.uint8).expand(32, 32, h, w)
    out, y = augmented([CutMix()], x, y=torch.arange(32), n_classes=32)
    assert bool(((out == 0) | (out == 1)).all())
    torch.testing.assert_close(out.mean((2, 3)), y)
    torch.testing.assert_close(y.sum(1), torch.ones(32))
    assert (y.max(1).values < 0.9).any()


def test_both_mixings_and_labels_still_add_up():
    _, y = augmented([Mixup(), CutMix()], images(20))
    assert y.shape == (20, 3)
    torch.testing.assert_close(y.sum(1), torch.ones(20))


def test_targets_of_several_labels_and_numbers_are_mixed_themselves():
    x = images(6)
    labels = (torch.rand(6, 4, generator=generator()) < 0.5).float()
    for mixing in (Mixup(1.0), CutMix()):
        _, y = augmented([mixing], x, y=labels, kind="labels", n_classes=None)
        assert y.shape == (6, 4)
        assert 0 <= y.min() <= y.max() <= 1
        assert not torch.equal(y, labels)
    numbers = torch.arange(6).float()
    _, y = augmented([Mixup(1.0)], x, y=numbers, kind="numbers")
    assert y.shape == (6,)
    assert 0 <= y.min() <= y.max() <= 5
    assert not torch.equal(y, numbers)
    with pytest.raises(ArgumentError, match="CutMix is not supported for numbers"):
        augmentation_of([CutMix()], 12, kind="numbers")


def test_a_batch_of_one_image_is_mixed_with_itself():
    x = images(1)
    for mixing in (Mixup(), CutMix()):
        out, y = augmented([mixing], x, y=torch.tensor([2]))
        torch.testing.assert_close(out, x / 255)
        torch.testing.assert_close(y, torch.tensor([[0.0, 0.0, 1.0]]))


def test_without_mixing_targets_stay_as_they_are():
    y = torch.tensor([2, 1, 0])
    assert augmented(EVERY[:3] + EVERY[4:9], images(3), y=y)[1] is y


def test_presets():
    for name in presets((32, 32)):
        augmentation = augmentation_of(name, 32)
        assert augmentation.crops == (name == "photos")
        assert augmentation.facts()
        for shape in ((4, 1, 32, 32), (4, 3, 37, 37), (4, 3, 37, 60)):
            out, _ = augmentation(images(*shape), torch.zeros(4), generator())
            assert out.shape == (4, shape[1], 32, 32)
    assert augmentation_of("small", (64, 40)).operations[1] == Crop(padding=5)


def test_what_augment_may_be():
    assert augmentation_of(None, 8).operations == ()
    assert augmentation_of([], (8, 9)).size == (8, 9)
    assert augmentation_of(Flip(), 8).operations == (Flip(),)
    assert augmentation_of((Flip(), Crop(0)), 8).crops
    assert not augmentation_of([Flip(), Crop(1)], 8).crops
    said = augmentation_of(EVERY[:3] + EVERY[4:], 8, n_classes=2).facts()
    assert said == [
        "horizontal flip with probability 0.5",
        "vertical flip with probability 0.5",
        "random crop after padding by 2 pixels (reflect)",
        "random crop of 35 % to 100 % of the image, resized",
        "rotation by up to 15° (outside: reflect)",
        "rotation by up to 10°, shift by up to 10 % × 20 %, zoom by 0.8 to 1.2, "
        "shear by up to 10° (outside: reflect)",
        "brightness ±40 %, contrast ±40 %, saturation ±40 %, hue ±36°",
        "a square of 50 % of the side covered",
        "mixup with alpha 0.2",
        "cutmix with alpha 1",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: augmentation_of("Photo", 8),
            r"'Photo' is no preset; there are .*'photos'\. Closest: 'photos'",
        ),
        (lambda: augmentation_of("zzz", 8), "no preset; there are 'digits', 'small', 'photos'"),
        (lambda: augmentation_of(3, 8), r"augment must be None, the name of a preset .* got int"),
        (lambda: augmentation_of([Flip], 8), r"the class Flip itself \(write Flip\(\)\); there"),
        (lambda: augmentation_of([Flip(), abs], 8), "of type builtin_function_or_method; there"),
        (lambda: augmentation_of(["flip"], 8), "of type str; there are Affine, ColorJitter"),
        (lambda: augmentation_of(Mixup(), 8), "n_classes must be given for Mixup"),
        (lambda: augmentation_of(None, 0), "size must be"),
        (lambda: augmentation_of(None, (8, 8, 3)), "size must be"),
        (
            lambda: augmentation_of([Crop(2, "zeros"), Rotate(3)], 8),
            "'reflect' and mode='zeros', but",
        ),
        (lambda: Flip(p=1.5), "p must be a number from 0 to 1, got 1.5"),
        (lambda: Flip(p=True), "p must be"),
        (lambda: Crop(-1), "padding must be"),
        (lambda: Crop(mode="wrap"), "mode must be 'reflect', 'edge' or 'zeros', got 'wrap'"),
        (lambda: Rotate(math.nan), "degrees must be"),
        (lambda: Affine(scale=(0.2, 1)), "scale must be a number from 0.5 to 2, got 0.2"),
        (lambda: Affine(scale=1.1), "scale must be a pair"),
        (lambda: Affine(translate=0.1), "translate must be a pair"),
        (lambda: RandomResizedCrop(scale=(1, 0.5)), "in this order"),
        (lambda: RandomResizedCrop(scale=(0, 1)), "scale must be"),
        (lambda: ColorJitter(brightness=-1), "brightness must be a number of at least 0"),
        (lambda: ColorJitter(hue=0.6), "hue must be"),
        (lambda: Cutout(16), "share must be"),
        (lambda: CutMix(alpha=0), "alpha must be above 0"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_what_a_batch_cannot_be():
    flip, y = augmentation_of(Flip(), 12), torch.zeros(2)
    with pytest.raises(ArgumentError, match="x must be uint8 images"):
        flip(images(2).float(), y, generator())
    with pytest.raises(ArgumentError, match="x must be uint8 images"):
        flip(images(2)[0], y, generator())
    with pytest.raises(ArgumentError, match="masks as labels are not supported"):
        flip(images(2), torch.zeros(2, 12, 12), generator())
    with pytest.raises(ArgumentError, match=r"size is 12×12, but the stored images .* 12×10"):
        flip(images(2, w=10), y, generator())
    with pytest.raises(ArgumentError, match="stored images are smaller"):
        augmented([], images(2), (12, 13))
    with pytest.raises(ArgumentError, match="1 or 3 channels, got 2"):
        augmented([ColorJitter(0.1)], images(2, c=2))
    out, _ = augmented([Crop(1)], images(2, w=10), (12, 12))
    assert out.shape == (2, 3, 12, 12), "with padding they are large enough"
    out, _ = augmented([RandomResizedCrop()], images(2, w=10), (12, 12))
    assert out.shape == (2, 3, 12, 12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("operation", EVERY, ids=names)
def test_the_same_batch_on_every_device(operation):
    augmentation = augmentation_of(operation, 12, n_classes=8)
    x, y = images(), torch.arange(8)
    here, labels = augmentation(x, y, generator())
    there, labels_there = augmentation(x.cuda(), y.cuda(), generator())
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)
    torch.testing.assert_close(labels_there.cpu(), labels)

"""Arguments of the wrong kind: one sentence each, and never torch's or NumPy's own error."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import convlens as cl
from convlens.errors import ArgumentError, LayerNotFoundError
from convlens.geometry import grid_positions, kernels, output_size

SHAPE = (1, 1, 12, 12)
IMAGES = torch.ones(1, 1, 12, 12)
CONV = nn.Sequential(nn.Conv2d(1, 2, 3))
INSIDE = "unit must be inside the 10×10 grid of layer '0', got "


def fields():
    return cl.receptive_field(CONV, SHAPE)


CASES = {
    "no model": (lambda: cl.summary(None, SHAPE), "model must be a torch.nn.Module, got None."),
    "a class": (lambda: cl.receptive_field(nn.ReLU, SHAPE), "; call the class first: ReLU(…)"),
    "kernels of none": (lambda: cl.show_kernels("x"), "model must be a torch.nn.Module, got 'x'"),
    "features of none": (lambda: cl.show_features(3, IMAGES[0], "0"), "torch.nn.Module, got 3."),
    "an array's shape": (
        lambda: cl.summary(CONV, np.zeros((1, 1, 90, 90))),
        "(1, 3, 224, 224), got <ndarray of shape (1, 1, 90, 90)>.",
    ),
    "columns": (lambda: cl.summary(CONV, SHAPE, columns=3), "columns=3 must be a name or several;"),
    "fold": (lambda: cl.summary(CONV, SHAPE, fold=3), "fold=3 must be a layer's name, a kind of"),
    "half a unit": (lambda: fields().rectangle("0", 1.5, 3), INSIDE + "(1.5, 3)."),
    "a unit of letters": (lambda: fields().rectangle("0", "a", "b"), INSIDE + "('a', 'b')."),
    "half a pixel": (lambda: fields().units_seeing("0", 2.5, 3), "must be inside the 12×12 input"),
    "one number": (lambda: cl.effective_receptive_field(CONV, IMAGES, "0", 3), INSIDE + "3."),
    "half": (
        lambda: cl.effective_receptive_field(CONV, IMAGES, "0", (1.5, 2)),
        INSIDE + "(1.5, 2).",
    ),
    "drawn unit": (lambda: cl.show_field(CONV, IMAGES[0], "0", 3), INSIDE + "(3,)."),
    "images": (
        lambda: cl.effective_receptive_field(CONV, IMAGES.byte(), "0"),
        "must be a floating tensor (N, C, H, W), as the model gets it, got (1, 1, 12, 12) of torch",
    ),
    "no path": (lambda: cl.load_image(3), "path must be the name of an image file, got 3."),
    "an array": (
        lambda: kernels.apply(IMAGES[0].numpy(), kernels.blur()),
        "got <ndarray of shape (1, 12, 12)>; convert it with torch.from_numpy.",
    ),
    "row": (
        lambda: kernels.apply_at(IMAGES[0], kernels.blur(), 1.5, 2),
        "row=1.5 must be a whole number, the row of a pixel.",
    ),
    "a layer": (
        lambda: cl.conv_matrix(nn.Conv2d(1, 2, 3), (1, 5, 5)),
        "weight must be a torch.Tensor, got ",
    ),
    "no padding": (lambda: output_size(5, 3, padding=None), "padding=None must be a whole number"),
    "one size": (lambda: grid_positions(4, 3), "sizes=4 must be one number for each axis"),
    "no maps": (
        lambda: cl.show_features(CONV, IMAGES[0], "0", most=0),
        "most must be a whole number of at least 1, got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_of_the_wrong_kind_is_refused_in_one_sentence(case):
    call, sentence = CASES[case]
    with pytest.raises(ArgumentError, match=re.escape(sentence)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_size_that_is_no_pair_is_refused(tmp_path):
    from PIL import Image

    Image.new("L", (5, 4)).save(tmp_path / "grey.png")
    sentence = r"size must be \(H, W\), whole numbers of at least 1, got 10"
    with pytest.raises(ArgumentError, match=sentence):
        cl.load_image(tmp_path / "grey.png", size=10)


def test_a_layer_is_a_name_or_an_index():
    table = cl.summary(CONV, SHAPE)
    for layer in (None, 1.5, slice(1, 3)):
        with pytest.raises(LayerNotFoundError, match="is neither a module's name nor an index"):
            table[layer]
    assert table[np.int64(0)] is table[0]


def test_numpys_whole_numbers_are_whole_numbers():
    found = cl.receptive_field(CONV, tuple(np.int64(n) for n in SHAPE))
    assert found.rectangle("0", *np.array([2, 3])) == ((2, 4), (3, 5))
    assert cl.summary(CONV, np.array(SHAPE).tolist()).input_shape == SHAPE

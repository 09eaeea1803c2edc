"""A layer asked for by its kind, wherever layers are found: "last conv"."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import convlens as cl

SHAPE = (1, 1, 28, 28)


@pytest.fixture(params=[None, "batch"])
def model(request):
    return cl.simple_cnn(1, 10, norm=request.param)


def last_conv(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][-1]


def test_histories_live_and_recorded(model, tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 1, 28, 28)).astype(np.float32)
    dls = cl.from_arrays(x, np.arange(20) % 10, layout="NCHW", batch_size=10)
    stats = cl.ActivationStats()
    learn = cl.Learner(dls, model, callbacks=[stats], run=tmp_path / "run", progress=False)
    learn.fit(1)
    recorded = cl.open_run(tmp_path / "run").activation_stats
    for found in (stats, recorded):
        assert found["last conv"].layer.name == last_conv(model) == "4.0"
        assert found["first conv"].layer.name == "0.0"
        if "4.1" in found:
            assert found["last norm"].layer.name == "4.1"
        ax = found.color_dim("last conv")
        assert ax.get_title().startswith("4.0 (Conv2d)")
        assert found.plot_layer_stats("last conv")[0].get_title().startswith("4.0 (Conv2d)")
        assert len(found.color_dim(layers=["first conv", "last conv"])) == 2
        with pytest.raises(cl.LayerNotFoundError, match=r"'last linear': no layer's class name"):
            found["last linear"]
    plt.close("all")


def test_summary_fields_and_pictures(model):
    with cl.watch(model, layers=["first conv", "last conv"]) as stats:
        model(torch.zeros(2, 1, 28, 28))
    assert stats.names == ["0.0", last_conv(model)]
    table, fields = cl.summary(model, SHAPE), cl.receptive_field(model, SHAPE)
    assert table["last conv"].name == fields["last conv"].name == last_conv(model)
    assert table["first relu"].name == fields["first relu"].name == "0.1"
    assert table.fields["first conv"].size == (5, 5)
    assert fields.rectangle("first conv", 0, 0) == fields.rectangle("0.0", 0, 0)
    for axes in (
        cl.show_features(model, torch.randn(1, 28, 28), "last conv"),
        cl.show_kernels(model, "last conv"),
    ):
        assert axes
    x = torch.randn(2, 1, 28, 28)
    found, named = (cl.effective_receptive_field(model, x, n) for n in ("first conv", "0.0"))
    np.testing.assert_array_equal(found.share, named.share)
    plt.close("all")


def test_a_block_named_after_its_convolution_is_no_convolution():
    class ConvNormAct(nn.Sequential):
        pass

    model = nn.Sequential(ConvNormAct(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.Flatten())
    for found in (cl.summary(model, SHAPE), cl.receptive_field(model, SHAPE)):
        assert [found["last conv"].name, found["last norm"].name] == ["0.0", "0.1"]
    assert cl.watch(model, layers=["last conv"]).names == ["0.0"]

"""``convlens check``."""

import json
import sys

import pytest
from small_mnist import small_mnist

from convlens.cli import main


@pytest.fixture
def convlens(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convlens.data.mnist", small_mnist)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convlens", "check", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_nothing_wrong(convlens):
    code, out, _ = convlens("mnist", "--lr", 0.01, "--seconds", 3)
    assert code == 0
    assert "Nothing looks wrong" in out
    assert "Tried in" in out


def test_a_problem_exits_with_3(convlens, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))\n"
    )
    code, out, _ = convlens("mnist", "--model", "net.py:make", "--seconds", 2, "--json")
    assert code == 3
    result = json.loads(out)
    assert result["findings"][0]["kind"] == "softmax-before-cross-entropy"
    assert result["tried"]


def test_a_network_by_name_gets_the_datas_channels_and_classes(convlens):
    code, out, error = convlens("mnist", "--model", "timm:test_resnet", "--seconds", 1, "--json")
    assert code in (0, 3), error
    assert json.loads(out)["tried"]
    code, _, error = convlens("mnist", "--model", "torchvision:vit_b_16")
    assert code == 2
    assert "cannot take the data's images of 1×28×28 (it is made for 224×224 pixels)" in error

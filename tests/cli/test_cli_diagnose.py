"""``convlens diagnose``: text for people, JSON and an exit code for programs."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from convlens.cli import main


@pytest.fixture
def diagnose(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convlens", "diagnose", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        text = capsys.readouterr()
        return int(end.value.code or 0), text.out, text.err

    return call


def train(path, *, step, n_layers=1, epochs=3, steps=20):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(n_layers)], nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    with cl.watch(model, run=path, layers=["0"]) as stats:
        for epoch in range(epochs):
            for _ in range(steps):
                x = torch.randn(16, 8, generator=generator)
                loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
                loss.backward()
                stats.log(loss=loss)
                if step:
                    optimizer.step()
                    optimizer.zero_grad()
            stats.log_epoch(valid_loss=loss.item(), accuracy=0.5 + 0.1 * epoch)
    return path


def test_a_healthy_run(diagnose, tmp_path):
    run = train(tmp_path / "run", step=True)
    code, out, _ = diagnose(run, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["run"] == str(run)
    assert facts["status"] == "finished"
    assert (facts["epochs"], facts["newest_epochs"][-1]["accuracy"]) == (3, pytest.approx(0.7))
    assert facts["steps"]["n"] == facts["steps"]["with_loss"] == 60
    assert facts["steps"]["mean_loss_of_last_tenth"] < facts["steps"]["mean_loss_of_first_tenth"]
    assert facts["steps"]["newest"]["lr"] == [0.01]
    assert facts["loop"]["optimizer_steps"] == 60
    assert diagnose(run)[0] == 0


def test_a_problem_exits_with_3_and_says_where_and_what_to_do(diagnose, tmp_path):
    run = train(tmp_path / "run", step=False)
    code, out, _ = diagnose(run, "--json")
    first = json.loads(out)["findings"][0]
    assert code == 3
    assert (first["kind"], first["severity"], first["confidence"]) == (
        "missing-step", "problem", "certain",
    )  # fmt: skip
    assert {"layer", "first_step", "evidence", "fix"} <= first.keys()
    code, out, _ = diagnose(run)
    assert code == 0
    assert out.startswith("problem (certain): There were 60 backward passes")
    assert out.count("\n") == len(cl.diagnose(run))


def test_it_is_small_however_large_the_run(diagnose, tmp_path):
    run = train(tmp_path / "run", step=False, n_layers=300, epochs=8, steps=5)
    out = diagnose(run, "--json")[1]
    assert 2_000 < len(out.encode()) <= 20_000
    assert len(json.loads(out)["newest_epochs"]) == 5
    record = cl.open_run(run).record()
    from convlens.core.records import Finding, RunRecord
    from convlens.doctor import facts_of

    many = [Finding("kind", "problem", "e" * 5_000, fix="f" * 5_000)] * 100
    meta = {
        **record.meta,
        "notes": ["n" * 5_000] * 100,
        "loop": {str(i): "x" for i in range(9_000)},
    }
    facts = facts_of(RunRecord(meta, record.steps, record.epochs, []), many)
    assert len(json.dumps(facts, ensure_ascii=False).encode()) <= 20_000
    assert len(facts["findings"]) > 10


def test_numbers_that_are_not_finite_are_null(diagnose, tmp_path):
    model = nn.Linear(2, 1)
    with cl.watch(model, run=tmp_path / "run") as stats:
        for _ in range(25):
            model(torch.ones(4, 2))
            stats.log(loss=np.nan)
    code, out, _ = diagnose(tmp_path / "run", "--json")
    assert code == 3
    assert json.loads(out, parse_constant=pytest.fail)["steps"]["mean_loss_of_last_tenth"] is None


def test_a_folder_without_a_run(diagnose, tmp_path):
    code, _, err = diagnose(tmp_path / "none", "--json")
    assert code == 2
    assert "does not exist" in err

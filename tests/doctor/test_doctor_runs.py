"""Whatever has a run is accepted by whatever takes one."""

import numpy as np
import pytest
import torch

import convlens as cl


def test_runs_of_learners_watchers_and_paths_are_all_accepted(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    dls = cl.from_arrays(images, np.arange(40) % 4, layout="NHW", valid=0.25, batch_size=10)
    learn = cl.Learner(
        dls, cl.simple_cnn(1, 4, widths=(4, 8)), run=tmp_path / "fit", progress=False
    )
    with pytest.raises(cl.ArgumentError, match=r"This Learner records no run. Call fit\("):
        cl.diagnose(learn)
    learn.fit(1)
    with cl.watch(learn.model, run=tmp_path / "loop") as stats:
        learn.model(torch.zeros(2, 1, 8, 8))
    fitted, looped = cl.open_run(tmp_path / "fit"), cl.open_run(tmp_path / "loop")
    right = cl.diagnose(fitted.record())
    for thing in (learn, fitted, tmp_path / "fit", str(tmp_path / "fit")):
        assert cl.diagnose(thing) == right
        assert cl.report(thing) == tmp_path / "fit" / "report.html"
    assert cl.diagnose(stats) == cl.diagnose(looped)
    assert str(cl.diagnose(looped)).startswith("note (")
    assert cl.report(stats).parent == tmp_path / "loop"
    for thing, sentence in (
        (
            cl.watch(learn.model),
            r"This ActivationWatch records no run\. Call cl\.watch\(model, run='auto'\)\.",
        ),
        (None, r"run must be a run, its path, a Learner or a watcher; got None"),
        (3, r"run must be a run, its path, a Learner or a watcher; got int"),
    ):
        for function in (cl.diagnose, cl.report):
            with pytest.raises(cl.ArgumentError, match=sentence):
                function(thing)
    with pytest.raises(cl.ArgumentError, match="Learner or a watcher; got RunRecord"):
        cl.report(fitted.record())
    with pytest.raises(cl.RunError, match=r"does not exist; give the folder of a run"):
        cl.diagnose("nowhere")

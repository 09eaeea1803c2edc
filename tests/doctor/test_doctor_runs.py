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
        cl.report(learn)
    assert [finding.kind for finding in cl.diagnose(learn)] == ["too-short"]  # from memory
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
    unrecorded = cl.watch(learn.model)
    assert [finding.kind for finding in cl.diagnose(unrecorded)] == ["too-short"]
    with pytest.raises(cl.ArgumentError, match=r"records no run\. Call cl\.watch\(model, run="):
        cl.report(unrecorded)
    for thing, sentence in (
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


@pytest.mark.parametrize("call", [cl.open_run, cl.list_runs, lambda x: cl.load_checkpoint(x, None)])
def test_what_is_no_path_gets_a_sentence(call):
    with pytest.raises(cl.ArgumentError, match=r"(path|base) must be a path, got 3\."):
        call(3)


def test_a_folder_that_is_not_empty_is_refused_by_the_name_of_the_argument(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").touch()
    dls = cl.DataLoaders([(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)])
    learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=tmp_path / "run", progress=False)
    sentence = r"run='.*run' already exists and is not empty; give a new folder, or run='auto'\."
    for start in (lambda: cl.watch(learn.model, run=tmp_path / "run"), lambda: learn.fit(1)):
        with pytest.raises(cl.RunError, match=sentence):
            start()


def test_reprs_are_short_and_in_public_names(tmp_path):
    dls = cl.DataLoaders([(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)] * 3)
    callbacks = [cl.ActivationStats(), cl.UpdateStats(), cl.Pictures()]
    learn = cl.Learner(
        dls, cl.simple_cnn(1, 2), callbacks=callbacks, run=tmp_path / "run", progress=False
    )
    learn.fit(1)
    run = cl.open_run(tmp_path / "run")
    assert repr(run).endswith("run', finished, 3 steps, 1 epoch)")
    assert repr(run.recorder) == "Recorder(3 steps, 1 epoch)"
    assert repr(run.activation_stats).startswith("<activation_stats, 5 series: 0.0, ")
    assert repr(run.update_stats).startswith("<update_stats, ")
    assert repr(run.epochs[0]).startswith("Epoch(0, steps 0 to 2, train_loss=0.")
    shown = [repr(run.pictures()), repr(cl.summary(cl.simple_cnn(1, 2), (1, 1, 8, 8)).memory)]
    assert shown[0].startswith("[Picture('batch', epoch -1, 8 images of 8×8 pixels)")
    assert shown[1].startswith("Memory(parameters ")
    assert max(map(len, shown)) < 200

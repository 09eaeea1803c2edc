"""What cannot be seen ends no step of a training: it is left out, counted, and said once."""

import copy
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from test_watching_watch import n_hooks, small_net, train
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import convlens as cl


class Makes(nn.Module):
    """A layer with a parameter that puts out whatever is made of a product."""

    def __init__(self, make):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))
        self.make = make

    def forward(self, x):
        return self.make(x @ self.weight)


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, for which nothing is implemented."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of a wrapper")


class Refuses(torch.Tensor):
    """A tensor that does not even say what it is."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise TypeError("ask something else")


class WordlessError(Exception):
    def __str__(self):
        raise RuntimeError("without words")


class Explodes:
    """An output whose parts cannot be asked for."""

    def __getattr__(self, name):
        raise WordlessError


def nested(y, layout):
    return torch.nested.nested_tensor([y[:2].detach(), y[:3].detach()], layout=layout)


OUTPUTS = {
    "sparse": lambda y: y.to_sparse(),
    "compressed": lambda y: y.detach().to_sparse_csr(),
    "mkldnn": lambda y: y.detach().to_mkldnn(),
    "nested": lambda y: nested(y, torch.strided),
    "jagged": lambda y: nested(y, torch.jagged),
    "quantized": lambda y: torch.quantize_per_tensor(y, 0.1, 0, torch.qint8),
    "complex": lambda y: y.to(torch.complex64),
    "integers": lambda y: y.argmax(1),
    "nothing": lambda y: None,
    "meta": lambda y: y.to("meta"),
    "subclass": lambda y: Wrapper(y.detach()),
    "masked": lambda y: torch.masked.masked_tensor(y.detach(), y.detach() > 0),
    "refuses": lambda y: y.detach().as_subclass(Refuses),
    "its own": lambda y: Explodes(),
}


# Prototypes of torch, and what is deprecated of it.
@pytest.mark.filterwarnings("ignore:(?!The activation).*:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_without_a_sketch_is_left_out(kind):
    model = nn.Sequential(nn.Linear(4, 4), Makes(OUTPUTS[kind]))
    with (
        pytest.warns(
            cl.ConvlensWarning, match=r"The activation of '1' \(Makes\) cannot be"
        ) as said,
        cl.watch(model, sample=0.5) as stats,
    ):
        for _ in range(3):
            model(torch.randn(5, 4))
    ours = [warning for warning in said if warning.category is cl.ConvlensWarning]
    assert len(ours) == 1  # of three, and none of another kind
    assert len(stats.notes) == 1
    assert stats.notes[0].startswith("3 × activation left out, of '1': ")
    assert len(stats["1"]) == 0
    assert stats["0"].calls.tolist() == [1, 1, 1]


def test_no_memory_for_a_copy_is_no_end_of_the_step(monkeypatch):
    """A kernel that raises, as one does where memory for a copy is missing."""
    model = small_net()
    stats = cl.watch(model)
    kernel, turn = stats.aggregator.kernel, iter(range(100))

    def sometimes(*arguments):
        if next(turn) == 5:  # the second layer of the second step, a batch normalization
            raise torch.OutOfMemoryError("out of memory")
        kernel(*arguments)

    stats.aggregator.kernel = sometimes
    with pytest.warns(cl.ConvlensWarning, match="OutOfMemoryError: out of memory"), stats:
        train(model, 3)
    assert stats["0"].first_step.tolist() == [0, 1, 2]
    assert stats["2"].first_step.tolist() == [0, 2]
    assert np.isfinite(stats["2"].batch_var).all()
    assert stats.notes == (
        "1 × activation left out, of '2': a Tensor of torch.float32, torch.strided gave "
        "OutOfMemoryError: out of memory.",
    )


def test_layers_that_fail_alike_are_said_once_and_counted_together():
    model = nn.ModuleList([Makes(lambda y: y.to_sparse()) for _ in range(5)])
    model.forward = lambda x: [layer(x) for layer in model]
    with pytest.warns(cl.ConvlensWarning) as said, cl.watch(model) as stats:
        model(torch.randn(5, 4))
    assert len(said) == 1
    assert "5 × activation left out, of '0', '1', '2' and 2 more: a Tensor of" in stats.notes[0]


def test_gradients_without_a_sketch_are_left_out(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = fully_shard(nn.Sequential(nn.Linear(4, 2)), mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with (
            pytest.warns(cl.ConvlensWarning, match="cannot be sketched") as said,
            cl.watch(model, gradients=True, updates=True) as stats,
        ):
            for _ in range(2):
                model(torch.randn(5, 4)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    finally:
        torch.distributed.destroy_process_group()
    assert len(said) == len({str(warning.message) for warning in said}) == len(stats.notes)
    assert any(
        "4 × gradient left out, of '0.weight', '0.bias': a DTensor" in n for n in stats.notes
    )
    assert stats["0"].calls.tolist() == [1, 1]


def test_outputs_inside_transforms_of_torch_func_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p, x):
        return torch.func.functional_call(model, p, (x,)).sum()

    with (
        pytest.warns(cl.ConvlensWarning, match="transform of torch.func"),
        cl.watch(model) as stats,
    ):
        torch.func.vmap(model)(torch.randn(5, 3, 4))
        torch.func.grad(loss)(parameters, torch.randn(3, 4))
        model(torch.randn(3, 4))
    assert stats["0"].first_step.tolist() == [2]
    assert stats.notes[0].startswith("2 × activation left out, of '0'")


def test_a_warning_made_an_error_ends_nothing():
    model = Makes(lambda y: y.to_sparse())
    with cl.watch(model) as stats:  # the tests make every warning an error
        for _ in range(2):
            model(torch.randn(5, 4))
    assert stats.notes[0].startswith("2 × activation left out, of '(root)'")


def test_notes_are_in_the_run_while_it_goes_on(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), Makes(lambda y: y.to_sparse()))
    with pytest.warns(cl.ConvlensWarning), cl.watch(model, run=tmp_path / "run") as stats:
        model(torch.randn(5, 4))
        stats.sink.flush(wait=True)
        early = cl.open_run(tmp_path / "run").meta["notes"]
        model(torch.randn(5, 4))
    assert early[0].startswith("1 × activation")
    assert cl.open_run(tmp_path / "run").meta["notes"] == list(stats.notes)
    assert stats.notes[0].startswith("2 × activation")


def test_layers_that_were_never_called_are_said():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Head()
    with (
        pytest.warns(cl.ConvlensWarning, match="2 of 3 watched layers put out nothing in the forw"),
        cl.watch(model) as stats,
    ):
        model(torch.randn(5, 4))
    assert stats.notes[0].endswith("recorded: 'spare', 'other'.")


def test_a_watch_that_cannot_begin_takes_itself_back(tmp_path):
    class Refuses(nn.Linear):
        def register_forward_hook(self, *arguments, **options):
            raise RuntimeError("no hooks here")

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Refuses(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stats = cl.watch(model, gradients=True, run=tmp_path / "run")
    with pytest.raises(RuntimeError, match="no hooks here"):
        stats.attach()
    assert n_hooks(model) == 0
    assert not any("__getstate__" in vars(module) for module in model.modules())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    assert len(stats["0"]) == len(stats.gradients["0.weight"]) == 0
    run = cl.open_run(tmp_path / "run")
    assert (run.meta["status"], run.meta["error"]) == ("failed", "RuntimeError: no hooks here")


def test_a_run_that_cannot_be_written_is_said_and_kept_in_memory(tmp_path):
    model = small_net()
    stats = cl.watch(model, run=tmp_path / "run")

    def full(*arguments):
        raise cl.RunError("the disk is full")

    stats.attach()
    train(model, 64)
    stats.flush()
    stats.aggregator.store.wait()
    stats.sink.write_columns = full
    with pytest.warns(cl.ConvlensWarning, match=r"kept in memory only: RunError: the disk is full"):
        train(model, 130)
        stats.detach()
    assert stats["0"].first_step.tolist() == list(range(194))
    assert any("the disk is full" in note for note in cl.open_run(tmp_path / "run").meta["notes"])


# ---- batch normalization ------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.3, 0.0, None])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (0, 5)),
        (nn.BatchNorm2d, (0, 5, 4, 4)),
        (nn.BatchNorm3d, (0, 5, 4, 4, 4)),
    ],
)
def test_an_empty_batch_has_no_statistics(norm, shape, momentum):
    plain, model = (nn.Sequential(norm(5, momentum=momentum), nn.ReLU()) for _ in range(2))
    with cl.watch(model) as stats:
        for one in (plain, model):
            one(torch.zeros(shape))
            one(torch.randn(6, *shape[1:], generator=torch.Generator().manual_seed(0)))
    history = stats["0"]
    assert history.n.tolist() == [0, 6 * np.prod(shape[1:])]
    assert np.isnan(history.batch_mean[0])
    assert np.isnan(history.batch_var[0])
    assert history.dead_channels.tolist() == [0, 0]
    assert history.silent_channels.tolist() == [0, 0]
    for a, b in zip(plain.buffers(), model.buffers(), strict=True):
        assert torch.equal(a, b)
    assert history.running_var[1] == pytest.approx(model[0].running_var.mean().item(), rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("way", ["eval", "momentum"])
def test_a_normalization_that_does_not_move(way, compiled):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=0.0 if way == "momentum" else 0.1)
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(4.0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU())
    norm.train(way == "momentum")
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with cl.watch(run) as stats:
        for _ in range(2):
            run(torch.randn(4, 1, 8, 8))
    torch.compiler.reset()
    assert stats["1"].running_mean.tolist() == [5.0, 5.0]
    assert stats["1"].running_var.tolist() == [4.0, 4.0]
    assert np.isnan(stats["1"].batch_mean).all()
    assert np.isnan(stats["1"].batch_var).all()
    assert stats["1"].calls.tolist() == [1, 1]


def test_a_normalization_that_is_frozen_later():
    model = small_net()
    with cl.watch(model) as stats:
        train(model, 2)
        model[2].eval()
        train(model, 2)
        model[2].train()
        train(model, 1)
    assert np.isnan(stats["2"].batch_var).tolist() == [False, False, True, True, False]
    assert np.isfinite(stats["2"].running_var).all()
    assert stats["2"].running_var[1] == stats["2"].running_var[2] == stats["2"].running_var[3]


def test_channels_that_cannot_be_told_apart_are_not_dead():
    """A slimmed convolution puts out fewer channels than it has."""

    class Slim(nn.Conv2d):
        def forward(self, x):
            return -super().forward(x).abs()[:, :2]

    model = nn.Sequential(Slim(1, 4, 3), nn.ReLU())
    with cl.watch(model) as stats:
        model(torch.randn(2, 1, 6, 6))
    assert stats["0"].layer.feeds_relu
    assert stats["0"].dead_channels.tolist() == [0]
    assert stats["0"].silent_channels.tolist() == [0]


# ---- threads ------------------------------------------------------------------------------------


class Meets(nn.Module):
    """Waits in the forward of one thread until another one has done its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.waits = None

    def forward(self, x):
        x = self.first(x)
        if threading.current_thread() is self.waits:
            self.entered.set()
            assert self.go_on.wait(60)
        return self.second(x)


def in_a_thread(work):
    failures = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.failures = failures
    return thread


def test_a_second_thread_in_the_same_model_is_left_out_and_counted():
    model, ones = Meets(), torch.ones(3, 4)
    thread = model.waits = in_a_thread(lambda: model(ones))
    with pytest.warns(cl.ConvlensWarning) as said, cl.watch(model) as stats:
        thread.start()
        assert model.entered.wait(60)
        for _ in range(4):
            model(2 * torch.ones(7, 4))  # in this thread, while that one waits inside
        model.go_on.set()
        thread.join()
        model(2 * ones)  # and again when it has left
    assert thread.failures == []
    for name, values in (("first", 12), ("second", 6)):
        assert stats[name].first_step.tolist() == [0, 1]
        assert stats[name].calls.tolist() == [1, 1]
        assert stats[name].n.tolist() == [values, values]
    with torch.no_grad():
        assert stats["first"].mean[0] == pytest.approx(model.first(ones).mean().item(), rel=1e-5)
    assert len(said) == len(stats.notes) == 1
    assert stats.notes[0].startswith("4 forwards were left out: another thread was in a forward")


def test_layers_that_run_in_other_threads_are_counted():
    """What torch.nn.DataParallel does on several devices."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.here, self.there = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.here(x)
            thread = in_a_thread(lambda: self.there(x.detach()))
            thread.start()
            thread.join()
            assert thread.failures == []
            return x

    model = Parallel()
    with pytest.warns(cl.ConvlensWarning) as said, cl.watch(model) as stats:
        for _ in range(3):
            model(torch.randn(3, 4))
    assert stats["here"].calls.tolist() == [1, 1, 1]
    assert stats.notes[0].startswith("3 outputs of layers were left out: they were computed in an")
    assert stats.notes[1].startswith("1 of 2 watched layers put out nothing")
    assert len(said) == 2


@pytest.fixture
def _threads_alternate():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_alternate")
def test_two_threads_train_one_model():
    """Each forward is recorded whole or counted as left out, and each gradient is of its step."""
    model, n = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), 300
    barrier, one_at_a_time = threading.Barrier(2, timeout=60), threading.Lock()

    def loop(value):
        optimizer = torch.optim.SGD([model[0].weight], lr=0.0)
        barrier.wait()
        for _ in range(n):
            with torch.no_grad():
                model(torch.full((value, 4), float(value)))
            with one_at_a_time:  # the weight and its gradient are shared
                model[0].weight.grad = torch.full((4, 4), float(value))
                optimizer.step()

    threads = [in_a_thread(lambda value=value: loop(value)) for value in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.ConvlensWarning)
        with cl.watch(model, gradients=True) as stats:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert [failure for thread in threads for failure in thread.failures] == []
    left = {note.split()[1]: int(note.split()[0]) for note in stats.notes if "left out" in note}
    assert set(stats["0"].calls.tolist()) == {1}
    assert len(stats["0"]) + left.get("forwards", 0) == 2 * n
    rows = stats["0"].n // 4  # images of the step's batch, which says whose it is
    np.testing.assert_array_equal(stats["2"].n // 2, rows)
    gradients = stats.gradients["0.weight"]
    assert set(gradients.calls.tolist()) == {1}
    assert len(gradients) + left.get("optimizer", 0) == 2 * n
    np.testing.assert_array_equal(gradients.mean, rows[gradients.first_step])


def test_steps_of_a_forward_left_out_before_the_first_are_counted():
    """The first forward takes long to begin; another thread has made three steps by then."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    begins, go_on = threading.Event(), threading.Event()

    def step():
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()

    with (
        pytest.warns(cl.ConvlensWarning, match="left out"),
        cl.watch(model, gradients=True) as stats,
    ):
        begin = stats.step

        def slow():
            begins.set()
            assert go_on.wait(60)
            begin()

        stats.step = slow
        thread = in_a_thread(step)
        thread.start()
        assert begins.wait(60)
        for _ in range(3):
            step()
        go_on.set()
        thread.join()
    assert thread.failures == []
    assert len(stats["0"]) == len(stats.gradients["0.weight"]) == 1
    assert [note.split(" were")[0] for note in stats.notes] == ["3 forwards", "3 optimizer steps"]


def test_watches_that_begin_and_end_while_another_thread_steps():
    """The hooks of torch for all optimizers are one dictionary, which a step iterates over."""
    model, other = small_net(), small_net()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    inside, begun = threading.Event(), threading.Event()

    def wait(*arguments):  # in the midst of the step's hooks
        inside.set()
        assert begun.wait(60)

    with cl.watch(model, updates=True):
        train(model, 1)  # so that the hooks are there
    other(torch.randn(2, 1, 12, 12)).sum().backward()
    handles = [
        register_optimizer_step_pre_hook(wait),
        register_optimizer_step_pre_hook(lambda *arguments: None),  # which comes after
    ]
    try:
        thread = in_a_thread(optimizer.step)
        thread.start()
        assert inside.wait(60)
        stats = cl.watch(model, updates=True).attach()
        begun.set()
        thread.join()
        train(model, 1)
        stats.detach()
    finally:
        for handle in handles:
            handle.remove()
    assert thread.failures == []
    assert stats.updates["0.weight"].update.calls.tolist() == [1]


# ---- layers that own parameters -----------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
        pytest.param(
            nn.utils.weight_norm,
            marks=pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
        ),
    ],
)
@pytest.mark.parametrize("layers", ["trainable", "all", [nn.Conv2d]])
def test_a_parametrized_layer_is_the_one_that_is_watched(wrap, layers):
    model = nn.Sequential(wrap(nn.Conv2d(3, 8, 3, bias=False)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with cl.watch(model, layers) as stats:
        out = model[0](torch.zeros(1, 3, 10, 10))
        model(torch.randn(4, 3, 10, 10))
    assert stats.names == (["0", "1", "2"] if layers == "all" else ["0", "2"])
    assert stats["0"].n.tolist() == [4 * out.numel()]
    assert stats["0"].layer.feeds_relu
    assert stats["0"].channels == 8


def test_a_parametrization_is_watched_if_it_is_named():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2, bias=False)))
    with cl.watch(model, ["0.parametrizations.weight"]) as stats:
        model(torch.randn(4, 3))
    assert stats["0.parametrizations.weight"].n.tolist() == [6]


# ---- other ways to say it -----------------------------------------------------------------------


# torch.jit is deprecated as a whole.
@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*:FutureWarning")
def test_a_layer_that_takes_no_hooks():
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    with (
        pytest.warns(cl.ConvlensWarning, match="torch.jit takes no hooks"),
        cl.watch(model) as stats,
    ):
        model(torch.randn(3, 4))
    assert stats["0"].calls.tolist() == [1]
    assert stats.notes == ("1 × activation left out, of '1': torch.jit takes no hooks.",)
    with pytest.raises(
        cl.ArgumentError, match=r"which takes no hooks; give the module that torch.ji"
    ):
        cl.watch(torch.jit.script(nn.Linear(4, 4)))


def test_each_watcher_of_a_learner_has_notes_of_its_own(tmp_path):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.used(x.flatten(1))

    images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
    callbacks = [cl.ActivationStats(), cl.GradientStats(), cl.UpdateStats()]
    learn = cl.Learner(
        cl.from_arrays(images, labels, layout="NCHW", valid=0.5, batch_size=4), Spare(),
        callbacks=callbacks, run=tmp_path / "run", progress=False,
    )  # fmt: skip
    with pytest.warns(cl.ConvlensWarning) as said:
        learn.fit(1, lr=0.1)
    meta = cl.open_run(tmp_path / "run").meta
    assert meta["notes"] == list(learn.activation_stats.watch.notes)
    assert meta["notes"][0].startswith("1 of 2 watched layers put out nothing in the forwards")
    assert meta["gradient_notes"][0].startswith(
        "Of the parameters that need a gradient 2 had none in any"
    )
    assert "update_notes" not in meta  # an optimizer has had them all
    assert len(said) == 2


def test_what_was_watched_can_be_copied():
    model = small_net()
    with cl.watch(model, gradients=True) as stats:
        train(model, 2)
    for other in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        np.testing.assert_array_equal(other["0"].counts, stats["0"].counts)
        np.testing.assert_array_equal(other.gradients[0].norm, stats.gradients[0].norm)

"""What a loop does with a model is counted rightly or not at all, and never changed by it."""

import copy
import gc
import io
import json
import pickle
import subprocess
import sys
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(n):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        yield torch.randn(6, 4, generator=generator), torch.arange(6) % 3


def loop_of(stats):
    return stats.record().loop


def train(model, n=10, optimizer=None, stats=None):
    """A usual loop, watched; the watcher."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model) if stats is None else nullcontext(stats) as watched:
        for x, y in batches(n):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watched.log(loss=loss, target=y)
    return watched


def test_a_usual_loop_is_counted():
    facts = loop_of(train(net(), 10))
    counted = {"training_forwards", "backwards", "optimizer_steps"}
    assert {facts[name] for name in counted} == {10}
    assert (facts["resets_checked"], facts["steps_without_reset"]) == (9, 0)
    assert facts["changed"] is True
    assert not facts["unseen_optimizer"]
    assert facts["in_no_optimizer"] == facts["without_gradient"] == facts["frozen"] == []
    assert facts["output_gradient"]["cross_entropy"] == 1
    assert facts["output_gradient"]["cross_entropy_scale"] == pytest.approx(1, rel=1e-3)
    assert facts["target"]["max"] == 2
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("where", ["nowhere", "before", "after", "data", "between"])
def test_a_reset_is_seen_wherever_it_is(where):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with cl.watch(model) as stats:
        for x, y in batches(20):
            if where == "before":
                optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(x), y)
            if where == "between":
                for p in model.parameters():
                    if p.grad is not None:
                        p.grad.data.zero_()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if where == "after":
                optimizer.zero_grad()
            if where == "data":
                for p in model.parameters():
                    p.grad.data.zero_()
    facts = loop_of(stats)
    assert facts["resets_checked"] == 19
    assert facts["steps_without_reset"] == (19 if where == "nowhere" else 0)


@pytest.mark.parametrize("reset", [True, False])
def test_a_closure_that_is_evaluated_many_times(reset):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    with cl.watch(model) as stats:
        for x, y in batches(10):

            def closure(x=x, y=y):
                if reset:
                    optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    facts = loop_of(stats)
    assert facts["optimizer_steps"] == 10
    assert facts["training_forwards"] == facts["backwards"] > 20
    assert facts["resets_checked"] == 9
    assert facts["steps_without_reset"] == (0 if reset else 9)
    assert facts["without_gradient"] == []


def test_gradients_that_no_backward_pass_has_added():
    """They are assigned, as by torch.autograd.grad: they reached the model all the same."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model) as stats:
        for x, y in batches(10):
            grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = g
            optimizer.step()
    assert loop_of(stats)["backwards"] == 10
    assert loop_of(stats)["without_gradient"] == []


def test_an_optimizer_that_is_not_torchs_is_unseen():
    model = net()
    with cl.watch(model) as stats:
        for x, y in batches(5):
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.1 * p.grad)
                    p.grad = None
    facts = loop_of(stats)
    assert (facts["optimizer_steps"], facts["changed"], facts["unseen_optimizer"]) == (
        0,
        True,
        True,
    )


def test_steps_that_the_loop_tells_and_an_optimizer_inside_another():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            self.inner.step()

    model = net()
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with cl.watch(model, count_forwards=False) as stats:
        for x, y in batches(5):
            stats.step()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    facts = loop_of(stats)
    assert (facts["told_steps"], facts["optimizer_steps"]) == (5, 5)
    assert facts["training_forwards"] == 5


class Whole(nn.Module):
    """Its part is called by the loop, itself never."""

    def __init__(self):
        super().__init__()
        self.net = net()


def test_a_step_that_raises_hides_no_other_optimizers():
    model = net()
    broken = torch.optim.LBFGS(model[0].parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with cl.watch(model) as stats:
        model(torch.randn(6, 4)).sum().backward()
        with pytest.raises(TypeError):
            broken.step()  # without its closure
        train(model, 5, optimizer, stats)
    assert loop_of(stats)["optimizer_steps"] == 5


def test_a_loop_that_calls_a_part_only():
    model = Whole()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model, count_forwards=False) as stats:
        for x, y in batches(5):
            stats.step()
            stats.enter()
            loss = F.cross_entropy(model.net(x), y)
            stats.leave()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    facts = loop_of(stats)
    assert facts["training_forwards"] == facts["backwards"] == 5
    assert facts["output"]["shape"] == [6, 3]
    assert facts["output_gradient"]["cross_entropy"] == 1


def test_parameters_unfrozen_added_and_replaced_while_watched():
    model = net()
    model.requires_grad_(False)
    with cl.watch(model) as stats:
        for p in model.parameters():
            p.requires_grad_()
        optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
        for i, (x, y) in enumerate(batches(8)):
            if i == 2:
                optimizer.add_param_group({"params": list(model[0].parameters())})
            if i == 4:
                model[3] = nn.Linear(8, 3)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    facts = loop_of(stats)
    assert facts["backwards"] == facts["optimizer_steps"] == 8
    assert facts["in_no_optimizer"] == facts["frozen"] == facts["without_gradient"] == []
    assert facts["optimizers"][-1]["of_model"] == 6
    assert facts["foreign_steps"] == 0


def test_odd_parameters():
    """Tied, lazy, complex, without dimensions, with sparse gradients, of no layer."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 8, sparse=True)
            self.lazy = nn.LazyLinear(8)
            self.tied, self.other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.other.weight = self.tied.weight
            self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            x = self.other(self.tied(self.lazy(self.embedding(x))))
            return x * self.phase.abs() * self.scale

    model = Odd()
    with cl.watch(model) as stats:
        model(torch.arange(4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            model(torch.arange(4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert stats.notes == ()
    facts = loop_of(stats)
    assert (facts["backwards"], facts["optimizer_steps"], facts["training_forwards"]) == (5, 5, 6)
    assert facts["without_gradient"] == []
    assert facts["dtypes"] == ["complex64", "float32"]


def test_copies_and_files_of_a_watched_model(tmp_path):
    """Hooks on parameters are left out of them too, and training goes on."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model) as stats, cl.watch(model) as other:
        train(model, 2, optimizer, stats)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]
        out = model(next(batches(1))[0])
        torch.save(out, io.BytesIO())  # no warning of a hook that is lost
        torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, io.BytesIO())
        for one in copies:
            one(next(batches(1))[0]).sum().backward()
            assert all(not m._forward_hooks and not m._forward_pre_hooks for m in one.modules())
        assert loop_of(stats)["backwards"] == 2
        assert loop_of(other)["backwards"] == 2
    assert all(p._post_accumulate_grad_hooks in (None, {}) for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert stats.notes == other.notes == ()


def test_watching_changes_nothing_and_keeps_no_graph():
    watched, plain = net(), net()
    state = torch.random.get_rng_state()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (watched, plain)]
    with cl.watch(watched) as stats:
        for x, y in batches(12):
            for model, optimizer in zip((watched, plain), optimizers, strict=True):
                out = model(x)
                loss = F.cross_entropy(out, y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    for a, b in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)
    stats.attach()
    out = watched(next(batches(1))[0])
    graph = out.grad_fn.metadata["marker"] = nn.Identity()
    alive = weakref.ref(graph)
    del out, graph
    gc.collect()
    assert alive() is None
    stats.detach()


def test_an_output_changed_in_place_says_nothing_of_the_loss():
    model = net()
    with cl.watch(model) as stats:
        for x, y in batches(3):
            out = model(x)
            out.mul_(3.0)
            F.cross_entropy(out, y).backward()
    assert loop_of(stats)["output_gradient"] is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_raises_leaves_nothing(error):
    class Raises(Whole):
        def forward(self, x, fail):
            if fail:
                raise error
            return self.net(x)

    model = Raises()
    with pytest.raises(error), cl.watch(model) as stats:
        model(torch.ones(6, 4), fail=False).sum().backward()
        model(torch.ones(6, 4), fail=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert loop_of(stats)["training_forwards"] == 2
    assert loop_of(stats)["backwards"] == 1


@pytest.mark.parametrize("how", ["wrapped", "in place", "step"])
def test_a_compiled_loop(how):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    called = torch.compile(model, backend="eager") if how == "wrapped" else model
    if how == "in place":
        model.compile(backend="eager")

    def loss_of(x, y):
        return F.cross_entropy(called(x), y)

    if how == "step":
        loss_of = torch.compile(loss_of, backend="eager")
    try:
        with cl.watch(called) as stats:
            for x, y in batches(30):
                loss = loss_of(x, y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                stats.log(loss=loss)
    finally:
        torch.compiler.reset()
    facts = loop_of(stats)
    assert facts["backwards"] == facts["optimizer_steps"] == 30
    assert facts["training_forwards"] == (30 if how == "wrapped" else 0)
    assert facts["steps_without_reset"] == 0
    assert not [f for f in cl.diagnose(stats.record()) if f.severity == "problem"]


def test_transforms_fake_tensors_and_modes_of_the_user():
    from torch._subclasses import FakeTensorMode
    from torch.func import functional_call, grad, vmap
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    x, y = next(batches(1))

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    counts = []
    for watched in (False, True):
        with cl.watch(model) if watched else nullcontext() as stats:
            vmap(grad(loss), (None, 0, 0))(parameters, x, y)
            functional_call(model, parameters, (x,))
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                model(mode.from_tensor(x))
            with FlopCounterMode(display=False) as flops, torch.autocast("cpu", torch.bfloat16):
                model(x).float().sum().backward()
            counts.append(flops.get_total_flops())
            with torch.device("meta"):
                model(x)
    assert counts[0] == counts[1]
    assert all("vmap" in note for note in stats.notes)
    facts = loop_of(stats)
    assert facts["n_parameter_tensors"] == 4
    assert facts["input"]["shape"] == [6, 4]
    assert facts["backwards"] == 1


@pytest.mark.parametrize("often", [True, False])
def test_a_part_of_the_step_is_no_validation(often):
    """A GAN's generator without gradients, in each step or for samples now and then."""
    generator, critic = net(), nn.Linear(3, 1)
    of_g = torch.optim.SGD(generator.parameters(), lr=0.1)
    of_c = torch.optim.SGD(critic.parameters(), lr=0.1)
    with cl.watch(generator) as stats:
        for i, (x, _) in enumerate(batches(30)):
            fake = generator(x).detach()
            if often or i % 10 == 0:
                with torch.no_grad():
                    fake = generator(x)
            critic(fake).mean().backward()
            of_c.step()
            of_c.zero_grad()
            (-critic(generator(x)).mean()).backward()
            of_g.step()
            of_g.zero_grad()
    facts = loop_of(stats)
    assert facts["training_mode_without_gradients"] == 0
    assert facts["of_steps_without_gradients"] == (30 if often else 3)
    kinds = {f.kind for f in cl.diagnose(stats.record()) if f.severity == "problem"}
    assert kinds <= {"too-short"}


def test_validation_in_training_mode_is_seen():
    model = net()
    with cl.watch(model) as stats:
        for _ in range(3):
            train(model, 10, stats=stats)
            with torch.no_grad():
                for x, _ in batches(4):
                    model(x)
            with stats.validation(), torch.no_grad():
                model(x)
    facts = loop_of(stats)
    assert facts["training_mode_without_gradients"] == 12
    assert facts["validation_forwards"] == facts["validation_in_training_mode"] == 3


def test_the_mode_of_a_step_is_that_of_its_last_forward():
    """An adversarial attack's own forward, before it, is often in evaluation mode."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model) as stats:
        for i, (x, y) in enumerate(batches(10)):
            model.eval()
            x.requires_grad_()
            F.cross_entropy(model(x), y).backward()
            model.train(i < 7)
            optimizer.zero_grad()
            F.cross_entropy(model(x.detach()), y).backward()
            optimizer.step()
    assert loop_of(stats)["steps_in_evaluation_mode"] == 3


@pytest.mark.parametrize("trained", ["no", "in the optimizer", "frozen"])
def test_hidden_modules_are_named_unless_they_are_hidden_on_purpose(trained):
    model, hidden = net(), nn.Linear(4, 4)
    model.others = [hidden]
    hidden.requires_grad_(trained != "frozen")
    own = list(model.parameters())
    optimizers = [torch.optim.SGD(own, lr=0.1)]
    if trained == "in the optimizer":
        optimizers.append(torch.optim.SGD(hidden.parameters(), lr=0.1))
    with cl.watch(model) as stats:
        for x, y in batches(3):
            F.cross_entropy(model(hidden(x)), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert loop_of(stats)["unregistered"] == (["others"] if trained == "no" else [])


@pytest.mark.parametrize("output", ["logits", "tuple", "loss"])
def test_outputs_with_a_loss(output):
    class Model(Whole):
        def forward(self, x, labels):
            scores = self.net(x)
            loss = F.cross_entropy(scores, labels)
            as_dict = {"loss": loss, "logits": scores}
            return {"logits": as_dict, "tuple": (loss, scores), "loss": loss}[output]

    model = Model()
    with cl.watch(model) as stats:
        for x, y in batches(3):
            out = model(x, labels=y)
            (out["loss"] if output == "logits" else out[0] if output == "tuple" else out).backward()
    facts = loop_of(stats)
    assert facts["target"]["max"] == 2
    if output == "loss":
        assert facts["output"] is None
    else:
        assert facts["output_gradient"]["cross_entropy"] == 1


@pytest.mark.parametrize("shape", [(50, 3, 96, 160), (2, 1, 1100, 1000), (2, 1_200_000)])
def test_batches_that_are_too_large_to_be_looked_at_whole(shape):
    x = torch.rand(shape)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    with cl.watch(model) as stats:
        model(x).sum().backward()
        with stats.validation(), torch.no_grad():
            model(x.flip(0))
    facts = loop_of(stats)
    assert stats.notes == ()
    assert facts["input"]["shape"] == list(shape)
    assert facts["input"]["mean"] == pytest.approx(0.5, abs=0.01)
    assert 0 < facts["validation_items"]["items"] < len(x)


def test_items_are_met_again_in_batches_of_any_size():
    x = torch.randn(64, 3, 40, 40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4800, 1))
    with cl.watch(model) as stats:
        for part in x.split(16):
            model(part).sum().backward()
        with stats.validation(), torch.no_grad():
            for part in x.split(7):
                model(part)
    assert loop_of(stats)["validation_items"]["share_met"] == 1


def test_what_is_kept_stays_small():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(700)])
    with cl.watch(model) as stats:
        stats.log(loss=model(torch.ones(4, 2)).sum())
    facts = loop_of(stats)
    assert len(json.dumps(facts["modules"])) < 40_000
    small = nn.Linear(2, 1)
    with cl.watch(small, every=100) as stats:
        for i in range(3_000):
            small(torch.ones(2, 2)).sum().backward()
            stats.log(target=torch.ones(2))
            torch.optim.SGD(small.parameters(), lr=0.1).step() if i % 10 == 0 else None
    facts = loop_of(stats)
    assert facts["training_forwards"] == 3_000
    assert facts["input"]["n"] < 60
    assert facts["optimizer_steps"] == 300


def test_a_loop_that_logs_nothing_has_rates_and_facts_on_disk(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.02)
    with cl.watch(model, run=tmp_path / "run") as stats:
        for x, y in batches(6):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    record = cl.open_run(stats.run_path).record()
    assert record.loop["optimizer_steps"] == 6
    assert record.steps.hypers["weight_decay"][:, 0].tolist() == [0.02] * 6
    assert len(record.loss_steps) == 0
    assert [f.kind for f in cl.diagnose(stats)] == ["too-short"]
    cl.report(stats)


SCRIPT = """
import torch
from torch import distributed as dist, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import convlens as cl

store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
for kind in ("ddp", "fsdp"):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        model = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cl.watch(model) as stats:
        for _ in range(10):
            x, y = torch.randn(6, 4), torch.arange(6) % 3
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            stats.log(loss=loss)
    facts, names = stats.record().loop, ["training_forwards", "backwards", "optimizer_steps"]
    print([facts[name] for name in names], facts["steps_without_reset"], stats.notes)
    print(facts["in_no_optimizer"], facts["without_gradient"])
dist.destroy_process_group()
"""


def test_models_wrapped_for_several_processes():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[10, 10, 10] 0 ()", "[] []"] * 2

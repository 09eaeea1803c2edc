"""Everything watched against nothing: exact, every trainable layer, every batch.

Three networks: ResNet-18 at 64×64 and batch 32, where the computing dominates; the chapter's
network at batch 512, which makes 3.2 million values in a few milliseconds; a network of two layers
at batch 16, where every microsecond in Python shows. All sides do the same step on the same batches
with networks of the same weights. With ``--recorded`` the watched side writes a run and logs its
losses, as in a loop of one's own. Beside convlens stand hooks as they are usually written, and
fastai's ActivationStats where fastai is installed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl
from pairs import compare, finish, verdict

Step = Callable[[], None]
Network = tuple[nn.Module, Step]
Losses = list[Callable[[torch.Tensor], None]]
Result = dict[str, object]


def network(
    make: Callable[[], nn.Module], batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> Network:
    """A model and one training step of it on the next of the batches."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5)
    turn = 0

    def step() -> None:
        nonlocal turn
        x, y = batches[turn % len(batches)]
        turn += 1
        loss = F.cross_entropy(model(x), y)
        for log in losses:
            log(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    losses: Losses = []
    step.losses = losses  # pyright: ignore[reportFunctionMemberAccess]
    return model, step


def chapter() -> Network:
    """The chapter's network on MNIST at batch 512."""
    dls = cl.mnist(batch_size=512, device="cpu")
    return network(lambda: cl.simple_cnn(1, 10, norm="batch"), list(dls.train)[:100])


def resnet() -> Network:
    """ResNet-18 at 64×64, batch 32."""
    from torchvision.models import resnet18

    torch.manual_seed(1)
    x, y = torch.randn(128, 3, 64, 64), torch.randint(10, (128,))
    return network(
        lambda: resnet18(num_classes=10), list(zip(x.split(32), y.split(32), strict=True))
    )


def two_layers() -> Network:
    """A convolution and a linear layer on MNIST at batch 16."""
    dls = cl.mnist(batch_size=16, device="cpu")
    batches = [pair for pair, _ in zip(dls.train, range(100), strict=False)]
    return network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)
        ),
        batches,
    )


class Watched:
    """A watched step, and the seconds that handing over and compressing take every 64 steps.

    The median over rounds does not see what happens in one round of 64, so it is added to it.
    Compressing is done by a thread of its own, which here as in a training takes its time from the
    step's two threads: all of its processor time is counted.
    """

    def __init__(self, net: Network, run: Path | None) -> None:
        model, self.step = net
        self.n_steps = 0
        self.stats = cl.watch(model, run=run).attach()
        if run is not None:
            losses: Losses = self.step.losses  # pyright: ignore[reportFunctionMemberAccess]
            losses.append(lambda loss: self.stats.log(loss=loss))

    def per_step(self) -> float:
        """Seconds of rare work for each step."""
        return self.stats.aggregator.rare_s / self.n_steps

    def __call__(self) -> None:
        """One step."""
        self.n_steps += 1
        self.step()


def with_usual_hooks(net: Network) -> Step:
    """Mean, deviation and a histogram of each output, fetched into Python at once."""
    model, step = net
    kept: list[tuple[float, float, torch.Tensor]] = []

    def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:  # noqa: ARG001
        out = output.detach()
        kept.append((out.mean().item(), out.std().item(), torch.histc(out, 40, -10, 10)))

    for module in model.modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(hook)

    def clearing() -> None:
        kept.clear()
        step()

    return clearing


def with_fastai(net: Network) -> Step | None:
    """The hooks of fastai's ``ActivationStats(with_hist=True)``, None where it is not installed."""
    try:
        from fastai.callback.hook import ActivationStats, Hooks, has_params
    except ImportError:
        return None
    model, step = net
    stats = ActivationStats(with_hist=True)
    layers = [
        layer for layer in model.modules() if has_params(layer) and not list(layer.children())
    ]
    hooks = Hooks(layers, stats.hook)

    def watched() -> None:
        step()
        kept = [hook.stored for hook in hooks]
        assert kept[0] is not None

    return watched


def repeated(step: Step, times: int) -> Step:
    """Several steps in a row as one."""

    def steps() -> None:
        for _ in range(times):
            step()

    return step if times == 1 else steps


NETWORKS = {
    "ResNet-18 at 64×64, batch 32": (resnet, 1.05, 300),
    "The chapter's network, batch 512": (chapter, 1.10, 400),
    "Two layers, batch 16": (two_layers, 1.25, 2000),
}


def measure(
    title: str,
    make: Callable[[], Network],
    target: float,
    rounds: int,
    block: int,
    run: Path | None,
) -> Result:
    """Compare all sides on one network."""
    watched = Watched(make(), run)
    sides: dict[str, Step] = {
        "nothing": make()[1],
        "A/A": make()[1],
        "watched": watched,
        "usual hooks": with_usual_hooks(make()),
    }
    fastai = with_fastai(make())
    if fastai is not None:
        sides["fastai"] = fastai
    sides = {name: repeated(side, block) for name, side in sides.items()}
    extra = {"watched": lambda: block * watched.per_step()}
    result = compare(title, sides, "nothing", target, rounds, block, extra)
    print(f"  {verdict(result, 'watched')}")
    cost, n = watched.stats.cost, watched.n_steps
    parts = (("kernels", cost.kernel_s), ("hooks", cost.hooks_s), ("handing over", cost.handover_s))
    own = ", ".join(f"{name} {1e3 * seconds / n:.3f}" for name, seconds in parts)
    print(f"  its own account, ms a step: {own}")
    watched.stats.detach()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a word of the network's name", default="")
    parser.add_argument("--rounds", type=int, help="instead of each network's own number")
    parser.add_argument(
        "--block", type=int, default=1, help="steps of one side in a row: caches and threads stay"
    )
    parser.add_argument("--recorded", action="store_true", help="write a run and log the losses")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finish(
            [
                measure(
                    title,
                    make,
                    target,
                    arguments.rounds or rounds,
                    arguments.block,
                    Path(folder) / str(i) if arguments.recorded else None,
                )
                for i, (title, (make, target, rounds)) in enumerate(NETWORKS.items())
                if arguments.only.lower() in title.lower()
            ]
        )


if __name__ == "__main__":
    main()

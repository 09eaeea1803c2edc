"""How two ways of doing the same are compared on a noisy machine.

Both sides do one small block of steps in turn, in an order drawn anew for each round; the ratio of
their times is taken round by round, and its median is reported with a bootstrap interval. A third
side that does the same as the first shows what the method itself cannot see (A/A).
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Sides = Mapping[str, Callable[[], None]]


def wall_clock(side: Callable[[], None]) -> float:
    """Seconds that a call takes on the host."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def compare(
    title: str,
    sides: Sides,
    base: str,
    target: float | None,
    rounds: int,
    steps: int = 1,
    extra: Mapping[str, Callable[[], float]] | None = None,
    clock: Callable[[Callable[[], None]], float] = wall_clock,
) -> dict[str, object]:
    """Time every side in every round, print a table, and return the figures.

    Args:
        title: what is compared.
        sides: what to time; each call does ``steps`` training steps.
        base: the side that the others are divided by; ``"A/A"`` must be another of its kind.
        target: the ratio that the side ``"watched"`` or ``"learner"`` should reach.
        rounds: how often each side is timed.
        steps: training steps in a call, for the report.
        extra: seconds a call of rare work, which a median does not see; added to the side's times.
        clock: the seconds that a call takes.
    """
    rng = np.random.default_rng(0)
    names = list(sides)
    times = {name: np.empty(rounds) for name in names}
    for name in names * 3:  # warm up
        sides[name]()
    for i in range(rounds):
        for k in rng.permutation(len(names)):
            times[names[k]][i] = clock(sides[names[k]])
    for name, seconds in (extra or {}).items():
        times[name] += seconds()
        print(f"  ({name}: rare work of {1e3 * seconds():.3f} ms a call is spread over its calls)")
    print(f"\n{title}: {rounds} rounds of {steps} step(s) a side, {machine()}")
    print(f"  {base:<24} {1e3 * np.median(times[base]) / steps:8.3f} ms a step")
    result: dict[str, object] = {"title": title, "rounds": rounds, "steps": steps}
    for name in names:
        if name != base:
            result[name] = _ratio(name, times[name], times[base], steps, rng)
    if target is not None:
        result["target"] = target
    return result


def _ratio(
    name: str, times: np.ndarray, base: np.ndarray, steps: int, rng: np.random.Generator
) -> dict[str, float]:
    ratios = times / base
    resampled = rng.choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    middle = float(np.median(ratios))
    print(
        f"  {name:<24} {1e3 * np.median(times) / steps:8.3f} ms a step, ratio {middle:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f})"
    )
    return {"ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def verdict(result: Mapping[str, object], side: str) -> str:
    """Whether a target is met: its interval reaches it, and its middle is within the A/A spread."""
    own, same, target = result[side], result["A/A"], result["target"]
    assert isinstance(own, dict)
    assert isinstance(same, dict)
    assert isinstance(target, float)
    if result["rounds"] < 300:  # pyright: ignore[reportOperatorIssue]
        return f"target {target}: no verdict on fewer than 300 rounds"
    spread = max(abs(same["low"] - 1), abs(same["high"] - 1))
    met = own["low"] <= target and own["ratio"] <= target + spread
    return f"target {target}: {'met' if met else 'missed'}"


def machine() -> str:
    """Processor, cores, and the versions that matter."""
    import torch

    cpu = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return (
        f"{cpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )


def finish(results: list[dict[str, object]]) -> None:
    """The last line: everything as JSON."""
    sys.stdout.write(json.dumps({"machine": machine(), "results": results}) + "\n")

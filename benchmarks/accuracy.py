"""What a preset reaches: accuracy and seconds of `convlens train DATA --preset NAME`, by seed.

    python benchmarks/accuracy.py mnist --preset fast --seeds 5
    python benchmarks/accuracy.py mnist --preset best --seeds 3
    python benchmarks/accuracy.py FOLDER --preset small --minutes 10

Each seed is the real command in a process of its own. Seconds are those of all epochs with their
validation, of everything watched unless --no-watch is given; reading the data and writing the
report are not in them. With --minutes the second epoch of a first run says how many epochs fit.
Options that are not known here are passed on to `convlens train`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from statistics import mean
from typing import Any

from convlens.runs import open_run
from pairs import finish


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    known, options = parser.parse_known_args()
    given = [known.data, "--preset", known.preset, *options]
    with tempfile.TemporaryDirectory() as folder:
        if known.minutes is not None:
            (one, _), (two, _) = train([*given, "--epochs", "2"], 0, folder)["curve"]
            n_epochs = max(1, int(60 * known.minutes / (two - one)))
            print(f"an epoch takes {two - one:.1f} s: {n_epochs} epochs", flush=True)
            given += ["--epochs", str(n_epochs)]
        results = [train(given, seed, folder) for seed in range(known.seeds)]
    title = f"convlens train {' '.join(given)}"
    accuracy, seconds = (mean(one[name] for one in results) for name in ("accuracy", "seconds"))
    print(f"\n{title}: {results[0]['n_parameters']:,} parameters")
    print(f"  mean of {len(results)} seeds: {accuracy:.2%} in {seconds:.1f} s")
    finish([{"title": title, "accuracy": accuracy, "seconds": seconds, "seeds": results}])


def train(options: Sequence[str], seed: int, folder: str) -> dict[str, Any]:
    """Train with a seed, print its curve, and return the numbers."""
    command = [sys.executable, "-m", "convlens", "train", *options, "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--json", "--out", folder], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    epochs = found["epochs"]
    walls = list(accumulate(epoch["wall_s"] for epoch in epochs))
    curve = [(round(wall, 1), epoch["accuracy"]) for wall, epoch in zip(walls, epochs, strict=True)]
    by_epoch = ", ".join(f"{accuracy:.2%} at {wall:.1f} s" for wall, accuracy in curve)
    print(f"seed {seed}: {found['accuracy']:.2%} after {walls[-1]:.1f} s; by epoch: {by_epoch}",
          flush=True)  # fmt: skip
    model = open_run(found["run"]).meta["model"]
    return {
        "seed": seed, "accuracy": found["accuracy"], "seconds": round(walls[-1], 2),
        "curve": curve, "n_parameters": model["n_parameters"],
    }  # fmt: skip


if __name__ == "__main__":
    main()

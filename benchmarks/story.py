"""The chapter's story on the embedded MNIST: which settings train, which collapse, over seeds.

Batch 512, AdamW with β₂ 0.99, eps 1e-5, weight decay 0.01. Prints a table and a last line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch

import convlens as cl
from pairs import machine

STORY = [
    # title, norm, one-cycle, learning rate, epochs, seeds, mean accuracy to reach
    ("one-cycle at 0.06, no normalization", None, True, 0.06, 1, range(3), 0.970),
    ("one-cycle at 0.06, batch normalization", "batch", True, 0.06, 1, range(3), 0.982),
    ("one-cycle at 0.1, batch normalization", "batch", True, 0.1, 5, range(3), 0.990),
    ("constant 0.06, no normalization", None, False, 0.06, 1, range(5), None),
]


def train(norm: str | None, one_cycle: bool, lr: float, epochs: int, seed: int) -> dict[str, float]:
    """Train once; accuracy, and the share of images that got the most frequent answer."""
    torch.manual_seed(seed)
    model = cl.simple_cnn(1, 10, norm=norm)
    dls = cl.mnist(batch_size=512, device="cpu", seed=seed)
    learn = cl.Learner(dls, model, metrics=[cl.accuracy], seed=seed, run=None, progress=False)
    (learn.fit_one_cycle if one_cycle else learn.fit)(epochs, lr)
    said = [learn.predict(x, normalized=True).labels for x, _ in dls.valid or ()]
    answers = torch.cat(said).bincount(minlength=10)
    return {
        "seed": seed,
        "accuracy": round(learn.recorder.epochs[-1].metrics["accuracy"], 4),
        "most_frequent_answer": round(answers.max().item() / answers.sum().item(), 4),
        "wall_s": round(sum(epoch.wall_s for epoch in learn.recorder.epochs), 2),
    }


def main() -> None:
    results = []
    print(machine())
    for title, norm, one_cycle, lr, epochs, seeds, target in STORY:
        rows = [train(norm, one_cycle, lr, epochs, seed) for seed in seeds]
        mean = sum(row["accuracy"] for row in rows) / len(rows)
        verdict = "" if target is None else f", target {target:.1%}"
        print(f"\n{title}, {epochs} epoch(s): mean accuracy {mean:.2%}{verdict}")
        for row in rows:
            print(
                f"  seed {row['seed']}: {row['accuracy']:.2%}, most frequent answer "
                f"{row['most_frequent_answer']:.1%} of the images, {row['wall_s']} s"
            )
        results.append({"title": title, "epochs": epochs, "mean": round(mean, 4), "rows": rows})
    sys.stdout.write(json.dumps({"machine": machine(), "results": results}) + "\n")


if __name__ == "__main__":
    main()

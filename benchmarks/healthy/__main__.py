"""Train the healthy programs without convlens: ``PYTHONPATH=benchmarks python -m healthy [NAME…]``.

Prints what counts at the start and at the end, the bar, and the seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from healthy import programs
from healthy.common import LearnerProgram, Program


def _trained(program: Program | LearnerProgram) -> tuple[float, float]:
    """What counts before and after."""
    if isinstance(program, LearnerProgram):
        with tempfile.TemporaryDirectory() as folder:
            learn = program.make(Path(folder) / "run")
            before = learn.validate()[program.metric]
            program.train(learn)
            return before, learn.recorder.epochs[-1].metrics[program.metric]
    before = program.evaluate()[program.metric]
    every, done = program.eval_every or max(1, program.n_steps // 4), 0
    while done < program.n_steps:
        for batch in program.train_loader:
            program.step(batch)
            done += 1
            if done == program.n_steps:
                break
            if done % every == 0:
                program.evaluate()
    return before, program.evaluate()[program.metric]


def main() -> None:
    torch.set_num_threads(1)
    seeds = [0, 1]
    names = sys.argv[1:] or list(programs())
    for name in names:
        for seed in seeds:
            torch.manual_seed(seed)
            begun = time.perf_counter()
            program = programs()[name](seed)
            made = time.perf_counter()
            try:
                before, after = _trained(program)
            except Exception as error:
                print(f"{name} {seed} raised {type(error).__name__}: {error}", flush=True)
                continue
            good = after >= program.bar if program.higher_is_better else after <= program.bar
            print(
                f"{'ok ' if good else 'BAD'} {name} {seed}: {program.metric} {before:.3f} → "
                f"{after:.3f} (bar {program.bar:g}), made in {made - begun:.1f} s, trained in "
                f"{time.perf_counter() - made:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""How much the doctor can be believed: sick, repaired and healthy programs, checked and diagnosed.

Runs every program of the clinic and our own healthy ones: `check` before training (model, loader,
loss, optimizer), and `diagnose` on the run of a training that was watched and logged as a user
would. Prints detection, right cause and false alarms; the last line is JSON.

``--out`` keeps what was found, a line for each program, variant and seed: an interrupted
measurement goes on, and what was measured on other code is measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import doctor_job
import doctor_table
from healthy import programs
from pairs import machine

HERE = Path(__file__).resolve().parent
SETS = ("sick", "repaired", "healthy", "own")


def main() -> None:
    args = _arguments()
    clinic = args.clinic.resolve()
    truth: Mapping[str, Any] = {}
    if (clinic / "clinic" / "labels.json").exists():
        truth = json.loads((clinic / "clinic" / "labels.json").read_text())
    else:
        print(f"There is no clinic at {clinic}: only our own healthy programs are run.")
    jobs = _jobs(args, truth)
    if not jobs:
        raise SystemExit("No program has these names; --list shows them.")
    if args.list:
        print("\n".join(dict.fromkeys(f"{job['set']} {job['name']}" for job in jobs)))
        return
    rows = _measured(jobs, args, clinic)
    print(f"\n{machine()}, {args.jobs} at a time, code {_code_of(HERE.parent / 'src')}")
    result = doctor_table.table(rows, truth)
    sys.stdout.write(json.dumps({"machine": machine(), "runs": len(rows), **result}) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clinic", type=Path, default=HERE.parent.parent / "shared" / "clinic")
    parser.add_argument("--seeds", default="0,1", help="separated by commas")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these programs")
    parser.add_argument("--sets", default=",".join(SETS), help="of " + ", ".join(SETS))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, a core each")
    parser.add_argument("--out", type=Path, help="JSON lines of what was found; resumed")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each check")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for a program")
    parser.add_argument("--list", action="store_true", help="print the programs, run nothing")
    return parser.parse_args()


def _jobs(args: argparse.Namespace, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every program, variant and seed that is asked for."""
    sick = [name for name in truth if truth[name]["sick"]]
    names = {
        "sick": sick,
        "repaired": sick,
        "healthy": [name for name in truth if not truth[name]["sick"]],
        "own": list(programs()),
    }
    return [
        {"set": kind, "name": name, "seed": int(seed), "seconds": args.seconds}
        for seed in args.seeds.split(",")
        for kind in args.sets.split(",")
        for name in names[kind]
        if not args.only or name in args.only
    ]


def _measured(
    jobs: Sequence[Mapping[str, Any]], args: argparse.Namespace, clinic: Path
) -> list[dict[str, Any]]:
    """A row for each job, from ``--out`` or from a process of its own."""
    code = _code_of(HERE.parent / "src")
    keys = [_key(job, code, clinic) for job in jobs]
    known = _kept(args.out)
    waiting = [(job, key) for job, key in zip(jobs, keys, strict=True) if key not in known]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them measured before", flush=True)

    def one(job: Mapping[str, Any], key: str) -> dict[str, Any]:
        return {**job, "key": key, **_run(job, args.timeout)}

    _one_core_each(clinic)
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(one, job, key) for job, key in waiting]):
            row = done.result()
            known[row["key"]] = row
            _say(row)
            if args.out and "process" not in row["errors"]:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [known[key] for key in keys]


def _kept(out: Path | None) -> dict[str, dict[str, Any]]:
    if out is None or not out.exists():
        return {}
    rows = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    return {row["key"]: row for row in rows}


def _run(job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """A program in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    receiving, sending = context.Pipe(duplex=False)
    begun = time.perf_counter()
    process = context.Process(target=doctor_job.send, args=(job, sending))
    process.start()
    sending.close()
    try:
        if not receiving.poll(timeout):
            process.kill()
            return {"errors": {"process": f"not done after {timeout:g} s"}}
        found = receiving.recv()
    except EOFError:
        process.join()
        return {"errors": {"process": f"ended with exit code {process.exitcode}"}}
    process.join()
    return {**found, "s": round(time.perf_counter() - begun, 1)}


def _one_core_each(clinic: Path) -> None:
    """A server that has imported everything, from which each program's process is forked.

    What it imports, and how many threads it may use, is in its environment.
    """
    paths = [str(HERE.parent / "src"), str(HERE), str(clinic)]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    sys.path[:0] = paths
    multiprocessing.get_context("forkserver").set_forkserver_preload(["doctor_job"])


def _say(row: Mapping[str, Any]) -> None:
    """A line for the impatient."""
    said = {tool: doctor_table.problems(row, tool) for tool in ("check", "diagnose", "early")}
    parts = [f"{tool}: {', '.join(kinds)}" for tool, kinds in said.items() if kinds]
    trained = row.get("diagnose") or {}
    metric = trained.get("metric")
    parts += [f"metric {metric:.3g}"] if isinstance(metric, float) else []
    parts += [f"bar {trained['bar']:g} missed"] if trained.get("learned") is False else []
    parts += [f"RAISED {row['errors']}"] if row["errors"] else []
    print(f"{row['set']:<9}{doctor_table.label(row)}: {'; '.join(parts)}", flush=True)


@cache
def _code_of(place: Path) -> str:
    """A digest of a file, or of the Python files in a folder."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _key(job: Mapping[str, Any], code: str, clinic: Path) -> str:
    """Changes with the job, the code that judges, and the file of the program."""
    name, kind = job["name"], job["set"]
    if kind == "own":
        made_in = programs()[name].__module__.rpartition(".")[2]
        files = [HERE / "healthy" / f"{made_in}.py", HERE / "healthy" / "common.py"]
    else:
        folder = clinic / "clinic"
        files = [
            folder / ("healthy" if kind == "healthy" else "sick") / f"{name}.py",
            folder / "common.py",
        ]
    files.append(HERE / "doctor_job.py")
    return " ".join([json.dumps(job), code, *(_code_of(file) for file in files)])


if __name__ == "__main__":
    main()

"""Counts of what the doctor found: detection, right cause, false alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Truth = Mapping[str, Any]

CLASSES = ("preflight", "record", "evaluation")
TOOLS = ("check", "diagnose", "both")

SEES = {
    "check": {"preflight"},
    "diagnose": {"record", "evaluation"},
    "both": set(CLASSES),
}
"""What each tool can be asked for."""

NOT_EARLY = {
    "overfitting": "validation gets worse only after a while",
    "learning-rate-schedule-ends-early": "the schedule has not ended yet",
}
"""Kinds that a quarter of a run cannot show, with the reason."""


def problems(row: Row, tool: str) -> list[str]:
    """The kinds of a tool's problems in their order; of both, those of check first."""
    parts = ("check", "diagnose") if tool == "both" else (tool,)
    found = [f for part in parts for f in (row.get(part) or {}).get("findings", ())]
    return list(dict.fromkeys(f["kind"] for f in found if f["severity"] == "problem"))


def accepted(row: Row, truth: Truth) -> set[str]:
    label = truth[row["name"]]
    return {label["cause"], *label["also_accepted"]}


def count(rows: Sequence[Row], truth: Truth, tool: str) -> dict[str, int]:
    """Of sick rows: how many, detected, right (among the first two findings), exact."""
    first = [(row, problems(row, tool)[:2]) for row in rows]
    return {
        "sick": len(rows),
        "detected": sum(bool(kinds) for _, kinds in first),
        "right": sum(bool(accepted(row, truth) & set(kinds)) for row, kinds in first),
        "exact": sum(truth[row["name"]]["cause"] in kinds for row, kinds in first),
    }


def alarms(rows: Sequence[Row], truth: Truth, tool: str) -> list[tuple[Row, list[str]]]:
    """Rows that are not sick, with problems that are not true of them."""
    found: list[tuple[Row, list[str]]] = []
    for row in rows:
        true = truth[row["name"]].get("fixed_may_show") or [] if row["set"] == "repaired" else []
        kinds = [kind for kind in problems(row, tool) if kind not in true]
        if row["set"] != "sick" and kinds:
            found.append((row, kinds))
    return found


def label(row: Row) -> str:
    return f"{row['name']}{'+' if row['set'] == 'repaired' else ''} seed {row['seed']}"


def share(n: int, of: int) -> str:
    return f"{n:>4} of {of:<4} {n / of if of else 0:6.1%}"


def early_rows(sick: Sequence[Row], truth: Truth) -> list[Row]:
    """Sick rows whose fault a quarter of the record can show."""
    return [
        row
        for row in sick
        if "record" in truth[row["name"]]["visible_in"]
        and truth[row["name"]]["cause"] not in NOT_EARLY
    ]


def table(rows: Sequence[Row], truth: Truth) -> dict[str, Any]:
    """Print everything, and return it for the JSON line."""
    sick = [row for row in rows if row["set"] == "sick"]
    well = [row for row in rows if row["set"] != "sick"]
    result: dict[str, Any] = {}
    if sick:
        result["sick"] = _sick(sick, truth)
    if well:
        result["alarms"] = _alarms(well, truth)
    _times(rows)
    broken = {label(row): row["errors"] for row in rows if row.get("errors")}
    for name, errors in broken.items():
        print(f"raised: {name}: {errors}")
    bad = [label(row) for row in rows if (row.get("diagnose") or {}).get("learned") is False]
    if bad:
        print(f"own programs that did not reach their bar (not healthy): {', '.join(bad)}")
    return {**result, "raised": broken, "not_learned": bad}


def _sick(sick: Sequence[Row], truth: Truth) -> dict[str, Any]:
    result: dict[str, Any] = {}
    print("\nsick programs: detected, right cause among the first two findings, exact cause")
    for tool in TOOLS:
        for group in ("all", *CLASSES):
            some = [
                row for row in sick if group == "all" or group in truth[row["name"]]["visible_in"]
            ]
            n = result[f"{tool}/{group}"] = count(some, truth, tool)
            print(
                f"  {tool:<9} {group:<11} "
                + "   ".join(share(n[of], len(some)) for of in ("detected", "right", "exact"))
            )
    early = early_rows(sick, truth)
    n = result["early"] = count(early, truth, "early")
    print(
        f"  diagnose at 25 % of the run: "
        f"{'   '.join(share(n[of], len(early)) for of in ('detected', 'right', 'exact'))}"
        f"\n    left out: what only evaluation shows, and {', '.join(NOT_EARLY)}"
    )
    _by_kind(sick, truth)
    result["missed"] = _missed(sick, truth)
    result["missed_early"] = [
        label(row) for row in early if not accepted(row, truth) & set(problems(row, "early")[:2])
    ]
    print(f"not named at 25 %: {', '.join(result['missed_early']) or 'none'}")
    return result


def _by_kind(sick: Sequence[Row], truth: Truth) -> None:
    print("\nby kind (check, diagnose, both): right cause of runs")
    for kind in sorted({truth[row["name"]]["cause"] for row in sick}):
        some = [row for row in sick if truth[row["name"]]["cause"] == kind]
        right = [count(some, truth, tool)["right"] for tool in TOOLS]
        print(f"  {kind:<38} {'  '.join(f'{n}/{len(some)}' for n in right)}")


def _missed(sick: Sequence[Row], truth: Truth) -> dict[str, Any]:
    """By tool and class that it can see: what was missed or named wrongly."""
    result: dict[str, Any] = {}
    for tool in TOOLS:
        print(f"\n{tool}: missed, or another cause first")
        result[tool] = {}
        for row in sick:
            kinds = problems(row, tool)
            if not SEES[tool] & set(truth[row["name"]]["visible_in"]):
                continue
            if accepted(row, truth) & set(kinds[:2]):
                continue
            result[tool][label(row)] = kinds
            said = f"named {', '.join(kinds)}" if kinds else "missed"
            print(f"  {label(row)}: {truth[row['name']]['cause']}: {said}")
    return result


def _alarms(well: Sequence[Row], truth: Truth) -> dict[str, Any]:
    result: dict[str, Any] = {}
    sets = Counter(row["set"] for row in well)
    print(f"\nfalse alarms (problems on {', '.join(f'{n} {k}' for k, n in sets.items())} runs)")
    for tool in TOOLS:
        found = alarms(well, truth, tool)
        each = Counter(row["set"] for row, _ in found)
        parts = "   ".join(f"{kind} {share(each[kind], n)}" for kind, n in sets.items())
        print(f"  {tool:<9} all {share(len(found), len(well))}   {parts}")
        result[tool] = {label(row): kinds for row, kinds in found}
        result[f"{tool}_of"] = {"alarms": len(found), "runs": len(well), **each}
    for row, kinds in alarms(well, truth, "both"):
        print(f"  {label(row)} ({row['set']}): {', '.join(kinds)}")
        for part in ("check", "diagnose"):
            for f in (row.get(part) or {}).get("findings", ()):
                if f["severity"] == "problem" and f["kind"] in kinds:
                    print(f"    {part}: {f['kind']} ({f['confidence']}): {f['evidence']}")
    return result


def _times(rows: Iterable[Row]) -> None:
    found: list[tuple[float, str, list[float]]] = []
    for row in rows:
        parts = [float((row.get(part) or {}).get(name, 0)) for part, name in _PARTS]
        found.append((sum(parts), label(row), parts))
    checks = sorted(parts[0] for _, _, parts in found)
    print(
        f"\ncheck took {checks[len(checks) // 2]:.1f} s in the middle and {checks[-1]:.1f} s at "
        "most; seconds of check, training watched and diagnose, the slowest ten:"
    )
    for total, name, parts in sorted(found, reverse=True)[:10]:
        print(f"  {total:6.1f} {name}: {', '.join(f'{s:.1f}' for s in parts)}")


_PARTS = (("check", "s"), ("diagnose", "train_s"), ("diagnose", "s"))

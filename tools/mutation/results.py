"""What became of the mutants: the committed file, and its summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.mutation import equivalent
from tools.mutation.session import Verdict
from tools.mutation.sites import Site

REQUIRED = 0.95


def load(path: Path | None) -> dict[str, Verdict]:
    if path is None or not path.exists():
        return {}
    verdicts = {}
    for row in json.loads(path.read_text())["mutants"]:
        site = Site(row["file"], row["line"], row["source"], row["change"], row["kind"], ())
        verdicts[site.key] = Verdict(site, row["found_by"], row["executed"], op=row["operator"])
    return verdicts


def save(path: Path | None, verdicts: dict[str, Verdict], population: int) -> None:
    """`population`: the mutants there are, of which these have been tested."""
    if path is None:
        return
    ordered = sorted(verdicts.values(), key=lambda verdict: (verdict.site.file, verdict.site.line, verdict.site.change))
    rows = [row(verdict) for verdict in ordered]
    counts = {
        "tested": len(rows),
        "of": population,
        "found": sum(bool(each["found_by"]) for each in rows),
        "score": score(counted(verdicts)),
        "operators": {op: score(mutants) for op, mutants in by_operator(verdicts).items()},
    }
    text = json.dumps({**counts, "mutants": rows}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def row(verdict: Verdict) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(verdict.site).items() if name != "edits"}
    return {**fields, "operator": verdict.op, "found_by": verdict.found_by, "executed": verdict.executed}


def better(old: Verdict | None, new: Verdict) -> Verdict:
    """A mutant is found if the tests of one operator find it."""
    if old is None or new.found_by or (new.executed and not old.found_by):
        return new
    return old


def of_present_sources(verdicts: dict[str, Verdict], sites: Iterable[Site]) -> dict[str, Verdict]:
    """Without those of lines that the files of `sites` no longer have."""
    present = {site.key: site for site in sites}
    files = {site.file for site in present.values()}
    return {key: verdict for key, verdict in verdicts.items() if verdict.site.file not in files or key in present}


def counted(verdicts: dict[str, Verdict]) -> list[Verdict]:
    excused = equivalent.load()
    return [verdict for verdict in verdicts.values() if verdict.found_by or not excused.reason(verdict.site)]


def by_operator(verdicts: dict[str, Verdict]) -> dict[str, list[Verdict]]:
    """Each mutant under the operator whose tests found it, or executed it last."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in counted(verdicts):
        groups.setdefault(verdict.op, []).append(verdict)
    return dict(sorted(groups.items()))


def score(mutants: list[Verdict]) -> float:
    return round(sum(bool(verdict.found_by) for verdict in mutants) / len(mutants), 4) if mutants else 1.0


def lowest_score(verdicts: dict[str, Verdict]) -> float:
    return min([score(mutants) for mutants in by_operator(verdicts).values()], default=1.0)


def summary(verdicts: dict[str, Verdict]) -> str:
    mutants = counted(verdicts)
    found = Counter(verdict.found_by.split(":")[0] for verdict in mutants if verdict.found_by)
    lines = [_count_of("mutants", mutants)]
    lines += [f"  by {what}: {count}" for what, count in found.most_common()]
    lines += [f"  {_count_of(op, each)}" for op, each in by_operator(verdicts).items()]
    lines += [f"  not found: {v.site.key}{'' if v.executed else ' (not executed)'}" for v in mutants if not v.found_by]
    return "\n".join(lines)


def _count_of(what: str, mutants: list[Verdict]) -> str:
    found = sum(bool(verdict.found_by) for verdict in mutants)
    return f"{what}: {found} of {len(mutants)} found ({100 * score(mutants):.1f} %)"

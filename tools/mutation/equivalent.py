"""Mutants that change nothing a test could see, by rule or from a reviewed list with a reason for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.sites import Site

LIST = Path(__file__).with_name("equivalent.txt")


@dataclass(frozen=True)
class Rule:
    pattern: str  # of the key
    reason: str


RULES = (
    Rule(r"(\S+) - (\S+) > (\S+) \? \2 \+ \3 : \1;.*\| > to >=$", "a minimum: at equality both sides are the same"),
    Rule(r"(\b\S+(?: \+ \S+)?) < (\S+) \? \1 : \2\)?;.*\| < to <=$", "a minimum: at equality both sides are the same"),
)


@dataclass(frozen=True)
class Equivalent:
    reviewed: dict[str, str]

    def reason(self, site: Site) -> str:
        if site.key in self.reviewed:
            return self.reviewed[site.key]
        return next((rule.reason for rule in RULES if re.search(rule.pattern, site.key)), "")


def load() -> Equivalent:
    """Lines come in pairs: a mutant's key, and indented the reason."""
    reviewed = {}
    key = ""
    for line in LIST.read_text().splitlines():
        if line.startswith("  "):
            reviewed[key] = line.strip()
        elif line and not line.startswith("#"):
            key = line
    return Equivalent(reviewed)

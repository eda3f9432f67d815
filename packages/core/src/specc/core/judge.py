"""The checks of a spec: predicates over an evaluation's counts, judged by the compiler and part of no key."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from specc.core.compiler import Compiled
from specc.core.plan import Decision

_OPERATORS: Final = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
COMPARISON: Final = re.compile(r"\s*(>=|<=|>|<)\s*([0-9]*\.?[0-9]+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judged check: what was asked, what was found."""

    name: str
    asked: str
    found: str
    met: bool

    def line(self) -> str:
        """Return the verdict in words."""
        return f"check `{self.name}: {self.asked}` {'met' if self.met else 'not met'}: {self.found}"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as data."""
        return {"name": self.name, "asked": self.asked, "found": self.found, "met": self.met}


def judge(compiled: Compiled, done: Mapping[str, Decision]) -> list[Verdict]:
    """Judge the spec's checks by the evaluation, if it was built."""
    decision = done.get("evaluation")
    if decision is None or decision.digest is None:
        return []
    found = json.loads((compiled.store.path(decision.digest) / "evaluation.json").read_text())
    return judged(compiled.lock.locked.values.get("checks") or {}, found)


def judged(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[Verdict]:
    """Judge the checks of a spec by what an evaluation found."""
    return [_JUDGES[name](value, found) for name, value in asked.items() if value]


def _length(asked: str, found: Mapping[str, Any]) -> Verdict:
    match = COMPARISON.fullmatch(asked)
    if match is None:
        raise ValueError(asked)  # the language's pattern let only comparisons through
    value = float(found["served"]["mean_acceptance_length"])
    met = _OPERATORS[match[1]](value, float(match[2]))
    return Verdict(name="mean_acceptance_length", asked=asked, found=f"{value:.3f}", met=met)


def _lossless(asked: bool, found: Mapping[str, Any]) -> Verdict:
    exact = found["lossless"]["fp32"]
    identical = exact["identical"] == exact["prompts"]
    counted = f"{exact['identical']} of {exact['prompts']} greedy outputs identical in fp32"
    return Verdict(name="lossless", asked=str(asked).lower(), found=counted, met=identical)


_JUDGES: Final = {"mean_acceptance_length": _length, "lossless": _lossless}

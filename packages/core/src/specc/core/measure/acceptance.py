"""What vLLM counts of speculation, in all and for each answer, and how a report has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from specc.core.measure.intervals import bootstrap

LINE: Final = re.compile(r"^vllm:spec_decode_num_(\w+?)_total(?:\{(.*)\})?\s+(\S+)")
POSITION: Final = re.compile(r'(?:^|,)position="(\d+)"')


def greedy(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what `evaluation.json` says of greedy output by dtype, if a prompt was answered in it.

    Of a verifier in fp32 no part of it is told again.
    """
    found: Mapping[str, Any] = evaluation.get("lossless") or {}
    again = "fp32" if "float32" in found else None
    return {dtype: one for dtype, one in found.items() if one["prompts"] and dtype != again}


def exact(evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what `evaluation.json` says of greedy output in fp32, None where no prompt was answered in it."""
    found: Mapping[str, Any] = (evaluation.get("lossless") or {}).get("fp32") or {}
    return found if found.get("prompts") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """vLLM's own counters of speculation. `per_position[k]` is how often the draft's token k was accepted."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted: int = 0
    per_position: tuple[int, ...] = ()

    @classmethod
    def of(cls, accepted: Sequence[int], steps: int) -> Counts:
        """Return the counts of drafts of `steps` tokens, given how many were accepted of each."""
        return cls(
            drafts=len(accepted),
            draft_tokens=len(accepted) * steps,
            accepted=sum(accepted),
            per_position=tuple(sum(run > place for run in accepted) for place in range(steps)),
        )

    def minus(self, other: Counts) -> Counts:
        """Return what came after `other`."""
        places = zip_longest(self.per_position, other.per_position, fillvalue=0)
        return Counts(
            drafts=self.drafts - other.drafts,
            draft_tokens=self.draft_tokens - other.draft_tokens,
            accepted=self.accepted - other.accepted,
            per_position=tuple(now - before for now, before in places),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the counts under the artifacts' names, with accepted tokens per draft + 1."""
        return {
            "drafts": self.drafts,
            "draft_tokens": self.draft_tokens,
            "accepted": self.accepted,
            "accepted_per_position": list(self.per_position),
            "mean_acceptance_length": acceptance(self.accepted, self.drafts),
        }


def counted(text: str) -> Counts | None:
    """Return the counters in a page of Prometheus' text format, None if it has none of speculation."""
    sums: dict[str, int] = {}
    places: dict[int, int] = {}
    for found in map(LINE.match, text.splitlines()):
        if found is None:
            continue
        name, labels, value = found[1], found[2] or "", int(float(found[3]))
        sums[name] = sums.get(name, 0) + value
        if name == "accepted_tokens_per_pos" and (place := POSITION.search(labels)) is not None:
            places[int(place[1])] = places.get(int(place[1]), 0) + value
    if "drafts" not in sums:
        return None
    return Counts(
        drafts=sums["drafts"],
        draft_tokens=sums.get("draft_tokens", 0),
        accepted=sums.get("accepted_tokens", 0),
        per_position=tuple(places[place] for place in sorted(places)),
    )


def acceptance(accepted: int, drafts: int) -> float:
    """Return the mean acceptance length: accepted draft tokens per draft + 1, as vLLM reports it."""
    return 1 + accepted / drafts if drafts else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """vLLM's counts of one answer: `histogram[j]` drafts of which j tokens were accepted, and all tokens drafted.

    They are vLLM's own (`per_request_spec_decode_metrics`), and their sums are its counters. The last draft of an
    answer counts with all that was accepted of it, as there: an end of the answer inside it cuts the answer and not the
    count. So an answer has at most as many tokens as its first, which comes without a draft, and 1 + accepted for each
    of its drafts; what is missing of that was behind its end, and is less than one draft and the verifier's token.
    """

    histogram: tuple[int, ...]
    draft_tokens: int

    @property
    def drafts(self) -> int:
        """Drafts that were verified."""
        return sum(self.histogram)

    @property
    def accepted(self) -> int:
        """Tokens of them that were accepted."""
        return sum(run * count for run, count in enumerate(self.histogram))


def counts_of(drafted: Sequence[Drafted]) -> Counts:
    """Return the counts of answers together."""
    longest = max((len(one.histogram) for one in drafted), default=1)
    per_position = (sum(sum(one.histogram[place:]) for one in drafted) for place in range(1, longest))
    return Counts(
        drafts=sum(one.drafts for one in drafted),
        draft_tokens=sum(one.draft_tokens for one in drafted),
        accepted=sum(one.accepted for one in drafted),
        per_position=tuple(per_position),
    )


def measured(drafted: Sequence[Drafted], tokens: int) -> dict[str, Any]:
    """Return a benchmark's entry for answers of `tokens` in all: their counts, and the interval over the prompts."""
    interval = bootstrap([one.drafts for one in drafted], [one.accepted for one in drafted])
    return {**counts_of(drafted).as_json(), "output_tokens": tokens, "interval": list(interval)}

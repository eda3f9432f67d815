"""Speculation must not change greedy output: where two runs differ, and by how little.

A verifier that checks k+1 tokens at once computes in another batch shape than one that decodes them singly. In
fp32 that never shows; in bf16 a near tie between two tokens may fall the other way, and all that follows
differs. So fp32 is held to equality, and elsewhere each first difference is told with the distance of its two
tokens: a few units in the last place are the dtype's noise, hundreds are a defect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

DIGITS: Final[Mapping[str, int]] = {"float32": 24, "bfloat16": 8, "float16": 11}
"""Bits of a significand, the hidden one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where the answers to a prompt differ.

    `position` counts the answer's tokens from 0; `tokens` are the plain run's and the speculative run's, None
    where an answer was over already.
    """

    prompt: int
    position: int
    tokens: tuple[int | None, int | None]


def first_difference(prompt: int, plain: Sequence[int], speculative: Sequence[int]) -> Difference | None:
    """Return where two answers to a prompt part, None if they are equal."""
    for position in range(max(len(plain), len(speculative))):
        here = (
            plain[position] if position < len(plain) else None,
            speculative[position] if position < len(speculative) else None,
        )
        if here[0] != here[1]:
            return Difference(prompt=prompt, position=position, tokens=here)
    return None


def differences(plain: Sequence[Sequence[int]], speculative: Sequence[Sequence[int]]) -> list[Difference]:
    """Return the first difference of every prompt that has one."""
    pairs = enumerate(zip(plain, speculative, strict=True))
    found = (first_difference(prompt, *pair) for prompt, pair in pairs)
    return [difference for difference in found if difference is not None]


def ulp(value: float, dtype: str) -> float:
    """Return the distance between `dtype`'s numbers around `value`: 2^(exponent - bits after the first)."""
    exponent = math.frexp(value)[1] - 1 if value else -126
    return 2.0 ** (max(exponent, -126) - DIGITS[dtype] + 1)


def gap_ulp(logits: tuple[float, float], dtype: str) -> float:
    """Return how far two tokens' logits lie apart, in units in the last place of the larger one.

    Their log-probabilities differ by the same amount, but were rounded in `dtype` as logits.
    """
    return abs(logits[0] - logits[1]) / ulp(max(abs(logits[0]), abs(logits[1])), dtype)


def report(
    prompts: int, found: Sequence[Difference], dtype: str, logits: Callable[[Difference], tuple[float, float] | None]
) -> dict[str, Any]:
    """Return the artifact's entry for one dtype; `logits` gives those of a difference's two tokens, if it has two."""
    rows: list[dict[str, Any]] = []
    for difference in found:
        pair = logits(difference)
        rows.append(
            {
                "prompt": difference.prompt,
                "position": difference.position,
                "tokens": list(difference.tokens),
                "gap_ulp": None if pair is None else round(gap_ulp(pair, dtype), 3),
            }
        )
    return {"prompts": prompts, "identical": prompts - len(rows), "first_differences": rows}

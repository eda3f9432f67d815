"""Speculative decoding in plain torch: a reference for vLLM's, and what evaluates drafts that vLLM does not run.

A draft proposes tokens from the newest one. The verifier reads the newest token and the proposals in one pass, accepts
a leading run of them and adds a token of its own (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023,
arXiv:2302.01318). What comes out is distributed as the verifier's own tokens are, whatever the draft proposes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from specc.core.measure.acceptance import Counts
from specc.evaluate.engine import Run
from specc.evaluate.prompts import Asked

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specc.evaluate.reference import Reference
    from specc.train.models import DraftModel, Reading


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Return the probabilities, fp64 and of the shape of `logits` `[..., vocabulary]`; temperature 0 takes the best."""
    import torch

    if temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return (logits.double() / temperature).softmax(-1)


def accept(p: Tensor, q: Tensor, drafted: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return how many drafted tokens are accepted, and the verifier's token after them; both int64 `[rows]`.

    `p` fp64 `[rows, steps + 1, vocabulary]` are the verifier's probabilities of each drafted token and of the one after
    the last; `q` fp64 `[rows, steps, vocabulary]` those that the `drafted` tokens, int64 `[rows, steps]`, were drawn
    from, one-hot for greedy proposals. A token is accepted with probability min(1, p / q). After the first that is not,
    the verifier's own is drawn from max(p - q, 0), normalised; after a whole draft, from p.

        drafted                A    B    C
        p of it               .6   .2   .9
        q of it               .5   .8   .7
        accepted for a draw   any  <1/4 any
        draws                 .3   .7   .1    -> 1 accepted; then max(p - q, 0) of the second place, where B has none
    """
    import torch

    of_drafted = drafted[..., None]
    mine, theirs = p[:, :-1].gather(-1, of_drafted)[..., 0], q.gather(-1, of_drafted)[..., 0]  # [rows, steps]
    draws = torch.rand(mine.shape, dtype=torch.float64, generator=random)
    accepted = (draws * theirs < mine).cumprod(1).sum(1)  # [rows]
    rows = torch.arange(len(p))
    here = p[rows, accepted]  # [rows, vocabulary]
    # Nothing was drafted for the place after the last: q is zero there, and the rest is p itself.
    rest = (here - torch.nn.functional.pad(q, (0, 0, 0, 1))[rows, accepted]).clamp_min(0)
    # Where p and q are equal but for rounding, nothing may be left; then either is right.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, here)
    return accepted, torch.multinomial(rest, 1, generator=random)[:, 0]


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer as token ids, and how many tokens were accepted of each draft that was verified for it."""

    answer: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A verifier and its draft; without a draft, or with no `steps`, the verifier alone.

    `layers` are the hidden states that the draft reads, and an answer is over after a token of `ends`. `proposals` are
    the draft's best tokens, or sampled as the verifier's are, at the same `temperature`.
    """

    reference: Reference
    draft: DraftModel | None = None
    layers: Sequence[int] = ()
    steps: int = 0
    ends: frozenset[int] = frozenset()
    temperature: float = 0.0
    proposals: Literal["greedy", "sampled"] = "greedy"

    def decode(self, prompt: Sequence[int], max_tokens: int, random: torch.Generator) -> Decoded:
        """Answer a prompt with up to `max_tokens` tokens.

        As in vLLM, the prompt gives a first token without a draft, and a draft counts with all that was accepted of
        it, even where the answer is over before.
        """
        import torch

        session = self.reference.open(self.layers)
        first = session.read(prompt, 1, images=prompt.images if isinstance(prompt, Asked) else ())
        p = distribution(first, self.temperature)  # [1, vocabulary]
        answer, accepted = [int(torch.multinomial(p, 1, generator=random))], list[int]()
        while not self._over(answer, max_tokens):
            drafted, q = self.propose(session.reading(answer[-1]), p.shape[-1], random)
            logits = session.read([answer[-1], *drafted.tolist()], len(drafted) + 1)
            p = distribution(logits, self.temperature)  # [steps + 1, vocabulary]
            run, own = (int(found) for found in accept(p[None], q[None], drafted[None], random))
            session.drop(len(drafted) - run)
            if len(drafted):
                accepted.append(run)
            for token in (*drafted[:run].tolist(), own):
                answer.append(token)
                if self._over(answer, max_tokens):
                    break
        return Decoded(tuple(answer), tuple(accepted))

    def decode_all(
        self, prompts: Iterable[Sequence[int]], max_tokens: int, random: torch.Generator, done: Callable[[], None]
    ) -> Run:
        """Answer prompts one after another; `done` is called for each. What is counted is what vLLM counts."""
        found: list[Decoded] = []
        started = time.monotonic()
        for prompt in prompts:
            found.append(self.decode(prompt, max_tokens, random))
            done()
        seconds = time.monotonic() - started
        counts = Counts.of(list(chain.from_iterable(one.accepted for one in found)), self.steps if self.draft else 0)
        return Run(answers=tuple(one.answer for one in found), seconds=seconds, counts=counts)

    def propose(self, document: Reading, vocabulary: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a draft from a document's last token, int64 `[steps]`, and what it was drawn from.

        The second is fp64 `[steps, vocabulary]`, over the verifier's tokens: what the draft's vocabulary lacks has
        probability 0.
        """
        import torch

        steps = 0 if self.draft is None else self.steps
        q = torch.zeros(steps, vocabulary, dtype=torch.float64)
        drafted = document.ids[:0]
        if self.draft is None:
            return drafted, q
        with torch.inference_mode():
            if self.proposals == "greedy":
                drafted = self.draft.draft(document, steps)
                return drafted, q.scatter_(1, drafted[:, None], 1.0)
            for step in range(steps):
                logits = self.draft.logits(document, drafted, steps)  # [draft vocabulary]
                known = self.draft.to_verifier(torch.arange(len(logits)))
                q[step, known] = distribution(logits, self.temperature)
                drafted = torch.cat((drafted, torch.multinomial(q[step], 1, generator=random)))
        return drafted, q

    def _over(self, answer: Sequence[int], max_tokens: int) -> bool:
        return len(answer) >= max_tokens or answer[-1] in self.ends

"""The reference decoder: its rule, its cache, and that no draft changes how the verifier's tokens are distributed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

import drafts  # noqa: E402
from small import make_verifier, write_prompts  # noqa: E402
from specc.core.algorithms import ALGORITHMS, algorithm, vocabulary_of  # noqa: E402
from specc.core.measure.acceptance import Counts  # noqa: E402
from specc.evaluate.decoder import Decoder, accept, distribution  # noqa: E402
from specc.evaluate.reference import Reference  # noqa: E402
from specc.train.losses import Head  # noqa: E402
from specc.train.models import DraftModel, Frozen, Reading, build, trained  # noqa: E402

pytestmark = pytest.mark.engine
F64 = torch.float64
TOKENS, HIDDEN = 6, 16
SAMPLES, DECODED = 100_000, 1_500
UNLIKELY = 1e-4
"""A right rule fails with this probability once in all, since the seeds are fixed; a wrong one far below it."""

SHARED: dict[str, Any] = {
    "layers": 1, "vocabulary": 4, "hidden_state_layers": [0, 1, 2], "sliding_window": None, "intermediate_size": 32,
    "init": None,
}  # fmt: skip
BLOCK: dict[str, Any] = SHARED | {
    "block_size": 4, "sample_from_anchor": False, "sliding_window_causal": True, "mask_token": 2, "anchors": 8,
    "position_weights": {"name": "uniform"},
}  # fmt: skip
NORMS: dict[str, Any] = {"decoder": "llama", "norm_before_residual": True, "norm_before_fc": True}
SECTIONS: dict[str, dict[str, Any]] = {
    "eagle3": SHARED | NORMS | {"fc_norm": False, "norm_output": True, "ttt": {"steps": 3, "decay": 1.0}},
    "peagle": SHARED | NORMS | {
        "mask_token": 2, "depths": 3, "sampling": {"ratio": 0.7, "floor": 0.2, "anchors": 8},
    },
    "dflash": BLOCK,
    "dflash2": BLOCK | {
        "vocabulary": TOKENS, "convolution": {"kernel": 2, "group": 4},
        "selector": {"rank": 4, "candidates": 3, "weight": 1.0},
    },
    "dspark": BLOCK | {
        "sample_from_anchor": True, "markov": {"type": "rnn", "rank": 4},
        "confidence": {"with_markov": True, "weight": 1.0},
    },
    "xpress": BLOCK | {
        "refiner": {"rank": 4, "mlp_ratio": 2, "passes": 2, "rounds": 1, "own_weight": 0.3, "base_weight": 0.6},
    },
    "mtp": {"steps": 3, "decay": 0.6, "init": None},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of some numbers gain nothing by threads, which wait for each other wherever tests share cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chances(*shape: int, seed: int) -> Tensor:
    """Random distributions over the last dimension, none of them flat."""
    return (1.5 * torch.randn(*shape, generator=stream(seed), dtype=F64)).softmax(-1)


def p_value(found: Tensor, expected: Tensor) -> float:
    """The chance of counts at least as far from the expected ones; cells that expect less than 5 are one."""
    rare = expected < 5
    assert (found[expected == 0] == 0).all(), "an impossible token"
    rare &= expected > 0
    found, expected = (torch.cat((x[expected >= 5], x[rare].sum()[None])) for x in (found, expected))
    kept = expected > 0
    distance = ((found - expected)[kept] ** 2 / expected[kept]).sum()
    # A chi-square's tail: the regularised upper incomplete gamma function of half its freedom and half the distance.
    return float(torch.special.gammaincc((kept.sum() - 1).double() / 2, distance / 2))


def joint(first: Tensor, step: Tensor, count: int) -> Tensor:
    """The distribution of the next `count` tokens of a Markov chain, `[tokens] * count`."""
    found = first
    for _ in range(count - 1):
        found = found[..., None] * step
    return found


def greedy(q: Tensor) -> Tensor:
    """What the same drafts are drawn from if the best token is taken."""
    return torch.zeros_like(q).scatter(-1, q.argmax(-1, keepdim=True), 1.0)


def without_residual(p: Tensor, q: Tensor, drafted: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A wrong rule: after a rejection the verifier's token is drawn from p."""
    accepted, _ = accept(p, q, drafted, random)
    return accepted, torch.multinomial(p[torch.arange(len(p)), accepted], 1, generator=random)[:, 0]


def all_accepted(p: Tensor, q: Tensor, drafted: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A wrong rule: p > 0 is enough."""
    return accept((p > 0).to(F64), (q > 0).to(F64), drafted, random)[0], accept(p, q, drafted, random)[1]


def next_tokens(rule: Callable[..., tuple[Tensor, Tensor]], q_of: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """Counts `[tokens, tokens, tokens]` of the next three tokens of a Markov verifier, drafts being of two tokens.

    Where fewer than three come out of the draft, the chain itself goes on: that is the verifier alone.
    """
    first, step = chances(TOKENS, seed=1), chances(TOKENS, TOKENS, seed=2)
    q_first, q_step = q_of(chances(TOKENS, seed=3)), q_of(chances(TOKENS, TOKENS, seed=4))
    random = stream(seed)
    one = torch.multinomial(q_first, SAMPLES, replacement=True, generator=random)
    two = torch.multinomial(q_step[one], 1, generator=random)[:, 0]
    p = torch.stack((first.expand(SAMPLES, -1), step[one], step[two]), 1)  # [samples, 3, tokens]
    q = torch.stack((q_first.expand(SAMPLES, -1), q_step[one]), 1)
    accepted, own = rule(p, q, torch.stack((one, two), 1), random)
    second = torch.where(accepted >= 1, torch.where(accepted == 1, own, two), -1)
    found = torch.stack((torch.where(accepted >= 1, one, own), second, torch.where(accepted == 2, own, -1)), 1)
    for place in (1, 2):
        after = torch.multinomial(step[found[:, place - 1]], 1, generator=random)[:, 0]
        found[:, place] = torch.where(found[:, place] < 0, after, found[:, place])
    cells = (found * torch.tensor([TOKENS**2, TOKENS, 1])).sum(1)
    return torch.bincount(cells, minlength=TOKENS**3).view(TOKENS, TOKENS, TOKENS).to(F64)


EXPECTED = SAMPLES * joint(chances(TOKENS, seed=1), chances(TOKENS, TOKENS, seed=2), 3)


@pytest.mark.parametrize("q_of", [lambda q: q, greedy, lambda q: (q * (q > 0.1)) / (q * (q > 0.1)).sum(-1, True)],
                         ids=["sampled", "greedy", "small vocabulary"])  # fmt: skip
def test_the_rule_leaves_the_joint_distribution_of_three_tokens(q_of: Callable[[Tensor], Tensor]) -> None:
    assert p_value(next_tokens(accept, q_of, 7), EXPECTED) > UNLIKELY
    assert p_value(next_tokens(without_residual, q_of, 7), EXPECTED) < UNLIKELY**2
    assert p_value(next_tokens(all_accepted, q_of, 7), EXPECTED) < UNLIKELY**2


def test_the_rule_as_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.tensor([[0.6, 0.4, 0, 0], [0.3, 0.2, 0.1, 0.4], [0, 0.1, 0.9, 0], [1, 0, 0, 0]], dtype=F64)
    q = torch.tensor([[0.5, 0.5, 0, 0], [0.1, 0.8, 0.1, 0.0], [0.3, 0, 0.7, 0]], dtype=F64)
    draws = torch.tensor([[0.3, 0.7, 0.1]], dtype=F64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    found = [accept(p[None], q[None], torch.tensor([[0, 1, 2]]), stream(seed)) for seed in range(200)]
    assert {int(accepted) for accepted, _ in found} == {1}
    assert {int(own) for _, own in found} == {0, 3}, "B, and C where p is no more than q, have no residual"
    draws[0, 1] = 0.2
    accepted, own = accept(p[None], q[None], torch.tensor([[0, 1, 2]]), stream(0))
    assert (accepted.tolist(), own.tolist()) == ([3], [0])


def test_greedy_is_the_same_rule_at_temperature_0() -> None:
    logits = torch.randn(500, 4, TOKENS, generator=stream(0), dtype=F64)
    best = logits.argmax(-1)  # [500, 4]
    drafted = torch.where(torch.rand(500, 3, generator=stream(1)) < 0.7, best[:, :3], best[:, 1:])
    q = torch.zeros(500, 3, TOKENS, dtype=F64).scatter(-1, drafted[..., None], 1.0)
    accepted, own = accept(distribution(logits, 0), q, drafted, stream(2))
    for row in range(500):
        run = next((place for place in range(3) if drafted[row, place] != best[row, place]), 3)
        assert (int(accepted[row]), int(own[row])) == (run, int(best[row, run]))


def test_counts_of_runs() -> None:
    assert Counts.of([0, 2, 1], 3) == Counts(drafts=3, draft_tokens=9, accepted=3, per_position=(2, 1, 0))
    assert Counts.of([], 0) == Counts()


# --- the whole decoder -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 tokens that does not care much for what stands before the last one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1, initializer_range=0.35,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def draft_of(name: str, folder: Path) -> tuple[DraftModel, list[int]]:
    """A random draft of an algorithm in fp64, and the states that it reads."""
    config = drafts.verifier_config(folder)
    if name == "mtp":
        config |= {"model_type": "mimo", "num_nextn_predict_layers": 1}
    draft = {"algorithm": name, **SECTIONS[name]}
    random = stream(3)
    weights = {
        spec.name: torch.rand(spec.shape, generator=random, dtype=F64) + 0.5
        if len(spec.shape) == 1
        else torch.randn(spec.shape, generator=random, dtype=F64) * 0.4
        for spec in trained(draft, config)
    }
    embed = torch.randn(TOKENS, HIDDEN, generator=random, dtype=F64)
    small = vocabulary_of(draft, config)
    known = torch.arange(small) + TOKENS - small  # the last ones: the verifier often wants another
    d2t = None if small == TOKENS else known - torch.arange(small)
    frozen = Frozen(embed, torch.ones(HIDDEN), 1e-5, Head(embed[known]), embed)
    return build(draft, config, weights, frozen, d2t).eval(), algorithm(name).layers(draft)


class Reread:
    """A session without a cache: everything from the beginning each time, remembered by what was read."""

    def __init__(self, reference: Reference, layers: Sequence[int], known: dict[Any, Any]) -> None:
        self.reference, self.layers, self.known, self.ids = reference, layers, known, list[int]()

    def look(self) -> tuple[Reading, Tensor]:
        key = tuple(self.ids)
        if key not in self.known:
            self.known[key] = self.reference.read(key, layers=self.layers, ahead=0, places=range(len(key)))
        return self.known[key]

    def read(self, tokens: Sequence[int], keep: int, images: Sequence[bytes] = ()) -> Tensor:
        assert not images
        self.ids += tokens
        return self.look()[1][-keep:]

    def drop(self, count: int) -> None:
        del self.ids[len(self.ids) - count :]

    def reading(self, newest: int) -> Reading:
        read = self.look()[0]
        aux, last = (torch.cat((rows, torch.zeros_like(rows[:1]))) for rows in (read.aux, read.last))
        return Reading(torch.tensor([*self.ids, newest]), aux, last)


class Remembering:
    """A verifier of such sessions."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.known = reference, dict[Any, Any]()

    def open(self, layers: Sequence[int]) -> Reread:
        return Reread(self.reference, layers, self.known)


def remember(model: DraftModel) -> None:
    """Compute each of a draft's answers once: it depends on the tokens alone."""
    for name in ("logits", "draft"):
        setattr(model, name, kept(getattr(model, name)))


def kept(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that calls `plain` once for the same tokens."""
    known = dict[Any, Tensor]()

    def found(document: Reading, *more: Any) -> Tensor:
        key = (*document.ids.tolist(), *(str(one.tolist() if isinstance(one, Tensor) else one) for one in more))
        if key not in known:
            known[key] = plain(document, *more)
        return known[key]

    return found


PROMPT = [3, 4, 2, 5]


@pytest.mark.parametrize("proposals", ["greedy", "sampled"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_sampled_answers_are_the_verifiers_own(
    name: str, proposals: Any, verifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference(verifier, dtype="float64", device="cpu")
    model, layers = draft_of(name, verifier)
    remember(model)
    memory: Any = Remembering(reference)
    decoder = Decoder(reference=memory, draft=model, layers=layers, steps=2, temperature=1.0, proposals=proposals)

    def expect() -> Tensor:
        """The exact distribution of three tokens, from all rows of two."""
        found = torch.zeros(TOKENS, TOKENS, TOKENS, dtype=F64)
        first = memory.open(layers).read(PROMPT, 1)[0].double().softmax(-1)
        for one in range(TOKENS):
            second = memory.open(layers).read([*PROMPT, one], 1)[0].double().softmax(-1)
            for two in range(TOKENS):
                third = memory.open(layers).read([*PROMPT, one, two], 1)[0].double().softmax(-1)
                found[one, two] = first[one] * second[two] * third
        return found

    def count() -> tuple[Tensor, int]:
        random, found, runs = stream(11), torch.zeros(TOKENS, TOKENS, TOKENS, dtype=F64), 0
        for _ in range(DECODED):
            decoded = decoder.decode(PROMPT, 3, random)
            found[decoded.answer] += 1
            runs += sum(decoded.accepted)
        return found, runs

    expected = DECODED * expect()
    found, accepted = count()
    assert accepted > 0.1 * DECODED
    assert p_value(found, expected) > UNLIKELY
    if name == "eagle3":
        monkeypatch.setattr("specc.evaluate.decoder.accept", without_residual)
        assert p_value(count()[0], expected) < UNLIKELY


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_sampled_proposal_is_one_of_the_drafts_own_vocabulary(name: str, verifier: Path) -> None:
    """A block of as many tokens as are asked for, here fewer than it was trained with, has other logits."""
    reference = Reference(verifier, dtype="float64", device="cpu")
    model, layers = draft_of(name, verifier)
    decoder = Decoder(
        reference=reference, draft=model, layers=layers, steps=2, temperature=0.7, proposals="sampled"
    )  # fmt: skip
    session = reference.open(layers)
    session.read(PROMPT, 1)
    drafted, q = decoder.propose(session.reading(5), TOKENS, stream(0))
    torch.testing.assert_close(q.sum(1), torch.ones(2, dtype=F64))
    for step in range(2):
        own = (model.logits(session.reading(5), drafted[:step], 2) / 0.7).softmax(-1)
        known = model.to_verifier(torch.arange(len(own)))
        torch.testing.assert_close(q[step, known], own)
        others = torch.ones(TOKENS, dtype=torch.bool).index_fill_(0, known, False)
        assert q[step, others].eq(0).all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_greedy_answers_are_the_verifiers_own(name: str, verifier: Path) -> None:
    reference = Reference(verifier, dtype="float64", device="cpu")
    model, layers = draft_of(name, verifier)
    alone = reference.read(PROMPT, layers=[], ahead=12)[0].ids[len(PROMPT) :].tolist()
    decoder = Decoder(reference=reference, draft=model, layers=layers, steps=3)
    decoded = decoder.decode(PROMPT, 12, stream(0))
    assert list(decoded.answer) == alone
    # Of each draft come the accepted tokens and the verifier's; the last may go past the end.
    assert 11 <= sum(decoded.accepted) + len(decoded.accepted) <= 14
    assert Decoder(reference=reference).decode(PROMPT, 12, stream(0)).answer == decoded.answer
    last = alone[7]
    ended = Decoder(reference=reference, draft=model, layers=layers, steps=3, ends=frozenset({last}))
    assert list(ended.decode(PROMPT, 12, stream(0)).answer) == alone[: alone.index(last) + 1]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_session_reads_as_from_the_beginning(kind: str, tmp_path: Path) -> None:
    """Pieces of any length, some of which are forgotten; Mistral's attention has a window of 5."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    size: dict[str, Any] = {
        "vocab_size": TOKENS, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.4,
    }  # fmt: skip
    model = (
        LlamaForCausalLM(LlamaConfig(**size))
        if kind == "llama"
        else MistralForCausalLM(MistralConfig(**size, sliding_window=5))
    )
    model.save_pretrained(tmp_path)
    reference = Reference(tmp_path, dtype="float64", device="cpu")
    session, twin = reference.open([0, 2]), Reread(reference, [0, 2], {})
    for pieces, dropped in (([1, 2, 3, 4, 5, 0, 2], 0), ([3, 3, 1, 0], 3), ([5, 4], 0), ([2, 1, 1, 4], 1), ([0], 0)):
        here, there = session.read(pieces, len(pieces)), twin.read(pieces, len(pieces))
        torch.testing.assert_close(here, there.to(F64), rtol=0, atol=2e-6)  # the twin's logits are fp32
        session.drop(dropped)
        twin.drop(dropped)
        one, two = session.reading(4), twin.reading(4)
        assert torch.equal(one.ids, two.ids)
        torch.testing.assert_close(one.aux, two.aux)
        torch.testing.assert_close(one.last, two.last)


# --- the stage ---------------------------------------------------------------------------------------------------


def test_an_evaluation_without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGLE-3, as if vLLM did not run it: the same report, from the decoder."""
    from specc.core.contracts import Event, Input, Note, Progress, StageJob
    from specc.core.errors import Position
    from specc.core.stage import Stage
    from specc.evaluate import evaluation, render
    from specc.evaluate.prompts import Prompt

    assert evaluation.runtime_of({"algorithm": "eagle3"}, "cpu") == "vllm"
    assert evaluation.runtime_of({"algorithm": "xpress"}, "cuda") == "reference"
    folder = drafts.calm(make_verifier(tmp_path / "verifier", layers=8, heads=2, kv_heads=1))
    prompts = write_prompts(tmp_path / "held-out.jsonl", 9)
    rows = [json.loads(line)["messages"] for line in prompts.read_text().splitlines()]
    asked = render([Prompt(tuple(row), Position("p", 1, 1)) for row in rows], folder, "2026-11-23")
    values = drafts.resolved(folder, vocabulary=4)
    checkpoint = drafts.assemble(tmp_path / "c", values, folder, tokens=drafts.habits(folder, asked, 4))
    values["evaluate"] = {
        "prompts": [drafts.source(prompts, "held-out.jsonl")], "max_tokens": 12, "lossless_prompts": 2,
    }  # fmt: skip
    (tmp_path / "output").mkdir()
    job = StageJob(
        stage="evaluation", version=1, key="8" * 64, params=values, facets={"device": "cpu", "threads": 1},
        inputs={name: Input(path=str(path), digest=drafts.DIGEST) for name, path in
                {"checkpoint": checkpoint, "draft": tmp_path / "c" / "draft", "verifier": folder}.items()},
        files={"held-out.jsonl": str(prompts)}, output=str(tmp_path / "output"), work=str(tmp_path / "work"),
        units=str(tmp_path / "units"),
    )  # fmt: skip
    events: list[Event] = []
    stage = Stage(job, events.append)
    monkeypatch.setattr(evaluation, "runtime_of", lambda *_: "reference")
    monkeypatch.setattr(evaluation, "DECODED_TOKENS", 60)
    evaluation.evaluation(stage)
    report = json.loads((tmp_path / "output" / "evaluation.json").read_text())
    assert (report["runtime"], report["prompts"]) == ("reference", 5)
    served, simulated = report["served"], report["simulated"]
    assert served["accepted"] == sum(served["accepted_per_position"]) > 0
    assert served["draft_tokens"] == 3 * served["drafts"]
    assert served["output_tokens"] == 5 * 12
    # In bf16 a draft of one document and a pass over all its places round otherwise.
    assert abs(served["mean_acceptance_length"] - simulated["mean_acceptance_length"]) < 0.05
    assert report["untrained"]["output_tokens"] == evaluation.DECODED_UNTRAINED * 12
    assert report["lossless"]["fp32"] == {"prompts": 2, "identical": 2, "first_differences": []}
    assert report["lossless"]["bfloat16"]["prompts"] == 5
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total == 3 * 5 + evaluation.DECODED_UNTRAINED + 2 * 2
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == [
        "vLLM does not run EAGLE-3 on `cpu`: specc's own decoder answers 5 of 9 prompts; it counts as vLLM does, and "
        "its speed says nothing"
    ]
    assert "tokens_per_second" not in stage.record
    assert "speed_up" not in stage.record


def test_doubts_name_what_counted() -> None:
    from specc.evaluate.evaluation import doubts

    counts = {"drafts": 900, "mean_acceptance_length": 1.5}
    result = {"served": counts, "simulated": counts | {"mean_acceptance_length": 1.6},
              "untrained": counts | {"mean_acceptance_length": 1.0}, "runtime": "reference"}  # fmt: skip
    draft = {"algorithm": "eagle3", **SECTIONS["eagle3"]}
    assert [text.split("'")[0] for text in doubts(result, draft)] == ["the decoder"]
    assert [text.split("'")[0] for text in doubts(result | {"runtime": "vllm"}, draft)] == ["vLLM"]

"""What a stage computes and writes: tokens, floating-point operations and bytes, by arithmetic over resolved values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from specc.core.algorithms import TensorSpec, algorithm, attention, directed, learnt, vocabulary_of
from specc.core.files import DTYPE_BITS
from specc.core.plan.corpus import LETTERS, Corpus, mean_answer
from specc.core.plan.stages import Values

WIDTH: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
ENCODED: Final = {"bfloat16": 0.68, "float16": 0.86, "float32": 0.84}
"""Bytes of hidden states as they are written over those of their numbers; SmolLM2-135M's, `make bench-datagen`."""

# `quickstart`, `full` and `bench` are named as in `specc.core.plan.rates`.

ACCEPTED: Final = 2.0
"""Mean acceptance length that evaluations are reckoned with: full has 2.19."""
UNTRAINED: Final = 16
"""Prompts that the evaluation gives to the untrained draft."""
BATCH: Final = 16
"""Sequences that the evaluation answers at once."""
HALF: Final = 13
"""Sequences at which a step takes twice as long as one for a single token: SmolLM2-135M in bf16 decodes 51 tokens/s in
batches of 1, and 390 in batches of 16, on two cores."""
DECODED: Final = 1024
"""Tokens that the reference decoder writes with the draft at most."""


def _body(config: Values) -> int:
    """Return the weights of a verifier's decoder layers."""
    hidden, size = config["hidden_size"], config["head_dim"]
    query, value = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return config["num_hidden_layers"] * hidden * (2 * query + 2 * value + 3 * config["intermediate_size"])


def head_size(config: Values) -> int:
    """Return the weights of a verifier's head."""
    return config["vocab_size"] * config["hidden_size"]


def _forward(config: Values, length: float) -> float:
    """Return the operations a token of a verifier without its head."""
    return 2 * _body(config) + attention(config, length, config["num_hidden_layers"])


def _responses(values: Values, corpus: Corpus) -> float:
    config = values["verifier"]["config"]
    return corpus.tokens * _forward(config, corpus.length) + corpus.answered * 2 * head_size(config)


def _hidden_states(values: Values, corpus: Corpus) -> float:
    return corpus.tokens * _forward(values["verifier"]["config"], corpus.length)


def learnt_shapes(values: Values) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the draft's tensors that are learnt."""
    return learnt(_layout(values))


def _layout(values: Values) -> list[TensorSpec]:
    draft = values["draft"]
    return algorithm(draft["algorithm"]).layout(draft, values["verifier"]["config"])


def _passes(values: Values, corpus: Corpus) -> float:
    """Return how often training sees its rows."""
    train = values["train"]
    wanted = [train["epochs"]] if train["epochs"] else []
    if train["steps"]:
        wanted.append(train["steps"] * train["batch_tokens"] / max(1.0, _learnt(corpus)))
    return min(wanted, default=0.0)


def _learnt(corpus: Corpus) -> float:
    """Return the rows that an epoch sees: a document's positions but for the last two, which propose nothing."""
    return max(0.0, corpus.tokens - 2 * corpus.rows) * (1 - corpus.held)


def rows_seen(values: Values, corpus: Corpus) -> float:
    """Return the rows of all steps of training."""
    return _learnt(corpus) * _passes(values, corpus)


def captures(values: Values, corpus: Corpus) -> float:
    """Return how often a stream computes the hidden states of all rows."""
    once = values["data"]["hidden_states"]["keep"] or alive(values["data"], corpus.rows, corpus.held) >= 1 + corpus.held
    return 1.0 if once else max(1.0, _passes(values, corpus))


def alive(data: Values, rows: float, held: float) -> float:
    """Return the share of the hidden states that a stream holds at most: of so many rows, a share of them held out.

    Those of the held-out rows are there by themselves, too.
    """
    shards = max(1.0, rows / data["shard_rows"])
    most = data["shuffle_window"] + (data["hidden_states"].get("ahead") or data["shuffle_window"])
    return held + (1.0 if data["hidden_states"]["keep"] else min(1.0, most / shards))


def _draft(values: Values, corpus: Corpus) -> float:
    """Return the operations of training, and of validation after each epoch and before the first."""
    draft, passes = values["draft"], _passes(values, corpus)
    cost = algorithm(draft["algorithm"]).training(draft, values["verifier"]["config"], corpus.length)
    seen, targets = rows_seen(values, corpus), corpus.answered * (1 - corpus.held) * passes
    if cost.most is not None:
        targets = min(targets, cost.most * seen / values["train"]["batch_tokens"])
    learning = seen * cost.row + targets * cost.target
    checking = corpus.held * (passes + 1) * (corpus.tokens * cost.guess + corpus.answered * cost.checked)
    return learning + checking + _orthogonal(values, corpus)


def _orthogonal(values: Values, corpus: Corpus) -> float:
    """Return the operations of Muon's directions: five iterations of three products for each matrix and step."""
    train = values["train"]
    if train["optimizer"]["name"] != "muon":
        return 0.0
    steps = rows_seen(values, corpus) / train["batch_tokens"]
    pairs = [(min(shape), max(shape)) for shape in directed(_layout(values)).values()]
    return steps * 5 * sum(4 * low * low * high + 2 * low**3 for low, high in pairs)


def _evaluation(values: Values, corpus: Corpus) -> float:
    """Return the operations of all answers with and without the draft, twice for the lossless prompts, and a replay."""
    config, drafted = values["verifier"]["config"], values["export"]["speculative_tokens"]
    answer, length = _evaluated(values), corpus.prompt + _evaluated(values)
    read, write = _forward(config, length), _forward(config, length) + 2 * head_size(config)
    guess = _guess(values)
    plain = corpus.prompt * read + answer * write
    speculative = corpus.prompt * read + answer / ACCEPTED * ((drafted + 1) * write + drafted * guess)
    untrained = corpus.prompt * read + answer * ((drafted + 1) * write + drafted * guess)
    again = min(values["evaluate"]["lossless_prompts"], corpus.prompts)
    both = (corpus.prompts + again) * (plain + speculative)
    return both + min(UNTRAINED, corpus.prompts) * untrained + corpus.prompts * length * read


def _benchmark(values: Values, corpus: Corpus) -> float:
    """Return the operations of all runs over the prompts, in batches other than `BATCH` as many as take as long.

    A step of b sequences takes a time like `HALF` + b: most of it goes into reading the weights once.
    """
    config, grid = values["verifier"]["config"], values["evaluate"]["grid"]
    answer, length = _evaluated(values), corpus.prompt + _evaluated(values)
    read, write = _forward(config, length), _forward(config, length) + 2 * head_size(config)
    guess = _guess(values)

    def slower(batch: float) -> float:
        return (HALF + batch) / batch / ((HALF + BATCH) / BATCH)

    runs = 0.0
    for batch in grid["batch_sizes"]:
        plain = corpus.prompt * read + answer * write * slower(batch)
        runs += plain * len(grid["temperatures"])
        for drafted in grid["speculative_tokens"]:
            verified = (drafted + 1) * write * slower(batch * (drafted + 1)) + drafted * guess * slower(batch)
            speculative = corpus.prompt * read + answer / ACCEPTED * verified
            runs += (speculative + grid["repeats"] * (plain + speculative)) * len(grid["temperatures"])
    return corpus.prompts * runs


def _guess(values: Values) -> float:
    """Return the operations of a draft's token."""
    draft = sum(math.prod(shape) for shape in learnt_shapes(values).values())
    config = values["verifier"]["config"]
    return 2 * (draft + vocabulary_of(values["draft"], config) * config["hidden_size"])


def decoded(values: Values, corpus: Corpus, device: str) -> Corpus:
    """Return a corpus with the prompts that an evaluation answers on a device: few, without vLLM."""
    if values.get("evaluate") is None or device in algorithm(values["draft"]["algorithm"]).vllm(values["draft"]):
        return corpus
    return replace(corpus, prompts=min(corpus.prompts, max(1, DECODED // values["evaluate"]["max_tokens"])))


def _evaluated(values: Values) -> float:
    """Return the mean tokens of an evaluation's answer."""
    return mean_answer(values["evaluate"]["max_tokens"])


def _written(values: Values, corpus: Corpus) -> float:
    """Return the tokens of all answers of an evaluation."""
    again = min(values["evaluate"]["lossless_prompts"], corpus.prompts)
    return (2 * (corpus.prompts + again) + min(UNTRAINED, corpus.prompts)) * _evaluated(values)


def _measured(values: Values, corpus: Corpus) -> float:
    """Return the tokens of all answers of a benchmark."""
    grid = values["evaluate"]["grid"]
    runs = 1 + len(grid["speculative_tokens"]) * (1 + 2 * grid["repeats"])
    return len(grid["temperatures"]) * len(grid["batch_sizes"]) * runs * corpus.prompts * _evaluated(values)


COSTS: Final[Mapping[str, Callable[[Values, Corpus], float]]] = {
    "responses": _responses,
    "hidden_states": _hidden_states,
    "draft": _draft,
    "evaluation": _evaluation,
    "benchmark": _benchmark,
}
"""FLOPs of the stages that run a model; each reads only what is in its stage's own parameters."""

TOKENS: Final[Mapping[str, Callable[[Values, Corpus], float]]] = {
    "responses": lambda _, corpus: corpus.answered,
    "tokens": lambda _, corpus: corpus.tokens,
    "hidden_states": lambda _, corpus: corpus.tokens,
    "draft": rows_seen,
    "evaluation": _written,
    "benchmark": _measured,
}
"""Tokens of a stage, counted as its run record counts them."""

# Disk


def sizes(values: Values, files: Mapping[str, Path], corpus: Corpus) -> dict[str, float]:
    """Return the bytes of every stage's artifact."""
    verifier, draft = values["verifier"], values["draft"]
    config, row = verifier["config"], algorithm(draft["algorithm"])
    rows = corpus.text + 190 * corpus.rows  # beside a source's own bytes, a row has its hash and where it is from
    bits = {**DTYPE_BITS, "draft": 8 * WIDTH[values["export"]["dtype"]]}
    weights = sum(math.prod(shape) for shape in learnt_shapes(values).values())
    return {
        "verifier": _copied(verifier, files) or weight_bytes(verifier),
        "conversations": rows,
        "responses": rows + 5 * corpus.answered + 40 * corpus.rows,
        "tokens": 5 * corpus.tokens + 19 * corpus.rows,  # an id and its mask; a row's place
        "vocabulary": 8 * vocabulary_of(draft, config) + config["vocab_size"],
        "hidden_states": corpus.tokens
        * (len(row.layers(draft)) + 1)
        * config["hidden_size"]
        * WIDTH[verifier["dtype"]]
        * ENCODED[verifier["dtype"]],
        "converted": sum(math.prod(tensor.shape) * bits[tensor.dtype] / 8 for tensor in row.layout(draft, config)),
        "draft": 2 * 4 * weights,  # in fp32, the best epoch's and the first
        "checkpoint": sum(math.prod(tensor.shape) * bits[tensor.dtype] / 8 for tensor in row.layout(draft, config)),
        "stitched": _copied(verifier, files) or weight_bytes(verifier),
        "prompts": (corpus.prompt * LETTERS + 50) * corpus.prompts,
        "evaluation": 2000,
        "benchmark": 900 * cells(values),
    }


def cells(values: Values) -> int:
    """Return the cells of a benchmark's grid."""
    grid = (values.get("evaluate") or {}).get("grid") or {}
    return math.prod(len(grid.get(name) or ()) for name in ("temperatures", "speculative_tokens", "batch_sizes"))


def _copied(verifier: Values, files: Mapping[str, Path]) -> float | None:
    """Return the bytes of a verifier whose files are taken as they are; None where they are not, or not here."""
    try:
        found = sum(files[f"verifier/{name}"].stat().st_size for name in verifier["files"])
    except (KeyError, OSError):
        return None
    return found if verifier["format"] == "huggingface" else None


def weight_bytes(verifier: Values) -> int:
    """Return the bytes of a verifier's weights in its dtype; of quantised layers, in as many bits as their weights."""
    config, width = verifier["config"], WIDTH[verifier["dtype"]]
    ends = head_size(config) * (1 if config["tie_word_embeddings"] else 2)
    scheme = config.get("quantization", {}).get("scheme")
    each = width if scheme is None else 0.5 if "4" in scheme.partition("A")[0] else 1.0
    return round(each * _body(config)) + width * ends

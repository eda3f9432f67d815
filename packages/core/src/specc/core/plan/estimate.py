"""What each stage will take, by arithmetic over the locked values and by what earlier runs took here.

    seconds = start + FLOPs / rate          stages that run a model
    seconds = bytes / rate                  the others

The rate is that of the most similar run that the store has a record of from this machine; without one it is declared
below. What a unit of work that an earlier build has finished will save (see `specc.core.stage.Stage.unit`) is not known
before its stage runs, so that more data may take less than is said here.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.algorithms import algorithm
from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.files import DTYPE_BITS
from specc.core.lock import MachineClass
from specc.core.plan.plan import Plan, PlannedStage, decide, lower
from specc.core.plan.stages import Values
from specc.core.store import Store

SAMPLE: Final = 1 << 18
"""Bytes of a data file that are read; the rows of a longer one are its size over the sample's mean line."""
_WIDTH: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
_SPOKEN: Final = ("messages", "conversations", "prompt")
_ANSWERS: Final = ("output", "response", "completion")
_ASKING: Final = ("system", "user", "human")
_HARDWARE: Final = ("device", "isa", "threads", "ranks")

# Declared numbers. `quickstart` is the build of specs/quickstart.yaml on two idle cores of the class `cpu-avx512_bf16`,
# which README.md has a table of; `full` a build with 8,743 of the prompts in specs/prompts, 1,370,063 tokens, on the
# same cores while they did other work; `bench` are the files of tools/bench/results.

LETTERS: Final = 4.0
"""Bytes of text a token stands for: English in vocabularies of 32,000 tokens and more."""
FRAME: Final = 14
"""Tokens that a chat template puts around a message: full has 46 a row that are no answer, 18 of them text."""
ANSWER: Final = 445
"""Mean tokens of an answer that nothing cuts, if lengths are exponential: in full, three of four go past 128."""
ASKED: Final = 72.0
"""Bytes of a prompt whose file is not here: the mean of full."""
ACCEPTED: Final = 2.0
"""Mean acceptance length that evaluations are reckoned with: full has 2.19."""
UNTRAINED: Final = 16
"""Prompts that the evaluation gives to the untrained draft."""

GFLOPS: Final[Mapping[str, tuple[float, float]]] = {
    # sustained by the layers of a verifier that reads, in bf16 and in fp32: of one core, or of a GPU
    "cpu-amx": (614, 140),  # twice the next one in bf16: 30 % of 1,024 operations a cycle at 2 GHz, not measured by us
    "cpu-avx512_bf16": (307, 140),  # quickstart: 2,818 tokens/s; in fp32 less by 196 to 431 (bench-train, `gflops`)
    "cpu-avx512": (140, 140),  # the same in fp32: without such instructions oneDNN computes bf16 products in fp32
    "cpu-avx2": (70, 70),  # half of that: registers are half as wide
    "cuda": (208_000, 13_000),  # two thirds of what NVIDIA states for an A100, not measured by us
}
SHARE: Final[Mapping[str, float]] = {
    # of that rate, reached by a stage; all from quickstart
    "responses": 0.70,  # 1,191 tokens/s, prompts being read besides
    "hidden_states": 1.0,
    "draft": 0.55,  # 202 s with validation and start
    "evaluation": 0.33,  # 105 s with all starts, in batches of 16
}
START: Final[Mapping[str, Mapping[str, float]]] = {
    # seconds before the first token, by device; of CUDA, where vLLM compiles and captures graphs, not measured by us
    "responses": {"cpu": 12, "cuda": 60},  # quickstart: 105 s, 93 s of them at 1,191 tokens/s
    "hidden_states": {"cpu": 12, "cuda": 60},  # quickstart: 68 s, 54 s of them at 2,818 tokens/s
    "draft": {"cpu": 6, "cuda": 20},  # bench-scale: 9.8 s and 41.8 s for 1,200 and 12,000 rows
    "evaluation": {"cpu": 32, "cuda": 300},  # the same first start, and four more at 5 s
}
BYTES: Final[Mapping[str, float]] = {
    # a second, of the artifact; of `vocabulary`, of the tokens that it counts
    "verifier": 100e6,  # full: 269 MB out of a GGUF file in 2.6 s; a copy takes less
    "conversations": 18e6,  # bench-scale: 12,000 rows in 0.27 s
    "tokens": 2.4e6,  # full: 7 MB in 2.9 s
    "vocabulary": 32e6,  # full: those 7 MB in 0.22 s
    "checkpoint": 55e6,  # full: 76 MB in 1.4 s
}
PYTHON: Final = 42_000_000
"""Resident bytes of a stage without an engine: bench-scale, `conversations`."""
VLLM: Final = 850_000_000
"""Of vLLM with next to no model: bench-scale, `hidden_states`."""
TRAINER: Final = 714_000_000
"""Of torch and DeepSpeed with next to no model: bench-scale, `draft`."""
CACHE: Final[Mapping[str, int]] = {"cpu": 2 << 30, "cuda": 8 << 30}
"""Of vLLM's cache of keys and values at most: what the data stages ask for."""
CACHED: Final = 256
"""Sequences that have a place in that cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a stage will take."""

    seconds: float
    disk: int
    """Bytes of the artifact."""
    memory: int
    """Bytes, peak resident, of all ranks."""
    tokens: int | None
    """Tokens that the stage computes, None where it computes none."""
    flops: float | None
    """Floating-point operations, None where there is no model."""
    measured: bool
    """Whether the rate was measured on this machine (earlier run records of the store), else it is declared."""
    complete: bool = True
    """False where a data file's rows could not be counted, so that all numbers are too low."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """How much data there is: rows, and tokens of prompts and answers of all of them together.

    `text` are bytes of the sources' rows, `held` is the share of the rows that is for validation. `prompts` are the
    evaluation's, `prompt` the tokens of one of them.
    """

    rows: float
    text: float
    asked: float
    answered: float
    held: float
    prompts: float
    prompt: float
    complete: bool

    @property
    def tokens(self) -> float:
        """Tokens of all rows."""
        return self.asked + self.answered

    @property
    def length(self) -> float:
        """Mean tokens of a row."""
        return self.tokens / max(1.0, self.rows)


def estimates(
    values: Values, machine: MachineClass, store: Store | None, files: Mapping[str, Path] | None = None
) -> dict[str, Estimate]:
    """Return what every stage of resolved values will take on a class of machine, in the order they run.

    `files` are the places of the files that the values name (`ResolvedSpec.files`). Of a data file that is not there,
    rows are known only from the spec, or from artifacts of the plan that are in the store. Nothing is raised.
    """
    files, plan = files or {}, lower(values, machine)
    corpus = _corpus(values, files, _indexes(plan, store))
    disks = _disks(values, files, corpus)
    runs = _runs(store, machine)
    found: dict[str, Estimate] = {}
    for stage in plan.stages:
        name = stage.name
        cost = COSTS.get(name)
        flops = cost(values, corpus) if cost else None
        tokens = TOKENS[name](values, corpus) if name in TOKENS else None
        amount = tokens if cost and tokens is not None else disks["tokens" if name == "vocabulary" else name]
        run = _most_similar(stage, runs.get(name, []))
        seconds = run and _scaled(run, stage, corpus, amount, flops)
        found[name] = Estimate(
            seconds=_declared(name, values, machine, amount, flops) if seconds is None else seconds,
            disk=round(disks[name]),
            memory=_ranks(values, name) * ((run and run.memory(stage)) or round(_memory(name, values, machine, disks))),
            tokens=None if tokens is None else round(tokens),
            flops=flops,
            measured=seconds is not None,
            complete=corpus.complete or name in ("verifier", "checkpoint"),
        )
    return found


def total(parts: Iterable[Estimate]) -> Estimate:
    """Return what stages take one after another: the sum of everything, save for memory, of which it is the most."""
    every = list(parts)
    return Estimate(
        seconds=sum(part.seconds for part in every),
        disk=sum(part.disk for part in every),
        memory=max((part.memory for part in every), default=0),
        tokens=sum(part.tokens or 0 for part in every),
        flops=sum(part.flops or 0.0 for part in every),
        measured=all(part.measured for part in every),
        complete=all(part.complete for part in every),
    )


# How much data there is


def _indexes(plan: Plan, store: Store | None) -> dict[str, dict[str, Any]]:
    """Return `index.json` of those artifacts of the plan that are in the store."""
    if store is None:
        return {}
    there = {item.stage.name: item.digest for item in decide(plan, store) if item.digest}
    return {name: _json(store, digest, "index.json") for name, digest in there.items()}


def _json(store: Store, digest: str, name: str) -> dict[str, Any]:
    """Return a file of an artifact, empty if it is not there or is none."""
    try:
        return dict[str, Any](json.loads((store.path(digest) / name).read_bytes()))
    except (SpeccError, OSError, ValueError, TypeError, RecursionError):
        return {}


def _corpus(values: Values, files: Mapping[str, Path], indexes: Mapping[str, Mapping[str, Any]]) -> Corpus:
    """Count rows and tokens: what artifacts say goes before what files say."""
    data, evaluate = values["data"], values.get("evaluate")
    conversations, responses, tokens = (indexes.get(name, {}) for name in ("conversations", "responses", "tokens"))
    sources, apart = _texts(data["sources"], files), _texts(data["validation"]["sources"], files)
    prompts, texts = _texts(evaluate["prompts"] if evaluate else (), files), [*sources, *apart]
    counted = next(filter(None, (_number(index.get("rows")) for index in (tokens, responses, conversations))), None)
    if counted and not sum(text.rows for text in texts):
        texts = [Text(rows=counted)]
    rows = sum(text.rows for text in texts)
    scale = (counted or rows) / rows if rows else 0.0

    generated, length = data["responses"]["from"] == "verifier", data["sequence_length"]
    mean = _mean_answer(data["responses"]["max_tokens"])
    asked = [min(length, text.prompt) for text in texts]
    wanted = [text.turns * mean if generated else text.answered / LETTERS for text in texts]
    given = [min(length - prompt, answer) for prompt, answer in zip(asked, wanted, strict=True)]
    prompted, answered = (
        scale * sum(text.rows * count for text, count in zip(texts, counts, strict=True)) for counts in (asked, given)
    )
    answered = _number(responses.get("tokens")) or answered
    if every := _number(tokens.get("tokens")):
        shards: list[Any] = [shard for shard in tokens.get("shards", ()) if isinstance(shard, dict)]
        answered = min(every, sum(_number(shard.get("trained_tokens")) or 0.0 for shard in shards))
        prompted = every - answered
    held = sum(text.rows for text in apart) / rows if apart and rows else data["validation"]["share"]
    if split := _number(conversations.get("rows")):
        held = (_number(conversations.get("validation")) or 0.0) / split
    return Corpus(
        rows=rows * scale,
        text=sum(text.rows * text.line for text in texts) * scale,
        asked=prompted,
        answered=answered,
        held=held,
        prompts=sum(text.rows for text in prompts),
        prompt=_mean([(text.rows, text.prompt) for text in prompts]),
        complete=all(text.known for text in prompts) and (bool(counted) or all(text.known for text in texts)),
    )


def _mean_answer(limit: int) -> float:
    """Return the mean tokens of an answer that is cut at `limit`: E[min(X, limit)] of an exponential X."""
    return ANSWER * -math.expm1(-limit / ANSWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is in a data file: rows, and means over them: bytes of a line, of what is asked and answered; user turns."""

    rows: float
    line: float = ASKED
    asked: float = ASKED
    answered: float = 0.0
    turns: float = 1.0
    known: bool = True

    @property
    def prompt(self) -> float:
        """Tokens of a row but for its answers."""
        return self.asked / LETTERS + 2 * FRAME * self.turns


def _texts(items: Sequence[Mapping[str, Any]], files: Mapping[str, Path]) -> list[Text]:
    return [_text(item.get("rows"), files.get(item["file"])) for item in items]


def _text(limit: int | None, path: Path | None) -> Text:
    """Look into the start of a data file of which `limit` rows are taken."""
    try:
        size, sample = (path.stat().st_size, _start(path)) if path else (0, b"")
    except OSError:
        size, sample = 0, b""
    lines = [line for line in sample.split(b"\n")[: None if size <= SAMPLE else -1] if line.strip()] or [sample]
    if not sample:
        return Text(rows=limit or 0, known=limit is not None)
    line = sum(len(line) + 1 for line in lines) / len(lines)
    rows = len(lines) if size <= SAMPLE else size / line
    said = [_said(line) for line in lines]
    turns, asked, answered = (sum(column) / len(said) for column in zip(*said, strict=True))
    return Text(rows=min(rows, limit or rows), line=line, asked=asked, answered=answered, turns=turns)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SAMPLE)


def _said(line: bytes) -> tuple[int, int, int]:
    """Return a row's user turns, letters that are asked and letters that are answered; a line of no known shape asks.

    The shapes are those of `specc.datagen.shapes`, which says what is wrong with a row: here nothing is.
    """
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return 1, len(line), 0
    fields: dict[str, Any] = row
    spoken: Any = next((fields[name] for name in _SPOKEN if isinstance(fields.get(name), list)), None)
    if spoken is None:
        answered = sum(_letters(fields.get(name)) for name in _ANSWERS)
        return 1, sum(map(_letters, fields.values())) - answered, answered
    turns: list[dict[str, Any]] = [turn for turn in spoken if isinstance(turn, dict)]
    asking = [turn for turn in turns if turn.get("role", turn.get("from")) in _ASKING]
    asked, every = (sum(_letters(turn.get("content", turn.get("value"))) for turn in some) for some in (asking, turns))
    return max(1, sum(turn.get("role", turn.get("from")) != "system" for turn in asking)), asked, every - asked


def _letters(value: object) -> int:
    return len(value) if isinstance(value, str) else 0


def _mean(weighted: list[tuple[float, float]]) -> float:
    weight = sum(count for count, _ in weighted)
    return sum(count * value for count, value in weighted) / weight if weight else 0.0


# Floating-point operations: two for every weight that a token is multiplied with


def _body(config: Values) -> int:
    """Return the weights of a verifier's decoder layers."""
    hidden, size = config["hidden_size"], config["head_dim"]
    query, value = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return config["num_hidden_layers"] * hidden * (2 * query + 2 * value + 3 * config["intermediate_size"])


def _head(config: Values) -> int:
    """Return the weights of a verifier's head."""
    return config["vocab_size"] * config["hidden_size"]


def _attention(config: Values, length: float, layers: int) -> float:
    """Return the operations a token for scores and sums of values, its context being half of `length` in the mean."""
    return 2 * length * config["num_attention_heads"] * config["head_dim"] * layers


def _forward(config: Values, length: float) -> float:
    """Return the operations a token of a verifier without its head."""
    return 2 * _body(config) + _attention(config, length, config["num_hidden_layers"])


def _responses(values: Values, corpus: Corpus) -> float:
    config = values["verifier"]["config"]
    return corpus.tokens * _forward(config, corpus.length) + corpus.answered * 2 * _head(config)


def _hidden_states(values: Values, corpus: Corpus) -> float:
    return corpus.tokens * _forward(values["verifier"]["config"], corpus.length)


def _trained(values: Values) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the draft's tensors that are learnt."""
    draft = values["draft"]
    tensors = algorithm(draft["algorithm"]).layout(draft, values["verifier"]["config"])
    return {tensor.name: tensor.shape for tensor in tensors if tensor.origin == "trained"}


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


def _seen(values: Values, corpus: Corpus) -> float:
    """Return the rows of all steps of training."""
    return _learnt(corpus) * _passes(values, corpus)


def _draft(values: Values, corpus: Corpus) -> float:
    """Return the operations of training, as `specc.train.models.eagle3` computes.

    At the first step all rows go through all layers but the last, of which those without a target make keys and values
    alone; later steps have the rows with a target. What is learnt costs 6 a weight (forward, gradients of inputs and
    weights), the fusion of frozen states 4, and the frozen head 2 for the verifier and 4 for each step of the draft.
    """
    draft, config, passes = values["draft"], values["verifier"]["config"], _passes(values, corpus)
    steps, trained = draft["ttt"]["steps"], _trained(values)
    size = {name: math.prod(shape) for name, shape in trained.items() if len(shape) == 2}
    last = f"layers.{draft['layers'] - 1}"
    fuse = size["fc.weight"]
    layers = sum(size.values()) - fuse
    tail = sum(count for name, count in size.items() if name.startswith(f"{last}.") and not _is_memory(name))
    head = draft["vocabulary"] * config["hidden_size"]
    window = min(corpus.length, draft["sliding_window"] or corpus.length)
    attention = _attention(config, window, draft["layers"])
    row = (6 if draft["fc_norm"] else 4) * fuse + 6 * (layers - tail)
    target = 6 * (tail + (steps - 1) * layers) + steps * 3.5 * attention + (2 + 4 * steps) * head
    learnt = _seen(values, corpus) * row + corpus.answered * (1 - corpus.held) * passes * target
    # Validation, before the first epoch too: losses at targets, and the draft's guesses from every row.
    guessed = 2 * (fuse + steps * (layers + head)) + steps * attention
    checked = corpus.held * (passes + 1) * (corpus.tokens * guessed + corpus.answered * (guessed + 2 * head))
    return learnt + checked + _orthogonal(values, corpus, trained.values())


def _is_memory(name: str) -> bool:
    return name.endswith(("k_proj.weight", "v_proj.weight"))


def _orthogonal(values: Values, corpus: Corpus, shapes: Iterable[tuple[int, ...]]) -> float:
    """Return the operations of Muon's directions: five iterations of three products for each matrix and step."""
    train = values["train"]
    if train["optimizer"]["name"] != "muon":
        return 0.0
    steps = _seen(values, corpus) / train["batch_tokens"]
    pairs = [(min(shape), max(shape)) for shape in shapes if len(shape) == 2]
    return steps * 5 * sum(4 * low * low * high + 2 * low**3 for low, high in pairs)


def _evaluation(values: Values, corpus: Corpus) -> float:
    """Return the operations of all answers with and without the draft, twice for the lossless prompts, and a replay."""
    config, drafted = values["verifier"]["config"], values["export"]["speculative_tokens"]
    answer, length = _evaluated(values), corpus.prompt + _evaluated(values)
    read, write = _forward(config, length), _forward(config, length) + 2 * _head(config)
    draft = sum(math.prod(shape) for shape in _trained(values).values())
    guess = 2 * (draft + values["draft"]["vocabulary"] * config["hidden_size"])
    plain = corpus.prompt * read + answer * write
    speculative = corpus.prompt * read + answer / ACCEPTED * ((drafted + 1) * write + drafted * guess)
    untrained = corpus.prompt * read + answer * ((drafted + 1) * write + drafted * guess)
    again = min(values["evaluate"]["lossless_prompts"], corpus.prompts)
    both = (corpus.prompts + again) * (plain + speculative)
    return both + min(UNTRAINED, corpus.prompts) * untrained + corpus.prompts * length * read


def _evaluated(values: Values) -> float:
    """Return the mean tokens of an evaluation's answer."""
    return _mean_answer(values["evaluate"]["max_tokens"])


def _written(values: Values, corpus: Corpus) -> float:
    """Return the tokens of all answers of an evaluation."""
    again = min(values["evaluate"]["lossless_prompts"], corpus.prompts)
    return (2 * (corpus.prompts + again) + min(UNTRAINED, corpus.prompts)) * _evaluated(values)


COSTS: Final[Mapping[str, Callable[[Values, Corpus], float]]] = {
    "responses": _responses,
    "hidden_states": _hidden_states,
    "draft": _draft,
    "evaluation": _evaluation,
}
"""FLOPs of the stages that run a model; each reads only what is in its stage's own parameters."""

TOKENS: Final[Mapping[str, Callable[[Values, Corpus], float]]] = {
    "responses": lambda _, corpus: corpus.answered,
    "tokens": lambda _, corpus: corpus.tokens,
    "hidden_states": lambda _, corpus: corpus.tokens,
    "draft": _seen,
    "evaluation": _written,
}
"""Tokens of a stage, counted as its run record counts them."""


# Disk and memory


def _disks(values: Values, files: Mapping[str, Path], corpus: Corpus) -> dict[str, float]:
    """Return the bytes of every stage's artifact."""
    verifier, draft = values["verifier"], values["draft"]
    config, captured = verifier["config"], len(draft["hidden_state_layers"]) + 1
    rows = corpus.text + 190 * corpus.rows  # beside a source's own bytes, a row has its hash and where it is from
    bits = {**DTYPE_BITS, "draft": 8 * _WIDTH[values["export"]["dtype"]]}
    tensors = algorithm(draft["algorithm"]).layout(draft, config)
    learnt = sum(math.prod(shape) for shape in _trained(values).values())
    return {
        "verifier": _copied(verifier, files) or _weights(verifier),
        "conversations": rows,
        "responses": rows + 5 * corpus.answered + 40 * corpus.rows,
        "tokens": 5 * corpus.tokens + 19 * corpus.rows,  # an id and its mask; a row's place
        "vocabulary": 8 * draft["vocabulary"] + config["vocab_size"],
        "hidden_states": corpus.tokens * captured * config["hidden_size"] * _WIDTH[verifier["dtype"]],
        "draft": 2 * 4 * learnt,  # in fp32, the best epoch's and the first
        "checkpoint": sum(math.prod(tensor.shape) * bits[tensor.dtype] / 8 for tensor in tensors),
        "evaluation": 2000,
    }


def _copied(verifier: Values, files: Mapping[str, Path]) -> float | None:
    """Return the bytes of a verifier whose files are taken as they are; None where they are not, or not here."""
    try:
        found = sum(files[f"verifier/{name}"].stat().st_size for name in verifier["files"])
    except (KeyError, OSError):
        return None
    return found if verifier["format"] == "huggingface" else None


def _weights(verifier: Values) -> int:
    """Return the bytes of a verifier's weights in its dtype."""
    config = verifier["config"]
    ends = _head(config) * (1 if config["tie_word_embeddings"] else 2)
    return _WIDTH[verifier["dtype"]] * (_body(config) + ends)


def _memory(name: str, values: Values, machine: MachineClass, disks: Mapping[str, float]) -> float:
    """Return a process's peak resident bytes.

    Those of hidden states that training has mapped are not counted: the kernel takes them back when it needs them.
    """
    verifier, draft = values["verifier"], values["draft"]
    config, weights = verifier["config"], _weights(verifier)
    if name in ("responses", "hidden_states", "evaluation"):
        heads = config["num_key_value_heads"] * config["head_dim"]
        place = 2 * config["num_hidden_layers"] * heads * _WIDTH[verifier["dtype"]]
        cache = min(CACHE[machine.device], CACHED * values["data"]["sequence_length"] * place)
        again = 2 * weights + disks["checkpoint"] if name == "evaluation" else 0  # the fp32 answers
        return VLLM + weights + cache + again
    if name == "draft":
        learnt = sum(math.prod(shape) for shape in _trained(values).values())
        ends = 2 * _head(config) * _WIDTH[verifier["dtype"]]
        wide = 12 * config["hidden_size"] + 4 * draft["intermediate_size"]  # a row's kept activations at each step
        rows = values["train"]["batch_tokens"] * draft["ttt"]["steps"] / _ranks(values, name)
        return TRAINER + ends + 18 * learnt + 2 * rows * wide
    whole = {"verifier": 2.0 if verifier["format"] == "gguf" else 0.0, "checkpoint": 4.0}
    return PYTHON + whole.get(name, 0.0) * disks[name]


def _ranks(values: Values, name: str) -> int:
    """Return the processes that a stage has on this machine, at most."""
    ranks: Any = values["runtime"]["train"]["ranks"] if name == "draft" else 1
    return ranks if isinstance(ranks, int) else max(phase["ranks"] for phase in ranks)


# Time


def _declared(name: str, values: Values, machine: MachineClass, amount: float, flops: float | None) -> float:
    """Return a stage's seconds at declared rates."""
    if flops is None:
        return amount / BYTES[name]
    narrow, wide = GFLOPS[machine.name]
    exact = values["train"]["precision"] == "fp32" if name == "draft" else values["verifier"]["dtype"] == "float32"
    cores = (1 if machine.device == "cuda" else values["runtime"]["threads"]) * _ranks(values, name)
    return START[name][machine.device] + flops / (1e9 * SHARE[name] * (wide if exact else narrow) * cores)


@dataclass(frozen=True, slots=True)
class Run:
    """An earlier run of a stage on this machine: how its artifact came about, and its record.

    `start` are seconds in which it did none of its work, `busy` those in which it did `amount`: tokens, or bytes where
    there is no model.
    """

    manifest: Manifest
    record: Mapping[str, Any]
    start: float
    busy: float
    amount: float

    def likeness(self, stage: PlannedStage) -> tuple[bool, bool, bool, int]:
        """Return what the most similar run has the most of: the code's version, the verifier, all values, newness."""
        then = {name: value for name, value in self.manifest.params.items() if name != "stages"}
        verifier = _verifier_of(then) == _verifier_of(stage.row.params)
        newness = self.record.get("order", 0)
        return self.manifest.version == stage.row.version, verifier, then == stage.row.params, newness

    def memory(self, stage: PlannedStage) -> int | None:
        """Return its peak resident bytes, where the same code had the same values, if other data."""
        peak = _number(self.record.get("peak_rss"))
        return round(peak) if peak and all(self.likeness(stage)[:3]) else None


def _verifier_of(params: Values) -> Any:
    verifier: Any = params.get("verifier")
    return (verifier.get("config"), verifier.get("dtype")) if isinstance(verifier, dict) else None


def _runs(store: Store | None, machine: MachineClass) -> dict[str, list[Run]]:
    """Return the store's runs on this machine, by stage; none if they say that it is of another class."""
    if store is None:
        return {}
    found: dict[str, list[Run]] = {}
    classes = set[tuple[Any, Any]]()
    for manifest in store.indexed():
        record = store.record(manifest.key)
        if record.get("host") != platform.node() or (seconds := _number(record.get("seconds"))) is None:
            continue
        if "isa" in manifest.facets:
            classes.add((manifest.facets.get("device"), manifest.facets["isa"]))
        work = _work(store, manifest, record, seconds)
        if work and work[1] > 0 and work[2] > 0:
            found.setdefault(manifest.stage, []).append(Run(manifest, record, *work))
    return found if not classes or (machine.device, machine.isa) in classes else {}


def _work(
    store: Store, manifest: Manifest, record: Mapping[str, Any], seconds: float
) -> tuple[float, float, float] | None:
    """Return a run's start, busy seconds and amount; None if it does not say."""
    if manifest.stage == "evaluation":
        return 0.0, seconds, _number(_json(store, manifest.digest, "evaluation.json").get("prompts")) or 0.0
    if manifest.stage not in COSTS:
        counted = manifest
        if manifest.stage == "vocabulary":
            try:
                counted = store.manifest(manifest.inputs["tokens"])
            except (SpeccError, KeyError):
                return None
        return 0.0, seconds, counted.size
    rate, tokens, parts = (record.get(name) for name in ("tokens_per_second", "tokens", "parts"))
    speed, count = _number(rate) or 0.0, _number(tokens)
    if isinstance(parts, dict):
        spent: dict[str, Any] = parts
        start, *busy = (_number(spent.get(part)) or 0.0 for part in ("start", "step", "data"))
        return start, seconds - start, speed * sum(busy)
    return (max(0.0, seconds - count / speed), count / speed, count) if count and speed else None


def _most_similar(stage: PlannedStage, runs: list[Run]) -> Run | None:
    """Return the run to measure by: on the same device with the same instructions, threads and ranks."""
    wanted = {name: stage.facets[name] for name in _HARDWARE if name in stage.facets}
    same = [run for run in runs if {name: run.manifest.facets.get(name) for name in wanted} == wanted]
    return max(same, key=lambda run: run.likeness(stage), default=None)


def _scaled(run: Run, stage: PlannedStage, corpus: Corpus, amount: float, flops: float | None) -> float | None:
    """Return seconds at the rate of a run: by amount, and by what its own values would cost on this much data."""
    cost, then = COSTS.get(stage.name), run.manifest.params
    if cost is None or flops is None:
        return run.busy * amount / run.amount
    if stage.name == "evaluation":
        amount = corpus.prompts
    try:
        before = cost(then, corpus)
        if stage.name == "draft":  # more epochs are more tokens already
            before *= _seen(stage.row.params, corpus) / _seen(then, corpus)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, SpeccError):
        return None  # of an older release, whose values are others
    return run.start + run.busy * amount / run.amount * (flops / before if before else 1.0)


def _number(value: object) -> float | None:
    """Return what is a positive number as one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)

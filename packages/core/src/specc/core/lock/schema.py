"""The schema of the lock: its file as models, one of them the language's own with what `resolve` adds to a spec.

Nothing is read through these models. The lock's reader is `specc.core.lock.lock`; they say to everyone else what is
in the file, and hold for the lock of every release whose language is of the same version: what has a default may be
absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, cast

from pydantic import ConfigDict, Field

from specc.core.algorithms import Section
from specc.core.language.data import Data, Source, Validation
from specc.core.language.models import Evaluate, Prompts, Spec, Verifier
from specc.core.language.schema import DRAFT, Schema, fields, tree_of

FILE: Final = "lock.v1.schema.json"
ID: Final = "urn:specc:schema:lock:v1"
DISTRIBUTION: Final = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""A distribution's normalised name (https://packaging.python.org/en/latest/specifications/name-normalization)."""
VERSION: Final = r"^[0-9][0-9a-z]*([.!+_-][0-9a-z]+)*$"
"""A version that is one, and no range, option or address."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Count = Annotated[int, Field(ge=1)]
Token = Annotated[int, Field(ge=0)]


def _keys(pattern: str) -> Any:
    """Return what a mapping's schema says of its keys."""
    return Field(json_schema_extra={"propertyNames": {"pattern": pattern}})


Files = Annotated[dict[str, Sha256], _keys(r"^[^/]")]
Stages = Annotated[dict[str, Annotated[int, Field(ge=0)]], _keys("^[a-z_]+$")]
Pins = Annotated[dict[str, Annotated[str, Field(pattern=VERSION)]], _keys(DISTRIBUTION)]
Classes = Annotated[dict[str, Pins], _keys("^[a-z0-9_-]+$")]
Digests = Annotated[dict[str, Sha256], _keys("^[a-z_]+$")]
Results = Annotated[dict[str, Digests], _keys(r"^[a-z0-9_-]+-t[0-9]+-r[0-9x+]+$")]
Written = Annotated[dict[str, Any], _keys(r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")]


class LockedSource(Source):
    """A source of rows and its bytes."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["sha256"]}, {"required": ["files"]}]})

    sha256: Sha256 | None = None
    """sha256 of the file that the source names; one that means several has `files`."""
    files: Files | None = None
    """sha256 of each file, by its path: relative to the spec, or in the data set."""
    image_files: Files | None = None
    """sha256 of each image in the folder of them, by its path relative to the spec."""
    commit: Commit | None = None
    """Commit of the data set."""
    licence: Annotated[str, Field(min_length=1)] | None = None
    """Licence of a preset's data set, as its card says it."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Rows of the split, as the data set's card states them: good for estimates, and nothing is held to it."""


class LockedPrompts(Prompts):
    """A file of prompts and its bytes."""

    sha256: Sha256
    """sha256 of the file."""
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """Commit of the data set; absent for a file beside the spec."""


class LockedValidation(Validation):
    """Rows that are held out of training."""

    share: Annotated[float, Field(ge=0, le=0.5)]
    """Share of the conversations that is held out; 0 where there are sources."""
    sources: list[LockedSource]  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and frozen
    """Files of conversations that are held out; none where there is a share."""


class LockedData(Data):
    """What the draft learns from."""

    sources: Annotated[list[LockedSource], Field(min_length=1)]  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and frozen
    """Where the conversations are from."""
    validation: LockedValidation  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride] - as above
    """Rows that are held out of training."""


class LockedEvaluate(Evaluate):
    """Acceptance and losslessness, measured in vLLM on prompts that training never saw."""

    prompts: Annotated[list[LockedPrompts], Field(min_length=1)]  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and frozen
    """Files of prompts."""


class Quantization(Section):
    """How a verifier's linear layers are quantised."""

    method: Literal["awq", "compressed-tensors", "fp8", "gptq", "mxfp4"]
    """What made it so, as its `quantization_config` says."""
    scheme: str
    """Bits of weights and activations: `W4A16`, `W8A8`, `FP8`, `MXFP4` …; several are joined by `+`."""
    group: int | str
    """Number of weights that share a scale, or `channel`, `tensor`, `block`; `several` where layers differ."""
    act_order: bool = False
    """Whether the weights of a group are not neighbours; absent if they are."""


class VerifierConfig(Section):
    """What is read of a verifier's configuration, in transformers' words."""

    model_config = ConfigDict(extra="allow")

    architecture: str
    """Class of the model."""
    model_type: str
    """Family of the model, or of its part for text."""
    hidden_size: Count
    """Width of a hidden state."""
    num_hidden_layers: Count
    """Number of decoder layers."""
    num_attention_heads: Count
    """Number of query heads."""
    num_key_value_heads: Count
    """Number of key and value heads."""
    head_dim: Count
    """Width of one head."""
    intermediate_size: Count
    """Width of the feed-forward layers; of a verifier with experts, that of a draft's."""
    vocab_size: Count
    """Number of tokens of the vocabulary."""
    max_position_embeddings: Count
    """Longest context in tokens."""
    rms_norm_eps: Annotated[float, Field(gt=0)]
    """Term added to the norms' denominators."""
    rope_parameters: dict[str, Any]
    """Rotary embedding of whole heads: its kind, its base, and what the kind asks for."""
    tie_word_embeddings: bool
    """Whether the output layer's weights are the embedding's."""
    bos_token_id: Token | None
    """Token that a text begins with, if there is one."""
    eos_token_ids: list[Token]
    """Tokens that end an answer, in ascending order."""
    norm: Literal["rms", "gemma", "layernorm"] = "rms"
    """Final norm: `rms` multiplies by its gain w, `gemma` is such a norm by 1 + w, and `layernorm` takes the mean away
    besides. Absent if `rms`."""
    logit_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the logits; absent if 1."""
    logit_softcap: Annotated[float, Field(gt=0)] | None = None
    """Cap c of the logits z, which are c tanh(z / c) after it; absent without one."""
    embedding_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor that the embedding layer applies to its rows, rounded to their dtype before; absent if 1."""
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each head that the verifier's own rotary embedding turns; absent if 1."""
    image_token_id: Token | None = None
    """Token that stands for an image, and in a prompt for each part of one; absent if the verifier takes none."""
    num_nextn_predict_layers: Count | None = None
    """Number of the verifier's own layers that predict further tokens; absent if there is none."""
    num_experts: Annotated[int, Field(ge=0)] | None = None
    """Number of experts of these layers, 0 for dense ones; absent where a family has none."""
    num_experts_per_tok: Count | None = None
    """Number of experts that a token goes through; absent as above."""
    moe_intermediate_size: Count | None = None
    """Width of an expert; absent as above."""
    shared_expert_intermediate_size: Count | None = None
    """Width of the expert that all tokens go through; absent as above."""
    norm_topk_prob: bool | None = None
    """Whether the weights of a token's experts sum to 1; absent as above."""
    linear_attention: Literal[True] | None = None
    """Whether a layer has linear attention; absent if none has."""
    quantization: Quantization | None = None
    """How its linear layers are quantised; absent if they are not."""


class LockedVerifier(Verifier):
    """The large model that is sped up, and all that is pinned of it."""

    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None  # pyright: ignore[reportGeneralTypeIssues] - it has no default
    """Commit of a hub id; null for a verifier that is no hub id."""
    asked_revision: str | None = None
    """Branch, tag or commit that the spec asks for."""
    name: str
    """Hub id, or the name of the folder or file."""
    format: Literal["huggingface", "gguf"]
    """How its files are read."""
    files: Files
    """sha256 of every file that is used, by its path inside the model."""
    tokenizer_sha256: Sha256
    """sha256 of what decides tokens: the tokenizer and its configuration without the chat template."""
    chat_template_sha256: Sha256
    """sha256 of the chat template."""
    config: VerifierConfig
    """What is read of its configuration."""


class LockedInit(Section):
    """What the lock adds to an algorithm's `init`, of whichever algorithm it is."""

    files: Files
    """sha256 of the files of the earlier speculator, or of the draft that is converted."""
    name: str | None = None
    """Hub id, or the name of the folder, of a draft that is converted."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """Commit of a hub id that is converted; null for a folder."""
    asked_revision: str | None = None
    """Branch, tag or commit that the spec asks for."""


class Values(Spec):
    """Every value of the resolved spec, defaults and derived ones included."""

    verifier: LockedVerifier  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and frozen
    """The large model that is sped up, and all that is pinned of it."""
    data: LockedData  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and frozen
    """What the draft learns from."""
    evaluate: LockedEvaluate | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and frozen
    """Acceptance and losslessness, measured in vLLM on held-out prompts; null without an evaluation."""
    date: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    """Date that a chat template may print."""


class LockedPart(Section):
    """What was decided."""

    machine: Annotated[str, Field(alias="class", min_length=1)]
    """Class of machine that is planned for unless another is asked for."""
    written: Written
    """The values that the spec states itself, by their dotted paths; all others are defaults or derived."""
    values: Values
    """Every value of the resolved spec."""
    stages: Stages
    """Version of each stage's code."""
    engines: Classes
    """Exact version of every engine, for each class of machine."""


class LockFile(Section):
    """What a rebuild takes from outside or from defaults, and what builds found."""

    lock: Literal[1]
    """Version of the lock's format; this page describes version 1."""
    locked: LockedPart
    """What was decided."""
    results: Results
    """sha256 of each stage's artifact, for each numerics class that the spec was built in."""


def build_lock_schema() -> Schema:
    """Return the lock's JSON Schema (Draft-07): a tree, every field described.

    What the builds of a matrix share and what each has of its own are parts of it: nothing is required in them. No
    field has a default: a lock that leaves one out was written by a release that did not know it.
    """
    tree = _without(tree_of(LockFile, "serialization"), "default")
    added = {name: rule for name, (rule, _) in fields(tree_of(LockedInit, "serialization")).items()}
    for branch in fields(tree)["locked.values"][0]["properties"]["draft"]["allOf"]:
        if (init := branch["then"]["properties"].get("init")) is not None:
            init["properties"] |= added
            init["required"] = ["files"]
        if (size := branch["then"]["properties"].get("vocabulary")) is not None:  # resolved, it is a number
            branch["then"]["properties"]["vocabulary"] = {
                "type": "integer", "minimum": 2, "description": size["description"]}  # fmt: skip
    parts = {name: tree["properties"][name] for name in ("locked", "results")}
    some = {name: {"$ref": f"#/definitions/{name}"} for name in parts}
    tree["properties"] |= {
        **{name: {"description": part["description"]} for name, part in parts.items()},
        "builds": {
            "description": "Builds of a spec with a matrix by their names, `field=value,field=value`: what each has in"
            " `locked` and `results` that not all of them have.",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"minLength": 1},
            "additionalProperties": {"type": "object", "additionalProperties": False, "properties": some},
        },
    }
    choice = {"if": {"required": ["builds"]}, "then": {"properties": some}, "else": {"properties": parts}}
    partial = {name: _told(_without(part, "required")) for name, part in parts.items()}
    return {"$schema": DRAFT, "$id": ID, "title": "A lock, version 1", **tree, **choice, "definitions": partial}


def _told(node: Any) -> Any:
    """Return a schema in which a member of a union is meant only where its tag stands: a part may lack it."""
    if isinstance(node, list):
        return [_told(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    found = {key: _told(value) for key, value in cast("dict[str, Any]", node).items()}
    if set(found) == {"if", "then"}:
        found["if"] = {**found["if"], "required": list(found["if"]["properties"])}
    return found


def _without(node: Any, keyword: str) -> Any:
    """Return a schema without a keyword; a field of that name stays."""
    if isinstance(node, list):
        return [_without(item, keyword) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    items = cast("dict[str, Any]", node).items()
    return {
        key: {name: _without(rule, keyword) for name, rule in value.items()} if key == "properties" else
        _without(value, keyword) for key, value in items if key != keyword
    }  # fmt: skip

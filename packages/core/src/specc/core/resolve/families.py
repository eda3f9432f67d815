"""The families of verifiers: what of each is not as in Llama, and has to be honoured where drafts are trained.

The one place that knows families. What it finds goes into `verifier.config` of the resolved spec, there alone where it
is not the plain case, and stages read nothing but that. Read from transformers 5.19 and vLLM 0.32, and tested against
the former's models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from specc.core.errors import SpeccError
from specc.core.rotary import check_kind, rope_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the table; keys are those of `config.json`.

    `norm` is the final norm, with gain w and epsilon `epsilon`:

        rms        x / rms(x) * w
        gemma      x / rms(x) * (1 + w)
        layernorm  (x - mean(x)) / std(x) * w

    Logits are multiplied with the key `multiplied`, divided by the key `divided`, and then capped:
    `cap * tanh(logits / cap)` with the key `capped`. `scaled`: the embedding layer multiplies its rows by the root of
    the hidden size. Granite multiplies embeddings too, but behind the layer, where a draft that shares it does not
    see that. `dense`: `intermediate_size` is a width for a dense feed-forward part, as a draft has it. `tied`: vLLM
    takes the embeddings for the head whatever the configuration says. `rotary`: heads may turn in part only, and
    positions may have several axes, all the same in text. `heads` is the key of the number of native heads for
    further tokens. `linear`: layers are of linear attention but for every fourth, unless the configuration says which.
    `absent` is what transformers takes missing keys for. What is missing and in none of these is as in Llama, or an
    error.
    """

    norm: Literal["rms", "gemma", "layernorm"] = "rms"
    epsilon: str = "rms_norm_eps"
    multiplied: str | None = None
    divided: str | None = None
    capped: str | None = None
    scaled: bool = False
    dense: bool = True
    tied: bool = False
    rotary: bool = False
    heads: str | None = None
    experts: bool = False
    linear: bool = False
    absent: Mapping[str, Any] = field(default_factory=dict[str, Any])


_COHERE: Final[Mapping[str, Any]] = {"tie_word_embeddings": True, "logit_scale": 0.0625}
_GEMMA: Final[Mapping[str, Any]] = {"tie_word_embeddings": True, "head_dim": 256}
_QWEN3_NEXT: Final[Mapping[str, Any]] = {"head_dim": 256, "partial_rotary_factor": 0.25}
_EXPERTS: Final[Mapping[str, Any]] = {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}

_GPT_OSS_ROPE: Final[Mapping[str, Any]] = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip

FAMILIES: Final[Mapping[str, Family]] = {
    "cohere": Family(norm="layernorm", epsilon="layer_norm_eps", multiplied="logit_scale", tied=True,
                     absent={**_COHERE, "rope_theta": 500000.0}),
    "cohere2": Family(norm="layernorm", epsilon="layer_norm_eps", multiplied="logit_scale", tied=True, absent=_COHERE),
    "gemma": Family(norm="gemma", scaled=True, absent={**_GEMMA, "num_key_value_heads": 16}),
    "gemma2": Family(norm="gemma", scaled=True, capped="final_logit_softcapping", tied=True,
                     absent={**_GEMMA, "num_key_value_heads": 4, "final_logit_softcapping": 30.0}),
    # Its configurations on the hub leave out what is as in transformers.
    "gemma3_text": Family(norm="gemma", scaled=True, capped="final_logit_softcapping",
                          absent={**_GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
                                  "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}),
    # Its layers have experts alone, each as wide as the hidden state.
    "gpt_oss": Family(dense=False, absent={"head_dim": 64, "num_key_value_heads": 8, "rope_theta": 150000.0,
                                           "rope_scaling": _GPT_OSS_ROPE}),
    "granite": Family(divided="logits_scaling"),
    "llama": Family(),
    "mimo": Family(heads="num_nextn_predict_layers", absent={"num_key_value_heads": 32}),
    "mistral": Family(absent={"num_key_value_heads": 8}),
    # An expert of Mixtral is as wide as all of Mistral's feed-forward part.
    "mixtral": Family(absent={"num_key_value_heads": 8, "rope_theta": 1000000.0}),
    "olmo2": Family(),
    "phi3": Family(rotary=True),
    # MiMo's checkpoints are served as Qwen2's with a head.
    "qwen2": Family(heads="num_nextn_predict_layers", absent={"num_key_value_heads": 32}),
    "qwen2_moe": Family(absent={"num_key_value_heads": 16}),
    "qwen3": Family(absent={"num_key_value_heads": 32, "head_dim": 128}),
    "qwen3_5_moe_text": Family(norm="gemma", dense=False, rotary=True, heads="mtp_num_hidden_layers", experts=True,
                               linear=True,
                               absent={**_QWEN3_NEXT, **_EXPERTS, "num_key_value_heads": 2, "num_experts": 256,
                                       "num_experts_per_tok": 8}),
    "qwen3_5_text": Family(norm="gemma", rotary=True, heads="mtp_num_hidden_layers", linear=True,
                           absent={**_QWEN3_NEXT, "num_key_value_heads": 4}),
    "qwen3_moe": Family(absent={"num_key_value_heads": 4}),
    "qwen3_next": Family(norm="gemma", rotary=True, heads="num_nextn_predict_layers", experts=True, linear=True,
                         absent={**_QWEN3_NEXT, **_EXPERTS, "num_key_value_heads": 2, "num_experts": 512,
                                 "num_experts_per_tok": 10}),
}  # fmt: skip

INSIDE: Final[Mapping[str, str]] = {
    "llava": "llama", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
}  # fmt: skip
"""Families of models for more than text, and those of their `text_config`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """How a family of models for more than text takes images, and what its `text_config` is taken for without a key.

    `token` is the key of the token that stands for an image, in `config.json`. Positions are plain ones: a draft is
    trained with the numbers that it is served with. Families whose positions have several axes (M-RoPE) are not here:
    in an image they do not rise by one, and vLLM gives a draft the first axis.
    """

    token: str
    absent: Mapping[str, Any]


VISION: Final[Mapping[str, Vision]] = {
    # Its configurations on the hub name the model inside and leave out what is as in Llama's first one.
    "llava": Vision(token="image_token_index", absent={  # noqa: S106 - no password
        "image_token_index": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "bos_token_id": 1, "eos_token_id": 2}),
}  # fmt: skip
"""Families whose images are taken; of others in `INSIDE` the text is."""

SILENT: Final = frozenset({"gemma3"})
"""Families for more than text of which vLLM 0.32 hands out no hidden states, neither to us nor to a draft: its own
class cannot, and its Transformers backend records those of the outermost model alone, which has none."""

SETTINGS: Final[Mapping[str, float]] = {
    "final_logit_softcapping": 0.0, "logit_scale": 1.0, "logits_scaling": 1.0, "rms_norm_eps": 0.0,
    "partial_rotary_factor": 1.0, "use_bidirectional_attention": 0.0,
}  # fmt: skip
"""Keys that vLLM or transformers honours in families that do not have them, and values that change nothing.

vLLM multiplies the logits of a Llama by `logit_scale` and transformers does not, it gives Cohere an RMS norm if there
is a `rms_norm_eps`, and its Transformers backend caps the logits of any family.
"""


def find(raw: Mapping[str, Any]) -> tuple[str, Family, dict[str, Any]]:
    """Return the family's name and row, and its part of a `config.json`, what it leaves out filled in.

    Raises `SpeccError` for a family that is not in the table, and for a setting that engines take differently.
    """
    name = str(raw.get("model_type"))
    if name in SILENT:
        raise SpeccError(
            f"vLLM 0.32 runs no draft beside a verifier of the family `{name}`: it hands out none of its hidden states",
            hint=f"of this family, models for text alone (`{name}_text`) can have one",
        )
    inside = INSIDE.get(name)
    text = raw if inside is None else _text(raw, inside)
    text = {**VISION[name].absent, **text} if name in VISION else text
    family = FAMILIES.get(inside or name)
    if family is None:
        known = ", ".join(f"`{one}`" for one in sorted({*FAMILIES, *INSIDE}))
        raise SpeccError(
            f"verifiers of the family `{name}` are not in this release",
            hint=f"these are: {known}; others have norms or logits that the training targets must honour first",
        )
    text = {**family.absent, **text}
    _check(name, family, text)
    return (inside or name) if name not in VISION else name, family, text


def vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of `verifier.config` that only verifiers have which take images; raises as `peculiar` does."""
    if (found := VISION.get(str(raw.get("model_type")))) is None:
        return {}
    return {"image_token_id": int(raw.get(found.token, found.absent[found.token]))}


def peculiar(family: Family, text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of `verifier.config` that plain verifiers do not have.

    Raises `KeyError`, `TypeError` or `ValueError` for a value that is missing or cannot be.
    """
    facts: dict[str, Any] = {}
    if family.norm != "rms":
        facts["norm"] = family.norm
    scale = 1.0
    if family.multiplied:
        scale = _positive(text, family.multiplied)
    if family.divided and family.divided in text:
        scale = 1 / _positive(text, family.divided)
    if scale != 1:
        facts["logit_scale"] = scale
    if family.capped and text.get(family.capped) is not None:
        facts["logit_softcap"] = _positive(text, family.capped)
    if family.scaled:
        facts["embedding_scale"] = _positive(text, "hidden_size") ** 0.5
    if family.heads and (heads := int(text.get(family.heads) or 0)):
        facts["num_nextn_predict_layers"] = heads
        if family.experts:
            facts |= _experts(text)
    if family.linear and _linear(text):
        facts["linear_attention"] = True
    return facts


def _linear(text: Mapping[str, Any]) -> bool:
    """Tell whether a layer has linear attention, of a configuration that lists its layers or says how often."""
    listed = text.get("layer_types")
    return "linear_attention" in listed if listed else int(text.get("full_attention_interval") or 4) != 1


def _experts(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a native head's experts are like; `num_experts` is 0 where its layer is dense.

    The head is the layer 0 of a decoder of its own, and dense where the configuration says so of that layer.
    """
    dense = 0 in (text.get("mlp_only_layers") or ()) or int(text.get("decoder_sparse_step") or 1) != 1
    return {
        "num_experts": 0 if dense else int(text.get("num_experts") or 0),
        "num_experts_per_tok": int(text["num_experts_per_tok"]),
        "moe_intermediate_size": int(text["moe_intermediate_size"]),
        "shared_expert_intermediate_size": int(text["shared_expert_intermediate_size"]),
        "norm_topk_prob": bool(text.get("norm_topk_prob", True)),
    }


def dense_width(family: Family, text: Mapping[str, Any]) -> int:
    """Return the width for a dense feed-forward part: three times the hidden size where the verifier has experts only.

    Raises as `peculiar` does.
    """
    return int(text["intermediate_size"]) if family.dense else 3 * int(text["hidden_size"])


def rotary(family: Family, text: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Return rotary parameters in the form of transformers 5, from either form, and the share of a head that turns.

    They are those of whole heads and one axis of positions, which is what a draft has. Of layers with a window and
    layers without one, they are the latter's. Raises `SpeccError` for a kind that transformers does not know, and as
    `peculiar` does.
    """
    found = rope_parameters(text)
    share = 1.0
    if family.rotary:
        share = float(found.pop("partial_rotary_factor", text.get("partial_rotary_factor", 1.0)))
        found = {key: value for key, value in found.items() if key not in {"mrope_section", "mrope_interleaved"}}
    check_kind(found)
    return found, share


def _text(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a `text_config` with what its model says of it outside.

    Raises `SpeccError` if it is of another family, or if both say something else of the head.
    """
    text = raw.get("text_config")
    inside = cast("dict[str, Any]", text) if isinstance(text, dict) else {}
    if inside.get("model_type", name) != name:
        raise SpeccError(f"the `text_config` of a verifier of the family `{raw['model_type']}` is of the family"
                         f" `{inside['model_type']}`, not `{name}`")  # fmt: skip
    key = "tie_word_embeddings"
    if key in raw and key in inside and raw[key] != inside[key]:
        raise SpeccError(
            f"the verifier's `config.json` sets `{key}` to {_say(raw[key])}, its `text_config` to {_say(inside[key])}",
            hint="make them equal: transformers reads the one, vLLM the other",
        )
    outside = {one: raw[one] for one in (key, "bos_token_id", "eos_token_id") if one in raw}
    return {**outside, **inside}


def _check(name: str, family: Family, text: Mapping[str, Any]) -> None:
    """Raise `SpeccError` for what the engines would not compute as training does."""
    own = {family.multiplied, family.divided, family.epsilon, family.capped}
    own |= {"partial_rotary_factor"} if family.rotary else set[str | None]()
    settings = {**(text.get("rope_parameters") or {}), **text}
    for key, neutral in SETTINGS.items():
        if key not in own and settings.get(key) not in (None, neutral):
            raise SpeccError(
                f"the verifier's `config.json` sets `{key}` to {_say(settings[key])}, which the family `{name}` does"
                " not have",
                hint="vLLM and transformers do not agree on what it means there; remove it if it means nothing",
            )
    if family.tied and not text.get("tie_word_embeddings"):
        raise SpeccError(
            f"the verifier's `config.json` sets `tie_word_embeddings` to false, and vLLM ties those of `{name}` always",
            hint="its logits would be other ones in vLLM than in transformers",
        )


def _positive(text: Mapping[str, Any], key: str) -> float:
    value = text[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(repr(key))
    return float(value)


def _say(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

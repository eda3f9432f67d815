"""The sources' forward passes, written from their papers and their repositories' own modules, in their own names.

Plain torch, one row after another, the whole of everything computed anew at each step: there is nothing to reuse and
nothing to get wrong. Nothing of `specc` is in here.
"""

# ruff: noqa: PLR0917 - configuration and weights, then what goes in: the same order in every one
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def frequencies(config: Mapping[str, Any], size: int) -> Tensor:
    """Return the rotations a position, `[size / 2]`: plain, or Llama 3's."""
    plain = 1.0 / float(config.get("rope_theta", 10000.0)) ** (torch.arange(0, size, 2) / size)
    rope = config.get("rope_scaling")
    if rope is None:
        return plain
    wavelength, length = 2 * math.pi / plain, rope["original_max_position_embeddings"]
    smooth = (length / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    smooth = smooth.clamp(0, 1)  # slow ones are stretched, fast ones stay
    return (1 - smooth) * plain / rope["factor"] + smooth * plain


def turn(x: Tensor, positions: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Rotate `[rows, heads, size]`."""
    angles = positions[:, None].float() * frequencies(config, x.shape[-1])
    angles = torch.cat((angles, angles), -1)[:, None]
    left, right = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-right, left), -1) * angles.sin()


def attend(x: Tensor, keys_of: Tensor, weights: Weights, name: str, config: Mapping[str, Any], seen: Tensor,
           positions: Tensor, key_positions: Tensor) -> Tensor:  # fmt: skip
    """Return attention's output for rows `x` over the rows `keys_of`; `seen` bool `[rows, keys]`."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads

    def part(of: Tensor, one: str, count: int) -> Tensor:
        found = F.linear(of, weights[f"{name}.{one}_proj.weight"], weights.get(f"{name}.{one}_proj.bias"))
        found = found.view(len(of), count, size)
        norm = weights.get(f"{name}.{one}_norm.weight")
        return found if norm is None else rms(found, norm, config["rms_norm_eps"])

    query = turn(part(x, "q", heads), positions, config)
    key = turn(part(keys_of, "k", groups), key_positions, config).repeat_interleave(heads // groups, 1)
    value = part(keys_of, "v", groups).repeat_interleave(heads // groups, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(size)
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    found = torch.einsum("hqk,khd->qhd", shares, value).flatten(1)
    return F.linear(found, weights[f"{name}.o_proj.weight"], weights.get(f"{name}.o_proj.bias"))


def feed(x: Tensor, weights: Weights, name: str) -> Tensor:
    gate, up = (F.linear(x, weights[f"{name}.{one}_proj.weight"]) for one in ("gate", "up"))
    return F.linear(F.silu(gate) * up, weights[f"{name}.down_proj.weight"])


def causal(x: Tensor, weights: Weights, name: str, config: Mapping[str, Any]) -> Tensor:
    rows = torch.arange(len(x))
    seen = rows[:, None] >= rows
    return attend(x, x, weights, f"{name}.self_attn", config, seen, rows, rows)


def plain_layer(x: Tensor, weights: Weights, name: str, config: Mapping[str, Any]) -> Tensor:
    """A Llama layer; one without a first norm goes without."""
    eps, first = config["rms_norm_eps"], weights.get(f"{name}.input_layernorm.weight")
    x = x + causal(x if first is None else rms(x, first, eps), weights, name, config)
    return x + feed(rms(x, weights[f"{name}.post_attention_layernorm.weight"], eps), weights, f"{name}.mlp")


def midlayer(embeds: Tensor, hidden: Tensor, weights: Weights, name: str, config: Mapping[str, Any]) -> Tensor:
    """EAGLE-3's first layer: both inputs normed apart, side by side into attention, the residual the state alone."""
    eps = config["rms_norm_eps"]
    both = torch.cat((rms(embeds, weights[f"{name}.input_layernorm.weight"], eps),
                      rms(hidden, weights[f"{name}.hidden_norm.weight"], eps)), -1)  # fmt: skip
    x = hidden + causal(both, weights, name, config)
    return x + feed(rms(x, weights[f"{name}.post_attention_layernorm.weight"], eps), weights, f"{name}.mlp")


def fuse(aux: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """Return `[rows, hidden]` for three states a row, `[rows, 3, hidden]`."""
    if config.get("fc_norm"):
        parts = [rms(aux[:, index], weights[f"fc_norm.{index}.weight"], config["rms_norm_eps"]) for index in range(3)]
        aux = torch.stack(parts, 1)
    return F.linear(aux.flatten(1), weights["fc.weight"])


def layers(embeds: Tensor, hidden: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """All layers of an EAGLE-3 or P-EAGLE draft, the last state before its final norm."""
    first = "midlayer" if "midlayer.hidden_norm.weight" in weights else "layers.0"
    x = midlayer(embeds, hidden, weights, first, config)
    for index in range(1, config["num_hidden_layers"]):
        x = plain_layer(x, weights, f"layers.{index}", config)
    return x


def head(x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    return F.linear(rms(x, weights["norm.weight"], config["rms_norm_eps"]), weights["lm_head.weight"])


def eagle3(config: Mapping[str, Any], weights: Weights, embedding: Tensor, ids: Tensor, aux: Tensor,
           drafted: Sequence[int]) -> Tensor:  # fmt: skip
    """Return the logits of the token after `drafted`.

    Row i reads the states at i and token i + 1; each drafted token's row reads the state before it, not normed.
    """
    embeds, hidden = embedding[ids[1:]], fuse(aux[:-1], weights, config)
    for token in drafted:
        state = layers(embeds, hidden, weights, config)[-1:]
        embeds, hidden = torch.cat((embeds, embedding[[token]])), torch.cat((hidden, state))
    return head(layers(embeds, hidden, weights, config)[-1], weights, config)


def peagle(config: Mapping[str, Any], weights: Weights, embedding: Tensor, ids: Tensor, aux: Tensor,
           drafted: Sequence[int]) -> Tensor:  # fmt: skip
    """Return the logits after as many tokens as were drafted, all of one pass: unknown ones are one token and state."""
    mask = fuse(weights["mask_hidden"].view(1, 3, -1), weights, config)
    embeds = torch.cat((embedding[ids[1:]], *(embedding[[config["ptd_token_id"]]] for _ in drafted)))
    hidden = torch.cat((fuse(aux[:-1], weights, config), *(mask for _ in drafted)))
    return head(layers(embeds, hidden, weights, config)[-1], weights, config)


def block_states(config: Mapping[str, Any], weights: Weights, embedding: Tensor, ids: Tensor, aux: Tensor, slots: int,
                 mask: int) -> Tensor:  # fmt: skip
    """Return a block's final, normed states `[slots, hidden]`: its anchor is the last token, then there are masks.

    Every layer's keys and values are those of the fused context and of the block itself.
    """
    eps, count, width = config["rms_norm_eps"], len(ids), config.get("sliding_window")
    context = rms(F.linear(aux[:-1].flatten(1), weights["fc.weight"]), weights["hidden_norm.weight"], eps)
    x = torch.cat((embedding[ids[-1:]], embedding[[mask] * (slots - 1)]))
    positions, everywhere = torch.arange(count - 1, count - 1 + slots), torch.arange(count - 1 + slots)
    seen = torch.ones(slots, len(everywhere), dtype=torch.bool)
    if config["layer_types"][0] == "sliding_attention":
        seen = (positions[:, None] - everywhere).abs() < width
    for index in range(config["num_hidden_layers"]):
        name = f"layers.{index}"
        normed = rms(x, weights[f"{name}.input_layernorm.weight"], eps)
        x = x + attend(normed, torch.cat((context, normed)), weights, f"{name}.self_attn", config, seen, positions,
                       everywhere)  # fmt: skip
        x = x + feed(rms(x, weights[f"{name}.post_attention_layernorm.weight"], eps), weights, f"{name}.mlp")
    return rms(x, weights["norm.weight"], eps)


def apart(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """Return a fused `qkv_proj` as vLLM's `QKVParallelLinear` has it, taken apart: queries, keys, values."""
    found = dict(weights)
    query, value = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    for name in [name for name in weights if "qkv_proj" in name]:
        for one, part in zip("qkv", found.pop(name).split((query, value, value)), strict=True):
            found[name.replace("qkv_proj", f"{one}_proj")] = part
    return found


def dflash(config: Mapping[str, Any], weights: Weights, ends: tuple[Tensor, Tensor], ids: Tensor, aux: Tensor,
           drafted: Sequence[int]) -> Tensor:  # fmt: skip
    """Return the logits after `drafted`: slot k proposes the token k places behind the anchor."""
    inside = config["dflash_config"]
    slots = config.get("block_size") or inside["block_size"]
    states = block_states(config, apart(weights, config), ends[0], ids, aux, slots, inside["mask_token_id"])
    return F.linear(states[len(drafted) + 1], ends[1])


def dspark(config: Mapping[str, Any], weights: Weights, ends: tuple[Tensor, Tensor], ids: Tensor, aux: Tensor,
           drafted: Sequence[int]) -> Tensor:  # fmt: skip
    """Return the logits after `drafted`: slot k proposes the token behind its own, biased by the one before it."""
    states = block_states(config, weights, ends[0], ids, aux, config["block_size"], config["mask_token_id"])
    w1, w2 = (weights[f"markov_head.markov_w{one}.weight"] for one in (1, 2))
    before, state = [int(ids[-1]), *drafted], torch.zeros(w1.shape[1])
    bias = torch.zeros(w1.shape[1])
    for slot, token in enumerate(before):
        read, hidden = w1[token], states[slot]
        if config["markov_head_type"] == "vanilla":
            bias = read
        elif config["markov_head_type"] == "gated":
            gate = F.linear(torch.cat((hidden, read)), weights["markov_head.gate_proj.weight"],
                            weights["markov_head.gate_proj.bias"])  # fmt: skip
            bias = gate.sigmoid() * read
        else:
            joint = F.linear(torch.cat((state, read, hidden)), weights["markov_head.joint_proj.weight"],
                             weights["markov_head.joint_proj.bias"])  # fmt: skip
            keep, new, out = joint.chunk(3)
            state = keep.sigmoid() * state + (1 - keep.sigmoid()) * new.tanh()
            bias = out.tanh()
    return F.linear(states[len(drafted)], ends[1]) + F.linear(bias, w2)


def confidence(weights: Weights, hidden: Tensor, token: int) -> Tensor:
    """Return the confidence head's logit for a slot's state and the token before it."""
    both = torch.cat((hidden, weights["markov_head.markov_w1.weight"][token]))
    return F.linear(both, weights["confidence_head.proj.weight"], weights["confidence_head.proj.bias"])


def eagle(config: Mapping[str, Any], weights: Weights, embedding: Tensor, ids: Tensor, last: Tensor,
          drafted: Sequence[int], output: Tensor) -> Tensor:  # fmt: skip
    """Return the logits of EAGLE-1 after `drafted`; `last` `[tokens, hidden]` are states after the verifier's norm.

    `output` is the verifier's head, which reads the draft's last state as it is.
    """

    def run(embeds: Tensor, hidden: Tensor) -> Tensor:
        x = F.linear(torch.cat((embeds, hidden), -1), weights["fc.weight"], weights.get("fc.bias"))
        for index in range(config["num_hidden_layers"]):
            x = plain_layer(x, weights, f"layers.{index}", config)
        return x

    embeds, hidden = embedding[ids[1:]], last[:-1]
    for token in drafted:
        state = run(embeds, hidden)[-1:]
        embeds, hidden = torch.cat((embeds, embedding[[token]])), torch.cat((hidden, state))
    return F.linear(run(embeds, hidden)[-1], output)


def mimo(config: Mapping[str, Any], weights: Weights, ends: tuple[Tensor, Tensor], ids: Tensor, last: Tensor,
         drafted: Sequence[int]) -> Tensor:  # fmt: skip
    """Return the logits of MiMo's MTP head after `drafted`; `last` are the verifier's states before its final norm.

    The head reads the state and, behind it, the token's embedding, which is zeros at position 0; then a Qwen2 layer.
    """
    name, eps = "model.mtp_layers.0", config["rms_norm_eps"]
    rope = {**config, "rope_theta": (config.get("rope_parameters") or config)["rope_theta"], "rope_scaling": None}

    def run(embeds: Tensor, hidden: Tensor) -> Tensor:
        embeds = embeds * (torch.arange(len(embeds)) > 0)[:, None]
        both = torch.cat((rms(hidden, weights[f"{name}.hidden_layernorm.weight"], eps),
                          rms(embeds, weights[f"{name}.token_layernorm.weight"], eps)), -1)  # fmt: skip
        x = plain_layer(F.linear(both, weights[f"{name}.input_proj.weight"]), weights, name, rope)
        return rms(x, weights[f"{name}.final_layernorm.weight"], eps)

    embeds, hidden = ends[0][ids[1:]], last[:-1]
    for token in drafted:
        state = run(embeds, hidden)[-1:]
        embeds, hidden = torch.cat((embeds, ends[0][[token]])), torch.cat((hidden, state))
    return F.linear(run(embeds, hidden)[-1], ends[1])

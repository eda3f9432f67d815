"""EAGLE-3 (Li et al. 2025, arXiv:2503.01840): the module as vLLM runs it, and its training step.

Row i of a document pairs the verifier's auxiliary states at position i with the token after it: (g_i, x_{i+1})
proposes x_{i+2}. At step k the draft reads x_{i+1+k} and its own state of step k-1 in place of g, and proposes
x_{i+2+k}; it stands at position i + k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms import decoder_config
from specc.core.errors import Exit, SpeccError
from specc.train.losses import DraftLoss, Head, wide
from specc.train.models.attention import Block, StepAttention, blocks
from specc.train.models.rows import Rows, Targets

PROPOSED = 512
"""Rows whose logits exist at once when tokens are proposed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a layer's later steps attend to, shapes as in `StepAttention`."""

    keys: Tensor
    values: Tensor
    own_keys: Tensor
    own_values: Tensor

    def keep(self, kept: Tensor) -> Memory:
        """Return the memory of some of the queries."""
        own = (self.own_keys.index_select(0, kept), self.own_values.index_select(0, kept))
        return Memory(self.keys, self.values, *own)


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of a step share.

    `angles` are cosines and sines `[inputs, 1, head size]`; `queries` which inputs the last layer goes on with
    (None: all); `where` the attention blocks of all inputs and `where_last` those of the queries.
    """

    number: int
    angles: tuple[Tensor, Tensor]
    queries: Tensor | None
    where: list[Block]
    where_last: list[Block]


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, arXiv:1910.07467), the mean taken in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed `x` `[..., size]` in its dtype."""
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight in the dtype of `x`; the inner values are fp32 or wider."""
    return unit_rms(x, eps) * weight


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) in the dtype of `x`; the inner values are fp32 or wider."""
    values = x.to(wide(x))
    return (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class FrozenInput(torch.autograd.Function):
    """(x * scale) W^T for an `x` that nothing is learnt from.

    The gradient of `scale` by way of that of `x * scale` is a product as large as the layer's own. With G = dy^T x,
    which the gradient of W asks for anyway, dW = G * scale and dscale = sum over outputs of W * G.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        """Return `[rows, outputs]` for `x` `[rows, inputs]`, `scale` `[inputs]` and `weight` `[outputs, inputs]`."""
        ctx.save_for_backward(x, scale, weight)
        return F.linear(x * scale, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `scale` and `weight`."""
        x, scale, weight = ctx.saved_tensors
        product = grads[0].t() @ x  # [outputs, inputs]
        return None, (weight * product).sum(0, dtype=wide(x)).to(scale.dtype), product * scale


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings (Su et al. 2021, arXiv:2104.09864) to `x` `[rows, heads, size]`, in halves."""
    cos, sin = angles
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Attention(nn.Module):
    """Grouped-query attention whose input is `width` wide."""

    def __init__(self, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.size = config["head_dim"]
        heads, groups = config["num_attention_heads"] * self.size, config["num_key_value_heads"] * self.size
        self.window: int | None = config["sliding_window"]
        self.q_proj = nn.Linear(width, heads, bias=False)
        self.k_proj = nn.Linear(width, groups, bias=False)
        self.v_proj = nn.Linear(width, groups, bias=False)
        self.o_proj = nn.Linear(heads, config["hidden_size"], bias=False)

    def forward(
        self, x: Tensor, step: Step, queries: Tensor | None, where: list[Block], memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Return `[queries, hidden]` and what the next step attends to; `x` `[inputs, width]`."""
        key = rotate(self.k_proj(x).unflatten(-1, (-1, self.size)), step.angles)  # [inputs, kv heads, size]
        value = self.v_proj(x).unflatten(-1, (-1, self.size))
        cos, sin = step.angles
        if queries is not None:
            x, cos, sin = x.index_select(0, queries), cos.index_select(0, queries), sin.index_select(0, queries)
        query = rotate(self.q_proj(x).unflatten(-1, (-1, self.size)), (cos, sin))
        if memory is None:
            none = key.new_zeros(len(query), 0, *key.shape[1:])
            now = Memory(key, value, none, none)
        else:
            # A window no longer than the unrolled steps forgets the query's own oldest keys too.
            newest = slice(-(self.window or step.number), None)
            own_keys = torch.cat((memory.own_keys, key[:, None]), 1)[:, newest]
            own_values = torch.cat((memory.own_values, value[:, None]), 1)[:, newest]
            now = Memory(memory.keys, memory.values, own_keys, own_values)
        out: Tensor = StepAttention.apply(query, now.keys, now.values, now.own_keys, now.own_values, where)  # pyright: ignore[reportAssignmentType] - apply is untyped
        return self.o_proj(out.flatten(1)), now


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[rows, hidden]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A decoder layer; the first also reads the token's embedding beside the hidden state."""

    def __init__(self, config: Mapping[str, Any], draft: Mapping[str, Any], index: int) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.norm_before_residual: bool = draft["norm_before_residual"]
        self.hidden_norm = RMSNorm(hidden, eps) if index == 0 else None
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(config, 2 * hidden if index == 0 else hidden)
        self.mlp = MLP(hidden, config["intermediate_size"])

    def forward(
        self, hidden: Tensor, embeds: Tensor, step: Step, memory: Memory | None, *, last: bool
    ) -> tuple[Tensor, Memory]:
        """Return `[queries, hidden]`, residual added, and the layer's memory; `last` if only queries go on."""
        residual = hidden
        if self.hidden_norm is None:
            x = self.input_layernorm(hidden)
        else:
            normed = self.hidden_norm(hidden)
            residual = normed if self.norm_before_residual else hidden
            x = torch.cat((self.input_layernorm(embeds), normed), -1)  # [inputs, 2 * hidden]
        queries = step.queries if last else None
        out, now = self.self_attn(x, step, queries, step.where_last if last else step.where, memory)
        if queries is not None:
            residual = residual.index_select(0, queries)
        residual = residual + out
        return residual + self.mlp(self.post_attention_layernorm(residual)), now


class Eagle3(nn.Module):
    """The draft model. Parameters carry the names of its checkpoint; what is frozen is no parameter.

    `embed_tokens` `[vocabulary, hidden]` and `head` are the verifier's own, in the dtype of the computation;
    `d2t` int64 `[draft vocabulary]` is the vocabulary map, None for the full vocabulary.
    """

    embed_tokens: Tensor

    def __init__(
        self,
        draft: Mapping[str, Any],
        verifier: Mapping[str, Any],
        *,
        embed_tokens: Tensor,
        head: Head,
        d2t: Tensor | None,
    ) -> None:
        super().__init__()
        config = decoder_config(draft, verifier)
        hidden, eps, aux = config["hidden_size"], config["rms_norm_eps"], len(draft["hidden_state_layers"])
        self.steps: int = draft["ttt"]["steps"]
        self.decay: float = draft["ttt"]["decay"]
        self.norm_output: bool = draft["norm_output"]
        self.window: int | None = draft["sliding_window"]
        self.input_norm = RMSNorm(aux * hidden, eps) if draft["norm_before_fc"] else None
        self.fc_norm = nn.ModuleList(RMSNorm(hidden, eps) for _ in range(aux)) if draft["fc_norm"] else None
        self.fc = nn.Linear(aux * hidden, hidden, bias=False)
        self.layers = nn.ModuleList(Layer(config, draft, index) for index in range(draft["layers"]))
        self.norm = RMSNorm(hidden, eps)
        # Plain attributes, so that neither DeepSpeed nor `.to` copies, casts or partitions them.
        self.embed_tokens = embed_tokens
        self.head = head
        self.d2t = d2t
        self.frequencies, self.rotary_scale = rotary_frequencies(config)

    def fuse(self, aux: Tensor) -> Tensor:
        """Return `[rows, hidden]` for auxiliary states `[rows, aux * hidden]`."""
        if self.input_norm is not None:
            return FrozenInput.apply(unit_rms(aux, self.input_norm.eps), self.input_norm.weight, self.fc.weight)
        if self.fc_norm is not None:
            parts = aux.chunk(len(self.fc_norm), -1)
            aux = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        return self.fc(aux)

    def unroll(self, rows: Rows) -> list[Tensor]:
        """Return the final, normed states `[queries of the step, hidden]` of every step."""
        hidden = self.fuse(rows.aux)
        memories: list[Memory | None] = [None] * len(self.layers)
        last = len(self.layers) - 1
        everything = torch.arange(len(rows.positions))
        states: list[Tensor] = []
        inputs = everything
        for number, queries in enumerate(rows.queries):
            step = Step(
                number,
                self.angles(rows.positions[inputs] + number, hidden.dtype),
                queries if number == 0 else None,
                blocks(inputs, rows.documents, number, self.window) if last or number else [],
                blocks(queries, rows.documents, number, self.window) if number == 0 else [],
            )
            embeds = F.embedding(rows.tokens[inputs + number], self.embed_tokens)
            for index, layer in enumerate(self.layers):
                hidden, memories[index] = layer(
                    hidden, embeds, step, memories[index], last=number == 0 and index == last
                )
            normed = self.norm(hidden)
            states.append(normed)
            if number + 1 < len(rows.queries):
                # Later queries are some of these: the states and own keys of the others are done with.
                inputs = rows.queries[number + 1]
                kept = torch.searchsorted(queries, inputs)
                hidden = (normed if self.norm_output else hidden).index_select(0, kept)
                memories = [memory and memory.keep(kept) for memory in memories]
        return states

    def forward(self, rows: Rows, targets: Targets, weights: Mapping[str, float]) -> Tensor:
        """Return the training loss: sum over steps k of decay^k times the mean over the targets that k counts.

        Of several ranks each returns its targets' part of it.
        """
        losses, _ = self.losses(rows, targets, weights, picks=False)
        scale = losses.new_tensor([self.decay**k / max(1, n) for k, n in enumerate(targets.counts)])
        return (losses * targets.counted * scale[:, None]).sum()

    def losses(
        self, rows: Rows, targets: Targets, weights: Mapping[str, float], *, picks: bool
    ) -> tuple[Tensor, Tensor]:
        """Return losses and, with `picks`, the proposed draft tokens, both `[steps, targets]`.

        Where `targets.counted` is false the values mean nothing.
        """
        states = torch.stack(
            [state.index_select(0, where) for state, where in zip(self.unroll(rows), targets.places, strict=True)]
        )  # [steps, targets, hidden]
        return DraftLoss.apply(states, targets.normed, self.head, weights, picks)  # pyright: ignore[reportReturnType]

    def propose(self, states: Tensor) -> Tensor:
        """Return the verifier's ids, int64 `[rows]`, of the draft tokens proposed by final states `[rows, hidden]`."""
        chunks = [(chunk @ self.head.weight.t()).argmax(-1) for chunk in states.split(PROPOSED)]
        return self.to_verifier(torch.cat(chunks) if chunks else states.new_zeros(0, dtype=torch.int64))

    def to_verifier(self, tokens: Tensor) -> Tensor:
        """Return the verifier's ids of draft tokens: `i + d2t[i]`."""
        return tokens if self.d2t is None else tokens + self.d2t[tokens]

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return rotary cosines and sines `[rows, 1, head size]`."""
        turns = positions[:, None].to(self.frequencies.dtype) * self.frequencies  # [rows, head size / 2]
        both = torch.cat((turns, turns), -1)[:, None]
        return (both.cos() * self.rotary_scale).to(dtype), (both.sin() * self.rotary_scale).to(dtype)


def rotary_frequencies(config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Return fp32 frequencies `[head size / 2]` and the scale of the angles, as transformers computes them.

    Raises `SpeccError` for kinds whose frequencies depend on a sequence's length: vLLM chooses one of them
    when it is started, and training cannot know which.
    """
    kind = config["rope_parameters"].get("rope_type", "default")
    if kind in {"dynamic", "longrope"}:
        raise SpeccError(
            f"rotary embeddings of type `{kind}` change with the sequence's length",
            hint="use a verifier with `default`, `linear`, `llama3` or `yarn` rotary embeddings",
            code=Exit.INPUT,
        )
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    with torch.device("cpu"):  # a module made without memory still needs their values
        rotary = LlamaRotaryEmbedding(LlamaConfig(**config))
    return rotary.inv_freq.to(torch.float32).clone(), float(rotary.attention_scaling)

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
from specc.train.layers import MLP, FrozenInput, RMSNorm, Rotary, rotate, unit_rms
from specc.train.models.attention import Block, Own, StepAttention, blocks
from specc.train.models.base import DraftModel, Reading
from specc.train.models.rows import Rows
from specc.train.models.unrolled import Unrolled


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
    (None: all); `where` the attention blocks of all inputs and `where_last` those of the queries. `own` are the inputs'
    own keys where they are among the inputs of this step (P-EAGLE); else the ones of earlier steps and of this.
    """

    number: int
    angles: tuple[Tensor, Tensor]
    queries: Tensor | None
    where: list[Block]
    where_last: list[Block]
    own: Own | None = None


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
        norms = config["model_type"] == "qwen3"
        self.q_norm, self.k_norm = (RMSNorm(self.size, config["rms_norm_eps"]) if norms else None for _ in "qk")

    def forward(
        self, x: Tensor, step: Step, queries: Tensor | None, where: list[Block], memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Return `[queries, hidden]` and what the next step attends to; `x` `[inputs, width]`."""
        key = self.k_proj(x).unflatten(-1, (-1, self.size))  # [inputs, kv heads, size]
        key = rotate(key if self.k_norm is None else self.k_norm(key), step.angles)
        value = self.v_proj(x).unflatten(-1, (-1, self.size))
        cos, sin = step.angles
        if queries is not None:
            x, cos, sin = x.index_select(0, queries), cos.index_select(0, queries), sin.index_select(0, queries)
        query = self.q_proj(x).unflatten(-1, (-1, self.size))
        query = rotate(query if self.q_norm is None else self.q_norm(query), (cos, sin))
        if memory is None:
            none = key.new_zeros(len(query), 0, *key.shape[1:])
            now = Memory(key, value, none, none)
        elif step.own is not None:
            now = Memory(memory.keys, memory.values, step.own.of(key), step.own.of(value.expand_as(key)))
        else:
            # A window no longer than the unrolled steps forgets the query's own oldest keys too.
            newest = slice(-(self.window or step.number), None)
            own_keys = torch.cat((memory.own_keys, key[:, None]), 1)[:, newest]
            own_values = torch.cat((memory.own_values, value[:, None]), 1)[:, newest]
            now = Memory(memory.keys, memory.values, own_keys, own_values)
        mask = None if step.own is None else step.own.mask[:, None]  # [inputs, 1, own]
        out: Tensor = StepAttention.apply(query, now.keys, now.values, now.own_keys, now.own_values, where, mask)  # pyright: ignore[reportAssignmentType] - apply is untyped
        return self.o_proj(out.flatten(1)), now


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


class Fusion(DraftModel):
    """A decoder over fused hidden states: what EAGLE-3 and P-EAGLE share."""

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__()
        config = decoder_config(draft, verifier)
        hidden, eps, aux = config["hidden_size"], config["rms_norm_eps"], len(draft["hidden_state_layers"])
        self.window: int | None = draft["sliding_window"]
        self.input_norm = RMSNorm(aux * hidden, eps) if draft["norm_before_fc"] else None
        self.fc_norm = nn.ModuleList(RMSNorm(hidden, eps) for _ in range(aux)) if draft.get("fc_norm") else None
        self.fc = nn.Linear(aux * hidden, hidden, bias=False)
        self.layers = nn.ModuleList(Layer(config, draft, index) for index in range(draft["layers"]))
        self.norm = RMSNorm(hidden, eps)
        self.rotary = Rotary(config)

    def fuse(self, aux: Tensor) -> Tensor:
        """Return `[rows, hidden]` for auxiliary states `[rows, aux * hidden]`."""
        if self.input_norm is not None:
            return FrozenInput.apply(unit_rms(aux, self.input_norm.eps), self.input_norm.weight, self.fc.weight)
        if self.fc_norm is not None:
            parts = aux.chunk(len(self.fc_norm), -1)
            aux = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        return self.fc(aux)


class Eagle3(Unrolled, Fusion):
    """The draft model."""

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__(draft, verifier)
        self.steps: int = draft["ttt"]["steps"]
        self.coefficients = [draft["ttt"]["decay"] ** step for step in range(self.steps)]
        self.norm_output: bool = draft["norm_output"]

    def read(self, document: Reading) -> Tensor:
        """Return the auxiliary states of a document's tokens, side by side."""
        return document.aux.flatten(1).to(self.embed_tokens.dtype)

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
                self.rotary(rows.positions[inputs] + number, hidden.dtype),
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

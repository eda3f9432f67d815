"""MTP (DeepSeek-AI 2024, arXiv:2412.19437, section 2.2): a verifier's own head as vLLM runs it, and its training step.

Row i of a document pairs the verifier's last state at position i with the token after it: (h_i, x_{i+1}) proposes
x_{i+2}. At step k the head reads x_{i+1+k} and its own final state of step k-1 in place of h, proposes x_{i+2+k}, and
stands at position i + k. Served, it has the keys of step 0 up to row i, and its own of steps 1..k, as in
`specc.train.models.attention`. A document of five tokens, rows 1 and 2 of two steps:

                 keys of step 0
                 0 1 2 3    own
    step 0  1    x x . .            reads h_1, x_2, proposes x_3
            2    x x x .            reads h_2, x_3, proposes x_4
    step 1  1    x x . .    x       reads its state of step 0 and x_3, proposes x_4
            2    x x x .    x       reads its state of step 0 and x_4, proposes x_5
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms.mtp import head_of, layout, pieces
from specc.core.errors import Exit, SpeccError
from specc.core.verifiers import tensor_files
from specc.train.layers import MLP, Rotary, rotate, unit_rms
from specc.train.losses import wide
from specc.train.models.attention import StepAttention, blocks
from specc.train.models.base import Reading
from specc.train.models.eagle3 import Memory, Step
from specc.train.models.rows import Rows
from specc.train.models.unrolled import Unrolled
from specc.train.verifier import Frozen

AXES: Final = ("mrope_section", "mrope_interleaved")
"""Rotary parameters of positions with several axes: all the same in text."""


class Norm(nn.Module):
    """x / rms(x) * (offset + weight): the gain is the weight, or 1 more than it."""

    def __init__(self, size: int, eps: float, *, unit_offset: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.unit_offset = eps, unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed `x` `[..., size]` in its dtype."""
        if not self.unit_offset:
            return unit_rms(x, self.eps) * self.weight
        values = unit_rms(x.to(wide(x)), self.eps)
        return (values * (1 + self.weight.to(values.dtype))).to(x.dtype)


class Experts(nn.Module):
    """SwiGLU experts, the matrices of all in two tensors."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, inner, count = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, inner))

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Return `[rows, hidden]`; `chosen` int64 and `shares` `[rows, experts of a row]`."""
        out = torch.zeros_like(x)
        # Taken apart once: a gradient by way of an index is as large as the matrices of all.
        gates, downs = self.gate_up_proj.unbind(), self.down_proj.unbind()
        for expert in chosen.unique().tolist():
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[rows], gates[expert]).chunk(2, -1)  # [its rows, inner]
            found = F.linear(F.silu(gate) * up, downs[expert])
            out = out.index_add(0, rows, found * shares[rows, places, None])
        return out


class Sparse(nn.Module):
    """Qwen's sparse feed-forward part: each row's best experts by its router, and one expert of all rows."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.gate = nn.Linear(hidden, config["num_experts"], bias=False)
        self.experts = Experts(config)
        self.shared_expert = MLP(hidden, config["shared_expert_intermediate_size"])
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)
        self.best: int = config["num_experts_per_tok"]
        self.normalised: bool = config["norm_topk_prob"]

    def forward(self, x: Tensor) -> Tensor:
        """Return `[rows, hidden]`."""
        shares, chosen = self.gate(x).softmax(-1, dtype=wide(x)).topk(self.best, -1)  # [rows, experts of a row]
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        own = torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return self.experts(x, chosen, shares.to(x.dtype)) + own


class Attention(nn.Module):
    """Grouped-query attention with what families add: biases, or norms of heads, an output gate, and a partial turn."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        head, hidden, eps = head_of(config), config["hidden_size"], config["rms_norm_eps"]
        self.size: int = config["head_dim"]
        self.gated = head.gated
        heads, groups = config["num_attention_heads"] * self.size, config["num_key_value_heads"] * self.size
        self.q_proj = nn.Linear(hidden, heads * (1 + head.gated), bias=head.bias)
        self.k_proj = nn.Linear(hidden, groups, bias=head.bias)
        self.v_proj = nn.Linear(hidden, groups, bias=head.bias)
        self.o_proj = nn.Linear(heads, hidden, bias=False)
        self.q_norm, self.k_norm = (
            Norm(self.size, eps, unit_offset=head.unit_offset) if head.gated else None for _ in "qk"
        )

    def forward(self, x: Tensor, step: Step, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Return `[queries, hidden]` and what the next step attends to; `x` `[inputs, hidden]`."""
        key = self.k_proj(x).unflatten(-1, (-1, self.size))  # [inputs, kv heads, size]
        key = turn(key if self.k_norm is None else self.k_norm(key), step.angles)
        value = self.v_proj(x).unflatten(-1, (-1, self.size))
        angles = step.angles
        if step.queries is not None:
            x = x.index_select(0, step.queries)
            angles = (angles[0].index_select(0, step.queries), angles[1].index_select(0, step.queries))
        query = self.q_proj(x).unflatten(-1, (-1, self.size * (1 + self.gated)))  # [queries, heads, size or twice]
        query, gate = query.chunk(2, -1) if self.gated else (query, None)
        query = turn(query if self.q_norm is None else self.q_norm(query), angles)
        if memory is None:
            none = key.new_zeros(len(query), 0, *key.shape[1:])
            now = Memory(key, value, none, none)
        else:
            own_keys = torch.cat((memory.own_keys, key[:, None]), 1)
            own_values = torch.cat((memory.own_values, value[:, None]), 1)
            now = Memory(memory.keys, memory.values, own_keys, own_values)
        out: Tensor = StepAttention.apply(query, now.keys, now.values, now.own_keys, now.own_values, step.where)  # pyright: ignore[reportAssignmentType] - apply is untyped
        if gate is not None:
            out = out * torch.sigmoid(gate)
        return self.o_proj(out.flatten(1)), now


def turn(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings to the first values of each head, as many as there are angles; `x` `[rows, heads, size]`.

    The others pass, as in GPT-NeoX (Black et al. 2022, arXiv:2204.06745, section 2.1).
    """
    size = angles[0].shape[-1]
    return rotate(x, angles) if size == x.shape[-1] else torch.cat((rotate(x[..., :size], angles), x[..., size:]), -1)


class Head(nn.Module):
    """The head: two norms, their fusion, a decoder layer, a norm."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        family, hidden, eps = head_of(config), config["hidden_size"], config["rms_norm_eps"]
        self.embedding_first, self.blind_start = family.embedding_first, family.blind_start

        def norm() -> Norm:
            return Norm(hidden, eps, unit_offset=family.unit_offset)

        self.token_layernorm, self.hidden_layernorm, self.final_layernorm = norm(), norm(), norm()
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.input_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.self_attn = Attention(config)
        self.mlp = Sparse(config) if config.get("num_experts") else MLP(hidden, config["intermediate_size"])

    def forward(
        self, hidden: Tensor, embeds: Tensor, positions: Tensor, step: Step, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Return the final, normed states `[queries, hidden]` and what the next step attends to.

        `hidden` and `embeds` `[inputs, hidden]`; `positions` int64 `[inputs]`.
        """
        if self.blind_start:
            embeds = embeds.masked_fill((positions == 0)[:, None], 0)
        token, state = self.token_layernorm(embeds), self.hidden_layernorm(hidden)
        both = (token, state) if self.embedding_first else (state, token)
        residual = self.input_proj(torch.cat(both, -1))  # [inputs, hidden]
        out, now = self.self_attn(self.input_layernorm(residual), step, memory)
        if step.queries is not None:
            residual = residual.index_select(0, step.queries)
        residual = residual + out
        residual = residual + self.mlp(self.post_attention_layernorm(residual))
        return self.final_layernorm(residual), now


class Mtp(Unrolled):
    """The draft model: one head, whatever the number of steps."""

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__()
        self.steps: int = draft["steps"]
        weights = [draft["decay"] ** step for step in range(self.steps)]
        self.coefficients = [weight / sum(weights) for weight in weights]
        self.reads_normed = head_of(verifier).reads_normed
        self.normed: Callable[[Tensor], Tensor]
        self.mtp_layers = nn.ModuleList([Head(verifier)])
        self.rotary = Rotary(rotary_config(verifier))

    def share(self, frozen: Frozen, d2t: Tensor | None) -> None:
        """Take the verifier's parts, its final norm too."""
        super().share(frozen, d2t)
        self.normed = frozen.normed

    @classmethod
    def native(cls, draft: Mapping[str, Any], verifier: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
        """Return the verifier's own head, fp32; raises `SpeccError` if its folder has none that is whole."""
        files = tensor_files(folder)
        weights: dict[str, Tensor] = {}
        parts = pieces(verifier, files.keys())
        for spec in layout(draft, verifier):
            whole = torch.empty(spec.shape)
            for piece in parts[spec.name]:
                found = _read(files, piece.name, piece.shape, folder)
                target = whole if piece.expert is None else whole[piece.expert]
                target[slice(*piece.rows) if piece.rows else slice(None)] = found
            weights[spec.name] = whole
        return weights

    def read(self, document: Reading) -> Tensor:
        """Return the verifier's last states as it hands them to the head."""
        return self.states(document.last)

    def states(self, last: Tensor) -> Tensor:
        """Return what the head reads of the verifier's last states `[rows, hidden]`, in the computation's dtype."""
        return self.normed(last) if self.reads_normed else last.to(self.embed_tokens.dtype)

    def unroll(self, rows: Rows) -> list[Tensor]:
        """Return the final, normed states `[queries of the step, hidden]` of every step."""
        head, hidden, memory = self.mtp_layers[0], rows.aux, None
        inputs, states = torch.arange(len(rows.positions)), list[Tensor]()
        for number, queries in enumerate(rows.queries):
            positions = rows.positions[inputs] + number
            where = blocks(queries, rows.documents, number, None)
            angles = self.rotary(positions, hidden.dtype)
            step = Step(number, angles, queries if number == 0 else None, where, where)
            embeds = F.embedding(rows.tokens[inputs + number], self.embed_tokens)
            hidden, memory = head(hidden, embeds, positions, step, memory)
            states.append(hidden)
            if number + 1 < len(rows.queries):
                # Later queries are some of these: the states and own keys of the others are done with.
                inputs = rows.queries[number + 1]
                kept = torch.searchsorted(queries, inputs)
                hidden, memory = hidden.index_select(0, kept), memory.keep(kept)
        return states


def rotary_config(verifier: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the head's angles are made from: heads of the size that turns, positions of one axis."""
    rope = {key: value for key, value in verifier["rope_parameters"].items() if key not in AXES}
    share = rope.pop("partial_rotary_factor", verifier.get("partial_rotary_factor", 1.0))
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    size = int(verifier["head_dim"] * share)
    return {**{name: verifier[name] for name in names}, "head_dim": size, "rope_parameters": rope}


def _read(files: Mapping[str, Path], name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    """Return a tensor of the verifier's head; raises `SpeccError` if it is not there, or not as it should be."""
    if name not in files:
        raise SpeccError(
            f"the verifier has no tensor `{name}`",
            where=str(folder),
            hint="its MTP head is what training starts from; set `draft.init`, or take a checkpoint that has the head",
            code=Exit.STAGE,
        )
    with safe_open(files[name], framework="pt") as file:
        found: Tensor = file.get_tensor(name)
    if tuple(found.shape) != shape or not found.is_floating_point() or found.element_size() == 1:
        raise SpeccError(
            f"the verifier's tensor `{name}` is {list(found.shape)} of {str(found.dtype).removeprefix('torch.')}, and"
            f" {list(shape)} of floats is needed",
            where=str(folder),
            hint="use a verifier whose MTP head is not quantised",
            code=Exit.STAGE,
        )
    return found

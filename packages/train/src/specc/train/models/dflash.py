"""DFlash (Chen et al. 2026, arXiv:2602.06036): the module as vLLM runs it, and its training step.

A block is its anchor's token and masks after it. The verifier's states of the positions before the anchor, fused and
normed, give keys and values to every layer, by the projections of the block's own; the block's tokens are the only
queries. Slot k stands at position p + k of a block at the anchor p and proposes x_{p+k}, or x_{p+k+1} if the
anchor's slot proposes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms.dflash import causal, decoder
from specc.train.layers import MLP, RMSNorm, Rotary, rotate
from specc.train.losses import LossValues, draft_losses
from specc.train.models.attention import StepAttention
from specc.train.models.base import DraftModel, Reading
from specc.train.models.block import (
    Anchors,
    Blocks,
    Sight,
    Targets,
    anchors_of,
    blocks_at,
    dpace,
    draw,
    exponential,
    looks,
    own_mask,
    pack,
)

DRAFTED: Final = 64
"""Blocks that are drafted at once in validation."""


class Attention(nn.Module):
    """Grouped-query attention of a block's slots over the context's rows and the block itself."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps, self.size = config["hidden_size"], config["rms_norm_eps"], config["head_dim"]
        heads, groups = config["num_attention_heads"] * self.size, config["num_key_value_heads"] * self.size
        self.q_proj = nn.Linear(hidden, heads, bias=False)
        self.k_proj = nn.Linear(hidden, groups, bias=False)
        self.v_proj = nn.Linear(hidden, groups, bias=False)
        self.o_proj = nn.Linear(heads, hidden, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.size, eps), RMSNorm(self.size, eps)

    def forward(self, x: Tensor, context: Tensor, sight: Sight) -> Tensor:
        """Return `[blocks * slots, hidden]` for slots `x` of the same shape and `context` `[rows, hidden]`."""
        query = rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.size))), sight.angles)
        keys, values = self.memory(context, sight.context)  # [rows, kv heads, size]
        own_keys, own_values = (  # [blocks, slots, kv heads, size]
            one.unflatten(0, (-1, sight.slots)) for one in self.memory(x, sight.angles)
        )
        out: Tensor = StepAttention.apply(query, keys, values, own_keys, own_values, sight.where, sight.own)  # pyright: ignore[reportAssignmentType] - apply is untyped
        return self.o_proj(out.flatten(1))

    def memory(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return keys and values `[rows, kv heads, size]` of `x` `[rows, hidden]`."""
        keys, values = (one(x).unflatten(-1, (-1, self.size)) for one in (self.k_proj, self.v_proj))
        return rotate(self.k_norm(keys), angles), values


class Layer(nn.Module):
    """A decoder layer; `attend` and `feed` are its two parts, for others to wrap."""

    def __init__(self, config: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.self_attn = Attention(config)
        self.mlp = MLP(hidden, config["intermediate_size"])

    def forward(self, hidden: Tensor, context: Tensor, sight: Sight) -> Tensor:
        """Return `[blocks * slots, hidden]`, residual added."""
        hidden = hidden + self.attend(self.input_layernorm(hidden), context, sight)
        return hidden + self.feed(self.post_attention_layernorm(hidden), sight)

    def attend(self, x: Tensor, context: Tensor, sight: Sight) -> Tensor:
        """Return what attention adds, `[blocks * slots, hidden]`, for normed `x` of that shape."""
        return self.self_attn(x, context, sight)

    def feed(self, x: Tensor, sight: Sight) -> Tensor:
        """Return what the feed-forward part adds, `[blocks * slots, hidden]`, for normed `x` of that shape."""
        return self.mlp(x)


class DFlash(DraftModel):
    """The draft model, and what others of its family extend.

    `layer` is the class of the decoder layers, whose `attend` and `feed` see the slots of a block one after another
    (`x.unflatten(0, (-1, sight.slots))`). `states` are final and normed, `[blocks, slots, hidden]`. What a block
    proposes is told twice: by `decode`, all of it greedily, and by `following`, the logits after some drafted tokens.
    A training step is `compare`, the losses of the counted slots, and `weights`, what each counts for; `terms` puts
    them together, and one with further terms appends to what it returns and to `coefficients`.
    """

    layer: ClassVar[type[Layer]] = Layer

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__()
        config = decoder(draft, verifier)
        hidden, eps, aux = config["hidden_size"], config["rms_norm_eps"], len(draft["hidden_state_layers"])
        self.slots: int = draft["block_size"]
        self.ahead = int(draft["sample_from_anchor"])
        self.window: int | None = draft["sliding_window"]
        self.causal = causal(draft)
        self.mask_token: int = draft["mask_token"]
        self.anchors: int = draft["anchors"]
        self.position_weights: Mapping[str, Any] = draft["position_weights"]
        self.coefficients = [1.0]
        self.fc = nn.Linear(aux * hidden, hidden, bias=False)
        self.hidden_norm = RMSNorm(hidden, eps)
        self.layers = nn.ModuleList(self.layer(config, draft) for _ in range(draft["layers"]))
        self.norm = RMSNorm(hidden, eps)
        self.rotary = Rotary(config)

    def choose(self, masks: Sequence[Tensor], random: torch.Generator) -> list[Anchors]:
        """Return each document's anchors, drawn if the step has too many."""
        return draw([anchors_of(mask) for mask in masks], self.anchors, random)

    def pack(
        self, documents: Sequence[Reading], chosen: Sequence[Anchors], normed: Callable[[Tensor], Tensor]
    ) -> tuple[Blocks, Targets]:
        """Return the documents' blocks and their targets."""
        return pack(documents, chosen, normed, slots=self.slots, ahead=self.ahead, dtype=self.embed_tokens.dtype)

    def states(self, blocks: Blocks) -> Tensor:
        """Return the final, normed states `[blocks, slots, hidden]`."""
        context = self.hidden_norm(self.fc(blocks.aux))  # [rows, hidden]
        tokens = torch.full((len(blocks.tokens), blocks.slots), self.mask_token)
        tokens[:, 0] = blocks.tokens
        hidden = F.embedding(tokens.flatten(), self.embed_tokens)  # [blocks * slots, hidden]
        positions = (blocks.places[:, None] + torch.arange(blocks.slots)).flatten()
        sight = Sight(
            slots=blocks.slots,
            angles=self.rotary(positions, hidden.dtype),
            context=self.rotary(blocks.positions, hidden.dtype),
            where=looks(blocks, self.window),
            own=own_mask(blocks.slots, self.window, causal=self.causal),
        )
        for layer in self.layers:
            hidden = layer(hidden, context, sight)
        return self.norm(hidden).unflatten(0, (-1, blocks.slots))

    def terms(self, content: tuple[Blocks, Targets], losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the sum of the counted slots' losses, each by its weight, and the sum of the weights."""
        blocks, targets = content
        values = self.compare(self.states(blocks), targets, losses)
        weights = self.weights(values.ce, targets)
        return (values.losses[0] * weights).sum()[None], weights.sum()[None]

    def compare(
        self, states: Tensor, targets: Targets, losses: Mapping[str, float], *, details: bool = False, **low_rank: Any
    ) -> LossValues:
        """Return the losses of the counted slots, `[1, targets]`, given all `states` `[blocks, slots, hidden]`.

        `low_rank` are the `factors` `[1, targets, rank]` and the `readout` of `draft_losses`. `details` are there
        whenever the position weights need them.
        """
        own = states.flatten(0, 1).index_select(0, targets.slots)  # [targets, hidden]
        details = details or self.position_weights["name"] == "dpace"
        return draft_losses(own[None], targets.normed, self.head, losses, details=details, **low_rank)

    def weights(self, ce: Tensor, targets: Targets) -> Tensor:
        """Return what the counted slots' losses count for, `[targets]`, given `ce` `[1, targets]` of `compare`."""
        match self.position_weights:
            case {"name": "dpace", "alpha": alpha}:
                whole = ce.new_zeros(targets.counted.shape)  # [blocks, slots]
                whole[targets.counted] = ce.detach()[0, targets.valid]
                every = dpace(whole, targets.counted, alpha)
            case {"name": "exponential", "gamma": gamma}:
                every = targets.counted * exponential(self.slots, self.ahead, gamma).to(ce.dtype)
            case _:
                every = targets.counted.to(ce.dtype)
        return every.flatten()[targets.slots] * targets.valid

    def guesses(self, document: Reading, steps: int) -> Tensor:
        """Return the greedy drafts of blocks of as many slots as `steps` tokens take, as vLLM makes them."""
        count = len(document)
        found = torch.full((count, steps), -1)
        for first in range(1, count, DRAFTED):
            places = torch.arange(first, min(first + DRAFTED, count))
            blocks = blocks_at(document, places, steps + 1 - self.ahead, self.embed_tokens.dtype)
            found[places - 1] = self.decode(self.states(blocks), blocks.tokens)
        known = torch.arange(count)[:, None] + 1 + torch.arange(steps) < count  # the token before is there
        return torch.where(known, found, -1)

    def logits(self, document: Reading, drafted: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits after `drafted` in a draft of `steps` tokens; as many as in training by default.

        The number matters: the slots of a block see each other, also those that are not yet drafted.
        """
        slots = self.slots if steps is None else steps + 1 - self.ahead
        place = torch.tensor([len(document) - 1])
        states = self.states(blocks_at(document, place, slots, self.embed_tokens.dtype))
        return self.following(states[0], torch.cat((document.ids[-1:], drafted)))

    def draft(self, document: Reading, steps: int) -> Tensor:
        """Return the greedy draft of a block of as many slots as `steps` tokens take, int64 `[steps]`."""
        place = torch.tensor([len(document) - 1])
        blocks = blocks_at(document, place, steps + 1 - self.ahead, self.embed_tokens.dtype)
        return self.decode(self.states(blocks), blocks.tokens)[0]

    def decode(self, states: Tensor, anchors: Tensor) -> Tensor:
        """Return the greedy drafts of blocks, as the verifier's ids, int64 `[blocks, drafted]`.

        `states` `[blocks, slots, hidden]` are those of all slots, `anchors` int64 `[blocks]` the anchors' tokens.
        """
        drafted = states[:, 1 - self.ahead :]
        return self.propose(drafted.flatten(0, 1)).view(drafted.shape[:2])

    def following(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits `[draft vocabulary]` of the token after `tokens`, int64, the anchor and what was drafted.

        `states` `[slots, hidden]` are the block's.
        """
        return states[len(tokens) - self.ahead] @ self.head.weight.t()

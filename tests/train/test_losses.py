"""The fused losses against plain torch, and their gradients in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from specc.core.errors import SpeccError  # noqa: E402
from specc.train.losses import CHUNK, DraftLoss, Head, check_losses  # noqa: E402
from train.world import stream  # noqa: E402

pytestmark = pytest.mark.engine
WEIGHTS = [{"kl": 1.0}, {"ce": 1.0}, {"tv": 1.0}, {"kl": 0.3, "ce": 0.1, "tv": 2.0}]


def inputs(steps: int, targets: int, hidden: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = stream(1)
    shapes = ((steps, targets, hidden), (targets, hidden), (vocabulary, hidden))
    states, normed, head = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return states, normed, head


def plain(states: Tensor, normed: Tensor, head: Tensor, weights: dict[str, float], cap: float | None) -> Tensor:
    raw = normed @ head.T
    log_p = (raw if cap is None else cap * torch.tanh(raw / cap)).log_softmax(-1).expand(len(states), -1, -1)
    log_q = (states @ head.T).log_softmax(-1)
    found = {
        "kl": F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1),
        "ce": F.cross_entropy(log_q.flatten(0, 1), log_p.argmax(-1).flatten(), reduction="none").view(log_q.shape[:2]),
        "tv": (log_p.exp() - log_q.exp()).abs().sum(-1) / 2,
    }
    return sum((weight * found[name] for name, weight in weights.items()), torch.zeros(()))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("cap", [None, 3.0])
def test_losses_equal_plain_torch(weights: dict[str, float], cap: float | None) -> None:
    states, normed, head = inputs(3, CHUNK + 5, 8, 40)
    found, picks = DraftLoss.apply(states, normed, Head(head, cap=cap), weights, True)
    assert torch.allclose(found, plain(states, normed, head, weights, cap), atol=1e-12)
    assert torch.equal(picks, (states @ head.T).argmax(-1))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradients(weights: dict[str, float]) -> None:
    states, normed, head = inputs(2, 5, 6, 17)

    def function(states: Tensor) -> Tensor:
        return DraftLoss.apply(states, normed, Head(head, scale=0.7), weights, False)[0]

    assert torch.autograd.gradcheck(function, states.requires_grad_())


def test_low_precision_stays_near() -> None:
    states, normed, head = inputs(3, 70, 64, 500)
    half = [tensor.bfloat16() for tensor in (states, normed, head / 8)]
    found, _ = DraftLoss.apply(half[0], half[1], Head(half[2]), {"kl": 1.0}, False)
    assert found.dtype == torch.float32
    expected = plain(*(tensor.double() for tensor in half), {"kl": 1.0}, None)
    assert torch.allclose(found.double(), expected, atol=0.05)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(SpeccError, match="no loss `mse`"):
        check_losses({"kl": 1.0, "mse": 1.0})


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere-like"])
def test_targets_are_the_verifiers_own_logits(family: str, tmp_path: Path) -> None:
    """Norm, tying, soft cap and scale: log p equals the model's own log-softmax, for a full draft vocabulary."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from specc.train.verifier import read_verifier

    sizes: dict[str, Any] = {
        "vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.5,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
        elif family == "gemma2":
            model = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=2.0))
        else:
            model = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0, tie_word_embeddings=True))
        with torch.no_grad():
            for parameter in model.model.norm.parameters():
                parameter.add_(torch.rand(32))
    model.eval().save_pretrained(tmp_path)
    config = sizes | {"rms_norm_eps": model.config.rms_norm_eps, "tie_word_embeddings": family != "llama"}
    frozen = read_verifier(tmp_path, config, None, torch.float32)
    before: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, arguments: before.append(arguments[0]))
    with torch.no_grad():
        logits = model(torch.tensor([[1, 5, 9, 33]])).logits[0]
    found = frozen.head.verifier_logits(frozen.normed(before[0][0]) @ frozen.head.weight.T)
    assert torch.allclose(found.log_softmax(-1), logits.log_softmax(-1), atol=1e-5)

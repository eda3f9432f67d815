"""What training takes from a verifier of each family gives the model's own logits and embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

import small  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.core.resolve.families import FAMILIES, INSIDE  # noqa: E402
from specc.core.resolve.huggingface import config_facts  # noqa: E402
from specc.export.weights import shared_embedding  # noqa: E402
from specc.train.verifier import read_verifier  # noqa: E402

pytestmark = pytest.mark.engine
TOKENS = torch.tensor([[1, 5, 9, 33, 79]])
EXPECTED: dict[str, dict[str, Any]] = {
    "cohere": {"norm": "layernorm", "logit_scale": 0.25},
    "cohere2": {"norm": "layernorm", "logit_scale": 0.25},
    "gemma": {"norm": "gemma", "embedding_scale": 24**0.5},
    "gemma2": {"norm": "gemma", "embedding_scale": 24**0.5, "logit_softcap": 3.0},
    "gemma3_text": {"norm": "gemma", "embedding_scale": 24**0.5, "logit_softcap": 3.0},
    "granite": {"logit_scale": 1 / 3},
    "mimo": {"num_nextn_predict_layers": 1},
    "qwen3_5": {"norm": "gemma", "partial_rotary_factor": 0.25},
    "qwen3_5_moe": {"norm": "gemma", "partial_rotary_factor": 0.25},
    "qwen3_5_moe_text": {"norm": "gemma", "partial_rotary_factor": 0.25},
    "qwen3_5_text": {"norm": "gemma", "partial_rotary_factor": 0.25},
    "qwen3_next": {"norm": "gemma", "partial_rotary_factor": 0.25},
}
"""What the facts of each model of `small.make_family` have that Llama's have not; nothing for the others."""
OF_LOGITS = {"norm", "logit_scale", "logit_softcap"}
OWN = OF_LOGITS | {"embedding_scale", "partial_rotary_factor", "num_nextn_predict_layers"}


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the facts that `resolve` finds in a folder."""

    def read(name: str) -> bytes | None:
        return (folder / name).read_bytes() if (folder / name).exists() else None

    return config_facts(read)


def own_logits(model: Any) -> tuple[Tensor, Tensor]:
    """Return the states before the model's final norm and its logits, `[tokens, hidden]` and `[tokens, vocabulary]`."""
    before: list[Tensor] = []
    hook = model.get_decoder().norm.register_forward_pre_hook(lambda _, arguments: before.append(arguments[0]))
    with torch.no_grad():
        logits = model(TOKENS).logits[0]
    hook.remove()
    return before[0][0], logits


def targets(folder: Path, facts: dict[str, Any], last: Tensor, d2t: Tensor | None = None) -> Tensor:
    """Return the verifier's logits as training computes them."""
    frozen = read_verifier(folder, facts, d2t, torch.float32)
    return frozen.head.verifier_logits(frozen.normed(last) @ frozen.head.weight.T)


def test_every_family_is_tested() -> None:
    # LLaVA's text part is a Llama; it is held to transformers with images, in tests/datagen/test_vision.py.
    assert {*small.FAMILIES, "llava"} == {*FAMILIES, *INSIDE}


@pytest.mark.parametrize("family", small.FAMILIES)
def test_targets_are_the_verifiers_own_logits(family: str, tmp_path: Path) -> None:
    model = small.make_family(tmp_path, family)
    last, logits = own_logits(model)
    facts = facts_of(tmp_path)
    own = {key: facts[key] for key in OWN if key in facts}
    assert own == EXPECTED.get(family, {})
    assert logits.std() > 0.1
    assert torch.allclose(targets(tmp_path, facts, last), logits, rtol=1e-5, atol=1e-5)
    some = torch.tensor([0, 3, 40, 79])
    few = targets(tmp_path, facts, last, some - torch.arange(4))
    assert torch.allclose(few, logits[:, some], rtol=1e-5, atol=1e-5)
    for key in OF_LOGITS & set(own):
        without = {name: value for name, value in facts.items() if name != key}
        assert (targets(tmp_path, without, last) - logits).abs().max() > 0.05, key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "granite", "cohere", "qwen3_5"])
def test_embeddings_are_those_of_the_layer_that_a_draft_shares(family: str, dtype: str, tmp_path: Path) -> None:
    """Gemma's layer multiplies. Granite's model multiplies what its layer gives, which a draft does not see."""
    model = small.make_family(tmp_path, family, dtype=dtype)
    config = facts_of(tmp_path)
    frozen = read_verifier(tmp_path, config, None, getattr(torch, dtype))
    with torch.no_grad():
        assert torch.equal(frozen.embed_tokens[TOKENS], model.get_input_embeddings()(TOKENS))
    raw = model.get_input_embeddings().weight
    factor = torch.tensor(config.get("embedding_scale", 1.0)).to(raw.dtype)
    assert frozen.embedding_scale == factor
    assert torch.equal(frozen.embed_tokens, raw) == (factor == 1) == (not family.startswith("gemma"))
    assert torch.equal(frozen.full_head, model.get_output_embeddings().weight)
    assert torch.equal(shared_embedding(tmp_path, config), frozen.embed_tokens)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model."])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_found_by_every_name_that_checkpoints_have(prefix: str, tied: bool, tmp_path: Path) -> None:
    model = small.make_family(tmp_path, "llama", tie_word_embeddings=tied)
    last, logits = own_logits(model)
    facts = facts_of(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    if prefix == "language_model.model." and not tied:
        renamed["language_model.lm_head.weight"] = renamed.pop("lm_head.weight")
    names = sorted(renamed)
    (tmp_path / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: renamed[name] for name in part}, tmp_path / file)
    assert torch.allclose(targets(tmp_path, facts, last), logits, rtol=1e-5, atol=1e-5)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.allclose(targets(tmp_path, facts, last), logits, rtol=1e-5, atol=1e-5)


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
UNFIT: dict[str, tuple[Change, str]] = {
    "norm under another name": (lambda t: {"n" + name if "model.norm" in name else name: t[name] for name in t},
                                r"no tensor `model\.norm\.weight`"),
    "no head": (lambda t: {name: t[name] for name in t if name != "lm_head.weight"}, r"no tensor `lm_head\.weight`"),
    "two heads": (lambda t: t | {"language_model.lm_head.weight": t["lm_head.weight"].clone()},
                  r"both `lm_head\.weight` and `language_model\.lm_head\.weight`"),
    "a norm with bias": (lambda t: t | {"model.norm.bias": torch.zeros(24)}, r"`model\.norm\.bias`, which training"),
    "a head with bias": (lambda t: t | {"lm_head.bias": torch.zeros(80)}, r"`lm_head\.bias`, which training does not"),
    "a larger head": (lambda t: t | {"lm_head.weight": torch.zeros(96, 24)},
                      r"shape \[96, 24\], its configuration says \[80, 24\]"),
    "a longer norm": (lambda t: t | {"model.norm.weight": torch.zeros(25)},
                      r"`model\.norm\.weight` has shape \[25\], its configuration says \[24\]"),
    "a quantised head": (lambda t: t | {"lm_head.weight": torch.zeros(80, 24).to(torch.float8_e4m3fn)},
                         r"`lm_head\.weight` is of dtype F8_E4M3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    small.make_family(folder, "llama")
    return folder


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_never_guessed(name: str, llama: Path, tmp_path: Path) -> None:
    change, message = UNFIT[name]
    save_file(change(load_file(llama / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(SpeccError, match=message):
        read_verifier(tmp_path, facts_of(llama), None, torch.float32)


def test_an_index_that_names_what_its_files_have_not_is_refused(llama: Path, tmp_path: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpeccError, match=r"index says that `model\.safetensors` has `lm_head\.weight`"):
        read_verifier(tmp_path, facts_of(llama), None, torch.float32)


def test_a_norm_of_a_later_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeccError, match="final norm of the kind `softmax`"):
        read_verifier(tmp_path, {"vocab_size": 4, "hidden_size": 2, "norm": "softmax"}, None, torch.float32)

"""Small real verifiers for the tests: random weights, a real tokenizer, a real chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{{ message['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without generation marks."""

CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The same with generation marks."""

TEXT = (
    "The quick brown fox jumps over the lazy dog. How do I make bread rise? Mix flour, water and yeast, then wait. "
    "What is the capital of France? Paris is the capital of France. Explain why the sky is blue to a child. "
)


SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The special tokens of ChatML: unknown, first and last."""


def make_tokenizer(
    folder: Path, template: str, *, specials: tuple[str, ...] = SPECIALS, max_position: int = 512
) -> Tokenizer:
    """Write a byte-level BPE tokenizer with a chat template; `specials` are unk, bos, eos and others."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT] * 4,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": specials[1],
                "eos_token": specials[2],
                "unk_token": specials[0],
                "pad_token": specials[2],
                "model_max_length": max_position,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        )
    )
    return tokenizer


def make_verifier(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 6,
    heads: int = 2,
    kv_heads: int = 1,
    intermediate: int = 128,
    tie: bool = True,
    seed: int = 0,
    template: str = CHATML,
    dtype: str = "bfloat16",
    max_position: int = 512,
) -> Path:
    """Write a random Llama verifier of a few hundred thousand parameters, with a byte-level BPE tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(folder, template, max_position=max_position)
    size = (tokenizer.get_vocab_size() + 63) // 64 * 64
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=max_position,
        tie_word_embeddings=tie,
        bos_token_id=tokenizer.token_to_id("<|im_start|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int, *, answers: bool = False, start: int = 0) -> Path:
    """Write `count` short conversations as JSON lines, all different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    things = ["bread", "the sky", "a fox", "Paris", "yeast", "a dog", "water", "France", "a child", "flour"]
    with path.open("w") as file:
        for index in range(start, start + count):
            messages = [{"role": "user", "content": f"Explain {things[index % 10]} to a child, case {index}."}]
            if answers:
                thing = things[index % 10]
                messages.append({"role": "assistant", "content": f"{thing} is number {index}. The quick brown fox."})
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


FAMILIES = {
    "cohere": ("Cohere", "ForCausalLM", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2", "ForCausalLM", {"logit_scale": 0.25}),
    "gemma": ("Gemma", "ForCausalLM", {}),
    "gemma2": ("Gemma2", "ForCausalLM", {"final_logit_softcapping": 3.0}),
    "gemma3_text": ("Gemma3", "ForCausalLM", {"final_logit_softcapping": 3.0}),
    "gpt_oss": ("GptOss", "ForCausalLM", {"sliding_window": 16}),
    "granite": ("Granite", "ForCausalLM", {"logits_scaling": 3.0, "embedding_multiplier": 5.0}),
    "llama": ("Llama", "ForCausalLM", {}),
    "mimo": ("Qwen2", "ForCausalLM", {}),
    "mistral": ("Mistral", "ForCausalLM", {}),
    "mixtral": ("Mixtral", "ForCausalLM", {}),
    "olmo2": ("Olmo2", "ForCausalLM", {}),
    "phi3": ("Phi3", "ForCausalLM", {}),
    "qwen2": ("Qwen2", "ForCausalLM", {}),
    "qwen2_moe": ("Qwen2Moe", "ForCausalLM", {}),
    "qwen3": ("Qwen3", "ForCausalLM", {}),
    "qwen3_5": ("Qwen3_5", "ForConditionalGeneration", {}),
    "qwen3_5_moe": ("Qwen3_5Moe", "ForConditionalGeneration", {}),
    "qwen3_5_moe_text": ("Qwen3_5Moe", "ForCausalLM", {}),
    "qwen3_5_text": ("Qwen3_5", "ForCausalLM", {}),
    "qwen3_moe": ("Qwen3Moe", "ForCausalLM", {}),
    "qwen3_next": ("Qwen3Next", "ForCausalLM", {}),
}
"""transformers' classes of the families of verifiers, and what each is peculiar in. MiMo's body is Qwen2's."""

SIZES = {
    "vocab_size": 80, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.5, "pad_token_id": 0,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "full_attention_interval": 2,
}  # fmt: skip


def make_family(folder: Path, family: str, *, dtype: str = "float32", **changes: Any) -> Any:
    """Write a random model of a family, without a tokenizer, and return it; all norms have random gains."""
    import torch
    import transformers

    stem, kind, own = FAMILIES[family]
    inner = "TextConfig" if hasattr(transformers, f"{stem}TextConfig") else "Config"
    text = getattr(transformers, stem + inner)
    known = set(text().to_dict()) | {"head_dim", "full_attention_interval"}
    # 24 is no square, so that a factor of its root is one that rounding changes.
    sizes = {key: value for key, value in (SIZES | {"head_dim": 12} | own | changes).items() if key in known}
    config = text(**sizes)
    if kind == "ForConditionalGeneration":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                  "depth": 1, "num_heads": 1, "out_hidden_size": 24}  # fmt: skip
        config = getattr(transformers, f"{stem}Config")(
            text_config=config.to_dict(), vision_config=vision, tie_word_embeddings=config.tie_word_embeddings
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, stem + kind)(config).to(getattr(torch, dtype)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and "norm" in name:
                    parameter.add_(torch.rand_like(parameter))
    model.save_pretrained(folder)
    if family == "mimo":
        raw = json.loads((folder / "config.json").read_text())
        own = {"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
        (folder / "config.json").write_text(json.dumps(raw | own))
    return model

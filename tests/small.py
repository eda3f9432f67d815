"""Small real verifiers for the tests: random weights, a real tokenizer, a real chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

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

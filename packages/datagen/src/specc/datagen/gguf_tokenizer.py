"""A GGUF file's tokenizer as the files that transformers and vLLM read.

llama.cpp names the way in which a vocabulary splits text and keeps the expression itself in its source
(`llama_vocab_pre_type`); the table below has the models' own expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.gguf import GgufHeader

CONTROL: Final = 3
USER_DEFINED: Final = 4
_TAIL: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SPLITS: Final[Mapping[str, Any]] = {
    "gpt-2": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),
    "llama-bpe": (pre_tokenizers.Split(Regex(_WORDS + r"|\p{N}{1,3}" + _TAIL), "isolated"),),
    "qwen2": (pre_tokenizers.Split(Regex(_WORDS + r"|\p{N}" + _TAIL), "isolated"),),
}
"""What is done before the bytes of a text are spelled as characters."""
_NAMED: Final = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_tokenizer(header: GgufHeader, target: Path, config: Mapping[str, Any]) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into the folder `target`.

    `config` is `verifier.config` of the resolved spec. Raises `SpeccError` for merges or token ids that do not
    fit the vocabulary; kinds of tokenizers were checked when the spec was locked.
    """
    meta = header.metadata
    names = {role: meta.get(f"tokenizer.ggml.{name}_token_id") for role, name in _NAMED.items()}
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    try:
        named = {role: tokens[token] for role, token in names.items() if token is not None}
        tokenizer = _tokenizer(meta, tokens, named)
        write_atomic(target / "tokenizer.json", tokenizer.to_str(pretty=True))
    except Exception as error:  # tokenizers raises no narrower one
        raise SpeccError(
            f"the GGUF file's tokenizer does not hold together: {error}",
            hint="name the model's folder with safetensors instead",
            code=Exit.STAGE,
        ) from error
    about = {
        **named,
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token")),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_atomic(target / "tokenizer_config.json", pretty(about))
    write_atomic(target / "chat_template.jinja", meta["tokenizer.chat_template"])


def _tokenizer(meta: Mapping[str, Any], tokens: list[str], named: Mapping[str, str]) -> Tokenizer:
    split: str = meta["tokenizer.ggml.pre"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("a token stands twice")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # The two splits with an expression of their own have done what the last step's would do.
        [*SPLITS[split], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt-2", "smollm"))]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, own in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
            if own == kind
        ]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    if meta.get("tokenizer.ggml.add_bos_token"):
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer

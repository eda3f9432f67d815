"""The stage `vocabulary`: the tokens that the draft may propose, the most frequent of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from specc.core.errors import SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.stage import Stage
from specc.datagen.rows import read_shards
from specc.datagen.tokens import load_tokenizer, special_tokens

Counts = NDArray[np.int64]


def vocabulary(stage: Stage) -> None:
    """Write the maps between draft and verifier vocabulary, and how much of the data they cover."""
    config, size = stage.params["verifier"]["config"], stage.params["draft"]["vocabulary"]
    if size > config["vocab_size"]:
        raise SpeccError(
            f"`draft.vocabulary` is {size}, and the verifier has {config['vocab_size']} tokens",
            hint="give a smaller number, or `full`",
        )
    train, validation = count(stage, config["vocab_size"])
    if not train.any():
        raise SpeccError(
            "the training split has no trained token to choose a vocabulary from",
            hint="give more data, or a smaller `data.validation`",
        )
    chosen = choose(train, size, kept_always(train, config, special_tokens(load_tokenizer(stage.input("verifier")))))
    d2t, t2d = maps(chosen, config["vocab_size"])
    save_file({"d2t": d2t, "t2d": t2d}, stage.output / "vocabulary.safetensors")
    report = {
        "size": size,
        "distinct": int(np.count_nonzero(train)),
        "trained_tokens": int(train.sum()),
        "coverage": {
            "train": [int(train[chosen].sum()), int(train.sum())],
            "validation": [int(validation[chosen].sum()), int(validation.sum())],
        },
    }
    write_atomic(stage.output / "report.json", pretty(report))


def count(stage: Stage, size: int) -> tuple[Counts, Counts]:
    """Return how often each token is trained in the training and in the validation rows, `[size]` each.

    One shard is in memory at a time.
    """
    folder, counts = stage.input("tokens"), np.zeros((2, size), np.int64)
    shards = read_shards(folder)
    for number, shard in enumerate(shards):
        tensors = load_file(folder / shard.file)
        split = np.repeat(tensors["split"], np.diff(tensors["offsets"]))  # [tokens]
        trained = tensors["loss_mask"] == 1  # [tokens]
        for which in (0, 1):
            counts[which] += np.bincount(tensors["input_ids"][trained & (split == which)], minlength=size)
        stage.progress(number + 1, len(shards), "shards")
    return counts[0], counts[1]


def kept_always(train: Counts, config: Mapping[str, Any], specials: Mapping[int, str]) -> set[int]:
    """Return the tokens that the draft must know whatever their count.

    Without the end of turn a draft never ends one. A special token that the verifier said at all is in too;
    the hundreds that some tokenizers reserve and no verifier says would only take the place of words.
    """
    bos = config["bos_token_id"]
    always = {*config["eos_token_ids"], *([] if bos is None else [bos])}
    return always | {token for token in specials if token < len(train) and train[token]}


def choose(counts: Counts, size: int, always: Iterable[int]) -> Counts:
    """Return `size` token ids, ascending: `always`, then the most frequent; ties and unseen ones by lowest id."""
    first = np.zeros(len(counts), bool)
    first[list(always)] = True
    if (needed := int(first.sum())) > size:
        raise SpeccError(
            f"`draft.vocabulary` is {size}, and {needed} special tokens must be in it",
            hint=f"give at least {needed}",
        )
    ids = np.arange(len(counts))
    order = np.lexsort((ids, -counts, ~first))  # the last key sorts first
    return np.sort(order[:size]).astype(np.int64)


def maps(chosen: Counts, size: int) -> tuple[Counts, NDArray[np.bool_]]:
    """Return `d2t` `[draft]` and `t2d` `[size]`: draft token i is the verifier's token `i + d2t[i]`.

    chosen  1  4  5      size 6
    d2t     1  3  3      t2d  0 1 0 0 1 1
    """
    t2d = np.zeros(size, np.bool_)
    t2d[chosen] = True
    return chosen - np.arange(len(chosen), dtype=np.int64), t2d

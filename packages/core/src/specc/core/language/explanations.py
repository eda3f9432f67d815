"""Every error of the language by its id, each with the one line that `specc explain ID` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXPLANATIONS: Final[Mapping[str, str]] = {
    # E00: the text
    "E0001": "A spec is a readable file in UTF-8.",
    "E0002": "A spec is YAML; the parser stopped here.",
    "E0003": "A key stands once in a mapping: of two, a reader sees one and the parser takes the other.",
    "E0004": "A spec is small (1 MiB, 100 levels, 100000 values with aliases expanded), so that checking one is safe.",
    "E0005": "A spec is one YAML 1.2 document, and that a mapping of sections.",
    "E0006": "YAML tags are not part of the language: a value is what it looks like, or a string in quotes.",
    "E0007": "Numbers are finite and fit into 64 bits.",
    "E0008": "Keys are words; anchors stand before their aliases and do not contain themselves; `<<` takes mappings.",
    # E01: the schema
    "E0101": "Unknown fields are errors, since a misspelt one would leave a default in force without a word.",
    "E0102": "A value has another type or lies outside what the field takes.",
    "E0103": "A required field is missing.",
    "E0104": "The name is reserved for a later release of specc.",
    "E0105": "The spec is of a version of the language that this release does not read.",
    "E0106": "The field belongs to another algorithm or optimizer than the one that is used.",
    # E02: rules between fields
    "E0201": "`train.epochs` and `train.steps` both say how long to train: one of them is enough.",
    "E0202": "Without epochs and steps there is nothing to train.",
    "E0203": "A conversation of `data.sequence_length` tokens must fit into one step of `train.batch_tokens`.",
    "E0204": "Only one kind of norm may stand before the fusion of the hidden states.",
    "E0205": "The draft cannot be asked for so many tokens at a time.",
    "E0206": "DeepSpeed keeps fp32 master weights beside bf16 only from ZeRO stage 1.",
    "E0207": "An answer as long as the sequence leaves no room for its question.",
    "E0208": "With `from: data` nothing is generated, so values of sampling have no effect.",
    "E0209": "At temperature 0 the most probable token is taken, so `top_p` has no effect.",
    "E0210": "Prompts that were trained on say nothing about acceptance elsewhere.",
    "E0211": "Rows that are trained on cannot validate the training.",
    "E0212": "A file that is listed twice adds nothing: equal conversations are kept once.",
    "E0213": "Checks are judged by the evaluation; without one they cannot be met.",
    "E0214": "A file or folder that the spec names is not there; paths are relative to the spec.",
    "E0215": "An absolute path holds on one machine only.",
    "E0216": "The warm-up must end before the training does.",
    "E0217": "Losslessness is judged by comparing the output for some prompts.",
    "E0218": "A loss needs at least one weight.",
    "E0219": "vLLM captures hidden states in ascending order of their ids, each once.",
    "E0220": "At ZeRO stage 0 every rank keeps the whole optimizer beside its parameters: DeepSpeed offloads nothing.",
    "E0221": "Below ZeRO stage 3 every rank needs the whole parameters on its device.",
    "E0222": "A training that changes its number of ranks does so after given steps; the last phase goes to the end.",
    "E0223": "A phase that ends with the training leaves nothing to the one after it.",
    # E03: rules that need facts about the verifier
    "E0301": "A layer id is at most the verifier's number of layers, which stands for the last layer's output.",
    "E0302": "The draft's vocabulary is part of the verifier's.",
    "E0303": "A sequence must fit into the verifier's context.",
    "E0304": "The derived sequence length must fit into one step of `train.batch_tokens`.",
    "E0305": "An answer as long as the derived sequence length leaves no room for its question.",
    "E0306": "Prompt and output of the evaluation must fit into the verifier's context.",
    "E0307": "The verifier has too few layers for the default hidden-state layers to differ.",
}

"""Data sets that are known by a short name: where each is, which of it is read, and under which licence it is.

The facts are those of the data sets' cards, read in November 2026. A lock holds what a name stood for when it was
written, so that a later release of this table changes no locked build. Whether a licence allows what a draft is made
for is for its user to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CARDS: Final = "https://huggingface.co/datasets/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A data set as its authors publish it. `licence` is the identifier on its card."""

    dataset: str
    licence: str
    split: str = "train"
    config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def card(self) -> str:
        """Address of the data set's card."""
        return CARDS + self.dataset

    def values(self) -> dict[str, Any]:
        """Return what the name stands for, as the lock has it."""
        given = {"dataset": self.dataset, "config": self.config, "split": self.split, "columns": dict(self.columns)}
        return {**{name: value for name, value in given.items() if value}, "licence": self.licence}


PRESETS: Final[Mapping[str, Preset]] = {
    "glaive-tools": Preset(
        dataset="glaiveai/glaive-function-calling-v2",
        columns={"transcript": "chat", "system": "system"},
        licence="apache-2.0",
    ),
    "gsm8k": Preset(
        dataset="openai/gsm8k",
        config="main",
        columns={"prompt": "question", "completion": "answer"},
        licence="mit",
    ),
    "hermes-tools": Preset(
        dataset="NousResearch/hermes-function-calling-v1",
        config="func_calling",
        columns={"tagged": "conversations", "tools": "tools"},
        licence="apache-2.0",
    ),
    "magpie": Preset(
        dataset="Magpie-Align/Magpie-Llama-3.1-Pro-300K-Filtered",
        columns={"conversations": "conversations"},
        licence="llama3.1",
    ),
    "nemotron": Preset(
        dataset="nvidia/Nemotron-Post-Training-Dataset-v1",
        split="chat",
        columns={"messages": "messages"},
        licence="cc-by-4.0",
    ),
    "open-perfectblend": Preset(
        dataset="mlabonne/open-perfectblend",
        columns={"conversations": "conversations"},
        licence="apache-2.0",
    ),
    "sharegpt": Preset(
        dataset="Aeala/ShareGPT_Vicuna_unfiltered",
        columns={"conversations": "conversations"},
        licence="apache-2.0",
    ),
    "ultrachat": Preset(
        dataset="HuggingFaceH4/ultrachat_200k",
        split="train_sft",
        columns={"messages": "messages"},
        licence="mit",
    ),
    "xlam": Preset(
        dataset="Salesforce/xlam-function-calling-60k",
        licence="cc-by-4.0",
    ),
}

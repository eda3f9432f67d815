"""What a later release may mean by a name that this one refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_HUB_DATA: Final = "name a JSON Lines file: `file: prompts/mine.jsonl`"

RESERVED: Final[Mapping[str, str]] = {
    # dotted path (`*` for an index of a list), or path=value: what to do instead
    "matrix": "write one spec a speculator",
    "extends": "repeat what both specs share, or use an anchor and `<<`",
    "data.hidden_states": "remove it: hidden states are kept on disk",
    "data.sources.*.dataset": _HUB_DATA,
    "data.sources.*.url": _HUB_DATA,
    "data.sources.*.split": _HUB_DATA,
    "data.validation.*.dataset": _HUB_DATA,
    "data.validation.*.url": _HUB_DATA,
    "data.validation.*.split": _HUB_DATA,
    "evaluate.prompts.*.dataset": _HUB_DATA,
    "evaluate.prompts.*.url": _HUB_DATA,
    "evaluate.prompts.*.split": _HUB_DATA,
    "train.deepspeed": "remove it: `train.zero` and `train.precision` decide DeepSpeed's configuration",
    "train.loggers": "remove it: `specc logs` shows the losses",
    "runtime.datagen.python": "interpreters never come from a spec: they could run anything",
    "runtime.train.python": "interpreters never come from a spec: they could run anything",
    "runtime.datagen.workers": "use `workers: 1`",
    **{f"draft.algorithm={name}": "use `algorithm: eagle3`"
       for name in ("peagle", "dflash", "dflash2", "dspark", "xpress", "mtp")},
    **{f"train.loss={name}": "use `kl` or `ce`" for name in ("rkl", "jsd", "tv", "nla", "lk")},
    **{f"train.loss.{name}": "use `kl` and `ce`" for name in ("rkl", "jsd", "tv", "nla", "lk")},
}  # fmt: skip


def reserved(path: tuple[str | int, ...], value: object = None) -> tuple[str, str] | None:
    """Return the sentence and the hint for a reserved name or value, None if it is not reserved."""
    name = ".".join("*" if isinstance(part, int) else part for part in path)
    if name in RESERVED:
        shown = name.replace(".*", "")
        many = isinstance(value, int) and not isinstance(value, bool) and name.startswith("runtime.")
        return f"`{shown}` {'above 1 ' if many else ''}is not in this release", RESERVED[name]
    if isinstance(value, str) and f"{name}={value}" in RESERVED:
        return f"`{value}` for `{name}` is not in this release", RESERVED[f"{name}={value}"]
    return None

"""The language's table of DeepSpeed's values is that of the installed DeepSpeed, key by key and type by type."""

from __future__ import annotations

import enum
import os
from collections.abc import KeysView
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest

pytest.importorskip("deepspeed")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from deepspeed.runtime import config as runtime
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from pydantic import BaseModel, ValidationError

from specc.core.language.deepspeed import (
    Aio,
    DeepSpeed,
    OffloadOptimizer,
    OffloadParameters,
    ZeroOptimization,
)
from specc.core.language.reserved import DECIDED, RESERVED

pytestmark = pytest.mark.engine

LEAST: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
MODELS: list[tuple[str, type[BaseModel], type[BaseModel]]] = [
    ("zero_optimization.", ZeroOptimization, DeepSpeedZeroConfig),
    ("zero_optimization.offload_optimizer.", OffloadOptimizer, DeepSpeedZeroOffloadOptimizerConfig),
    ("zero_optimization.offload_param.", OffloadParameters, DeepSpeedZeroOffloadParamConfig),
]


class Asked(dict[str, Any]):
    """A configuration that remembers what DeepSpeed asks it for."""

    names: set[str] = set()  # noqa: RUF012 - DeepSpeed copies the mapping

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def keys(self) -> KeysView[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return KeysView(self)


def decided(prefix: str) -> set[str]:
    """Return the names right below a prefix that the language refuses with a reason."""
    whole = f"train.deepspeed.{prefix}"
    below = {name.removeprefix(whole) for name in {*RESERVED, *DECIDED} if name.startswith(whole)}
    return {name for name in below if "." not in name}


def known(model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of DeepSpeed's model by the names of its configuration, less the deprecated ones."""
    extras = {name: field.json_schema_extra for name, field in model.model_fields.items()}
    gone = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("deprecated")}
    return {field.alias or name: field.annotation for name, field in model.model_fields.items() if name not in gone}


def kind(annotation: Any) -> str:
    """Return what a field takes in JSON."""
    options = [one for one in get_args(annotation) if one is not NoneType]
    if get_origin(annotation) is Literal:
        return "string"
    if get_origin(annotation) is not None and options:
        return kind(options[0])
    if issubclass(annotation, str | Path | enum.Enum):
        return "string"
    return "object" if issubclass(annotation, BaseModel) else annotation.__name__


def test_every_top_level_key_is_offered_decided_or_left_out() -> None:
    DeepSpeedConfig(Asked(LEAST))
    asked = Asked.names - set(runtime._REMOVED_TOP_LEVEL_CONFIG_KEYS)  # which DeepSpeed itself refuses
    assert asked == set(DeepSpeed.model_fields) | decided("")


@pytest.mark.parametrize(("prefix", "ours", "theirs"), MODELS, ids=[prefix for prefix, _, _ in MODELS])
def test_every_key_of_a_section_is_too(prefix: str, ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    offered, every = known(ours), known(theirs)
    assert set(every) == set(offered) | decided(prefix)
    assert not set(offered) & decided(prefix)
    assert {name: kind(one) for name, one in offered.items()} == {name: kind(every[name]) for name in offered}


def test_the_keys_of_disks_are_too() -> None:
    assert set(AIO_DEFAULT_DICT) == set(Aio.model_fields) | decided("aio.")
    for name, annotation in known(Aio).items():
        assert kind(annotation) == type(AIO_DEFAULT_DICT[name]).__name__


def test_what_deepspeed_takes_in_silence_and_the_language_does_not() -> None:
    DeepSpeedConfig(LEAST | {"train_micro_batch_size": 8})  # an unknown key at the top
    DeepSpeedConfig(LEAST | {"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}})  # its name is `lr`
    DeepSpeedConfig(LEAST | {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}})  # no path
    DeepSpeedConfig(LEAST | {"zero_optimization": {"stage": 2, "stage3_prefetch_bucket_size": 1}})  # no effect
    with pytest.raises(ValidationError):
        DeepSpeedConfig(LEAST | {"zero_optimization": {"reduce_bucket_sise": 8}})  # inside a section it looks

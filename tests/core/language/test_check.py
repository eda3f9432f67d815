"""The corpora: every good spec passes everywhere, every bad one has its golden message beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from specc.core.errors import Position, SpeccError, SpeccErrors
from specc.core.language import Document, build_schema, check
from specc.core.language.check import schema_errors
from specc.core.language.diagnose import Diagnosis
from specc.core.language.explanations import EXPLANATIONS
from specc.core.language.models import Spec

SPECS = Path(__file__).resolve().parents[2] / "specs"
GOOD = sorted((SPECS / "good").glob("*.yaml"))
BAD = sorted((SPECS / "bad").glob("*.yaml"))


def errors_of(path: Path, *, files: bool = True) -> SpeccError:
    with pytest.raises(SpeccError) as caught:
        check(path, files=files)
    return caught.value


def test_the_corpora_are_there() -> None:
    assert len(GOOD) >= 8
    assert len(BAD) >= 60
    assert {path.stem for path in BAD} == {path.stem for path in (SPECS / "bad").glob("*.txt")}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_specs_pass_the_schema_the_models_and_the_rules(path: Path) -> None:
    for checked in check(path, files=True):
        assert schema_errors(checked.document) == []
        assert isinstance(checked.spec, Spec)
        json.dumps(checked.spec.values(), allow_nan=False)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_specs_say_what_to_do(path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    error = errors_of(path.relative_to(root))
    assert error.render() + "\n" == path.with_suffix(".txt").read_text()
    for item in error.errors:
        assert item.id in EXPLANATIONS
        assert not item.message.endswith(".")
        assert item.hint is None or not item.hint.endswith(".")


def test_errors_come_in_the_order_of_the_file() -> None:
    error = errors_of(SPECS / "bad" / "reserved-names.yaml")
    assert isinstance(error, SpeccErrors)
    lines = [item.where.line for item in error.errors if isinstance(item.where, Position)]
    assert len(lines) == len(error.errors) >= 7
    assert lines == sorted(lines)


def test_every_rule_between_fields_has_a_bad_spec() -> None:
    seen: set[str | None] = set()
    for path in BAD:
        error = errors_of(path)
        seen |= {item.id for item in error.errors}
    wanted = {name for name in EXPLANATIONS if name.startswith(("E01", "E02"))}
    assert wanted - seen == set()


def test_values_have_the_shape_of_the_resolved_spec() -> None:
    values = check(SPECS / "good" / "minimal.yaml")[0].spec.values()
    assert values == {
        "version": 1,
        "name": "my-speculator",
        "verifier": {"model": "org/verifier", "revision": None, "dtype": "bfloat16", "trust_remote_code": False},
        "draft": {
            "algorithm": "eagle3", "layers": 1, "decoder": "llama", "vocabulary": None, "hidden_state_layers": None,
            "norm_before_residual": True, "norm_before_fc": True, "fc_norm": False, "norm_output": True,
            "sliding_window": None, "intermediate_size": None, "ttt": {"steps": 3, "decay": 1.0}, "init": None,
        },
        "data": {
            "sources": [{"file": "../prompts/train.jsonl", "rows": None}], "system_prompt": None,
            "responses": {"from": "verifier", "temperature": 0.0, "top_p": 1.0, "max_tokens": 512, "seed": 0},
            "sequence_length": None, "validation": {"share": 0.05, "sources": []}, "shuffle": True,
            "shuffle_window": 32, "shard_rows": 256,
        },
        "train": {
            "epochs": 3, "steps": None, "batch_tokens": 8192,
            "optimizer": {"name": "adamw", "learning_rate": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8,
                          "weight_decay": 0.0},
            "schedule": {"name": "linear", "warmup": 0.01}, "loss": None, "precision": "bf16",
            "gradient_clipping": 1.0, "zero": {"stage": 1, "offload": "none"}, "seed": 42, "save_every": 200,
        },
        "export": {"speculative_tokens": None, "dtype": "bfloat16"},
        "evaluate": None,
        "checks": {"mean_acceptance_length": None, "lossless": False},
        "runtime": {"threads": 4, "datagen": {"workers": 1}, "train": {"ranks": 1}, "store": None},
    }  # fmt: skip


def test_short_forms_are_normalised() -> None:
    everything = check(SPECS / "good" / "everything.yaml")[0].spec.values()
    assert everything["data"]["validation"] == {
        "share": 0.0,
        "sources": [{"file": "../prompts/more.jsonl", "rows": 10}],
    }
    assert everything["train"]["loss"] == {"kl": 0.9, "ce": 0.1}
    assert everything["train"]["epochs"] is None
    assert everything["train"]["schedule"]["warmup"] == 20
    assert everything["train"]["gradient_clipping"] is None
    assert everything["draft"]["init"] == {"from": "../earlier"}
    steps = check(SPECS / "good" / "steps.yaml")[0].spec.values()
    assert steps["train"]["loss"] == {"ce": 1.0}
    assert (steps["train"]["epochs"], steps["train"]["steps"]) == (None, 500)
    floats = check(SPECS / "good" / "whole-floats.yaml")[0].spec.values()
    assert (floats["draft"]["layers"], floats["data"]["sources"][0]["rows"], floats["train"]["seed"]) == (2, 100, 15)
    assert floats["train"]["batch_tokens"] == 4096
    assert type(floats["train"]["optimizer"]["learning_rate"]) is float


def test_written_covers_every_field_of_the_everything_spec() -> None:
    from specc.core.files import flatten

    (checked,) = check(SPECS / "good" / "everything.yaml")
    written = checked.document.written()
    missing = [path for path in flatten(checked.spec.values())
               if not any(path == name or path.startswith(name + ".") for name in written)]  # fmt: skip
    assert missing == ["train.epochs"]  # it excludes `steps`


def test_files_are_asked_for_only_on_demand() -> None:
    path = SPECS / "bad" / "missing-file.yaml"
    assert check(path)[0].spec.name == "my-speculator"
    assert errors_of(path).render().count("error:") == 3


def test_the_quickstart_is_good_and_is_the_language_page_s(root: Path) -> None:
    values = check(root / "specs" / "quickstart.yaml")[0].spec.values()
    assert values["name"] == "smollm2-135m-eagle3"
    assert values["data"]["validation"]["share"] == 0.1
    assert values["checks"] == {"mean_acceptance_length": ">= 1.5", "lossless": True}


def test_checking_loads_no_engine() -> None:
    code = (
        "import sys; from pathlib import Path; from specc.core.language import check;"
        f"check(Path({str(SPECS / 'good' / 'everything.yaml')!r}));"
        "print([m for m in ('torch', 'numpy', 'vllm', 'transformers', 'deepspeed', 'hypothesis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_field_of_another_algorithm_names_its_owner() -> None:
    schema = build_schema()
    then = {"type": "object", "properties": {"algorithm": {"const": "other"}, "own_knob": {"type": "integer"}}}
    schema["properties"]["draft"]["allOf"].append(
        {"if": {"properties": {"algorithm": {"const": "other"}}}, "then": then}
    )
    document = Document.parse("draft:\n  algorithm: eagle3\n  own_knob: 8\n", "s.yaml")
    found = [error for error in Draft7Validator(schema).iter_errors(document.data) if list(error.path) == ["draft"]]
    (error,) = Diagnosis(document, schema).errors(found)
    assert error.render() == (
        "error: s.yaml:3:3: `own_knob` belongs to algorithm `other`, and this draft is `eagle3`\n"
        "  3 |   own_knob: 8\n"
        "    |   ^^^^^^^^\n\n"
        "hint: remove it, or use `algorithm: other`"
    )
    assert error.id == "E0106"

"""MTP in the speculators format, and stitched into its verifier: which bytes change, and that no others do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

import mtp_heads  # noqa: E402
from export.roundtrip import assert_goes_on_with_the_same_bits  # noqa: E402
from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.contracts import Progress, StageResult  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.core.files import sha256_file  # noqa: E402
from specc.core.verifiers import tensor_files  # noqa: E402
from specc.export import read_speculator, require  # noqa: E402
from specc.export.card import card  # noqa: E402
from specc.export.stitch import ADDED, INDEX, stitched  # noqa: E402
from specc.train.models import native  # noqa: E402
from stages import make_job, run_here, run_process  # noqa: E402

pytestmark = pytest.mark.engine
FAMILIES = ("mimo", "qwen3_next")


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("verifiers")
    return {family: mtp_heads.make(folder / family, family) for family in FAMILIES}


def shard(verifier: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Cut a verifier's weights in three files, its head over two of them, with an index."""
    folder.mkdir()
    for path in verifier.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(verifier / "model.safetensors").items()}
    head = sorted(name for name in tensors if "mtp" in name)
    body = sorted(tensors.keys() - set(head))
    parts = [body[:9], body[9:] + head[:5], head[5:]]
    names = [f"model-{number}-of-3.safetensors" for number in (1, 2, 3)]
    for name, part in zip(names, parts, strict=True):
        save_file({one: tensors[one] for one in part}, folder / name, metadata={"format": "pt"})
    weight_map = {one: name for name, part in zip(names, parts, strict=True) for one in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def stitch(folder: Path, family: str, verifier: Path, **inputs: Path) -> tuple[Path, dict[str, Any]]:
    """Run the stage in this process; return its output and what it says of it."""
    checkpoint = inputs.get("checkpoint") or mtp_heads.checkpoint(folder / "head", family, verifier)
    values = mtp_heads.resolved(family, verifier)
    job = make_job("stitched", folder / "stage", values, inputs={"checkpoint": checkpoint, "verifier": verifier})
    events = run_here(stitched, job)
    assert isinstance(events[-1], Progress)
    output = Path(job.output)
    return output, json.loads((output / "stitched.json").read_text())


def header(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_heads_bytes_change(
    family: str, dtype: torch.dtype, verifiers: dict[str, Path], tmp_path: Path
) -> None:
    verifier = shard(verifiers[family], tmp_path / "verifier", dtype)
    output, said = stitch(tmp_path, family, verifier)
    one, two, three = (f"model-{number}-of-3.safetensors" for number in (1, 2, 3))
    names = {path.name for path in verifier.iterdir()}
    assert {path.name for path in output.iterdir()} == names | {"stitched.json"}
    assert said["files"] == {
        "unchanged": {name: sha256_file(verifier / name) for name in sorted(names - {two, three})},
        "rewritten": {name: sha256_file(output / name) for name in (two, three)},
    }
    assert one in said["files"]["unchanged"]
    assert said["added"] == []

    trained = mtp_heads.random_head(family, verifier, seed=8, keep=mtp_heads.KEEP[family])
    head = mtp_heads.named(family, verifier, trained, str(dtype).removeprefix("torch."))
    assert [change["name"] for change in said["changed"]] == sorted(head)
    for name in (two, three):
        assert header(output / name) == header(verifier / name)
        with safe_open(output / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
        before, after = load_file(verifier / name), load_file(output / name)
        assert all(torch.equal(after[tensor], head.get(tensor, before[tensor])) for tensor in before)
        for change in said["changed"]:
            if change["file"] == name:
                compare(change, before[change["name"]], after[change["name"]])


def compare(change: dict[str, Any], before: Tensor, after: Tensor) -> None:
    assert change["shape"] == list(before.shape)
    assert change["dtype"] == {torch.float32: "F32", torch.bfloat16: "BF16"}[before.dtype]
    assert (change["elements"], change["changed_elements"]) == (before.numel(), int((before != after).sum()))
    difference = (after.double() - before.double()).flatten()
    relative = difference.pow(2).sum().sqrt() / before.double().flatten().pow(2).sum().sqrt()
    assert change["relative_change"] == pytest.approx(float(relative))
    assert change["largest_change"] == pytest.approx(float(difference.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stitched_head_is_found_again(family: str, verifiers: dict[str, Path], tmp_path: Path) -> None:
    output, _ = stitch(tmp_path, family, verifiers[family])
    found = native(mtp_heads.DRAFT, mtp_heads.facts(family, output), output)
    saved = load_file(tmp_path / "head/output/model.safetensors")
    assert found is not None
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in found)


def test_a_head_that_changes_nothing_gives_the_same_bytes(verifiers: dict[str, Path], tmp_path: Path) -> None:
    verifier = verifiers["mimo"]
    own = native(mtp_heads.DRAFT, mtp_heads.facts("mimo", verifier), verifier)
    (tmp_path / "checkpoint").mkdir()
    save_file(own, tmp_path / "checkpoint/model.safetensors")
    output, said = stitch(tmp_path, "mimo", verifier, checkpoint=tmp_path / "checkpoint")
    assert {change["changed_elements"] for change in said["changed"]} == {0}
    assert {change["relative_change"] for change in said["changed"]} == {0.0}
    assert (output / "model.safetensors").read_bytes() == (verifier / "model.safetensors").read_bytes()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_head_that_the_configuration_promises_is_added(
    sharded: bool, verifiers: dict[str, Path], tmp_path: Path
) -> None:
    whole = verifiers["mimo"]
    head = mtp_heads.checkpoint(tmp_path / "head", "mimo", whole)
    bare = mtp_heads.make(tmp_path / "bare", "mimo", head=False)
    if sharded:
        bare = shard(bare, tmp_path / "cut", torch.float32)
        index = json.loads((bare / INDEX).read_text())
        (bare / "model-3-of-3.safetensors").unlink()  # it would have been the head's alone
        (bare / INDEX).write_text(json.dumps(index))
    output, said = stitch(tmp_path, "mimo", bare, checkpoint=head)
    files = tensor_files(output)
    added = {one["name"] for one in said["added"]}
    assert added == {name for name in tensor_files(whole) if "mtp" in name}
    assert {files[name].name for name in added} == {ADDED}
    assert sorted(said["files"]["rewritten"]) == [ADDED, INDEX]
    assert said["changed"] == []
    index = json.loads((output / INDEX).read_text())
    sizes = sum(tensor.nbytes for path in output.glob("*.safetensors") for tensor in load_file(path).values())
    assert index["metadata"]["total_size"] == sizes
    found = native(mtp_heads.DRAFT, mtp_heads.facts("mimo", output), output)
    saved = load_file(head / "model.safetensors")
    assert found is not None
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_a_head_that_does_not_fit_is_refused(verifiers: dict[str, Path], tmp_path: Path) -> None:
    head = mtp_heads.checkpoint(tmp_path / "head", "mimo", verifiers["mimo"])
    verifier = tmp_path / "verifier"
    shutil.copytree(verifiers["mimo"], verifier)
    path, tensors = verifier / "model.safetensors", load_file(verifier / "model.safetensors")
    name = "model.mtp_layers.0.input_proj.weight"

    def message(**changed: Tensor) -> str:
        save_file(tensors | changed, path)
        with pytest.raises(SpeccError) as caught:
            stitch(tmp_path, "mimo", verifier, checkpoint=head)
        assert caught.value.hint
        return caught.value.message

    wrong = f"the verifier's tensor `{name}` is"
    assert message(**{name: torch.ones(64, 64)}) == f"{wrong} [64, 64] of F32, and the trained one [64, 128]"
    quantised = torch.ones(64, 128).to(torch.float8_e4m3fn)
    assert message(**{name: quantised}) == f"{wrong} [64, 128] of F8_E4M3, and the trained one [64, 128]"

    save_file({one: tensor for one, tensor in tensors.items() if "mtp" not in one}, path)
    values = mtp_heads.resolved("mimo", verifier)
    values["verifier"]["config"]["num_nextn_predict_layers"] = 0
    job = make_job("stitched", tmp_path / "none", values, inputs={"checkpoint": head, "verifier": verifier})
    with pytest.raises(SpeccError, match="its configuration says of no MTP layers"):
        run_here(stitched, job)


def test_the_stage_runs_in_its_own_process_and_repeats(verifiers: dict[str, Path], tmp_path: Path) -> None:
    verifier = verifiers["qwen3_next"]
    here, _ = stitch(tmp_path, "qwen3_next", verifier)
    inputs = {"checkpoint": tmp_path / "head/output", "verifier": verifier}
    job = make_job("stitched", tmp_path / "again", mtp_heads.resolved("qwen3_next", verifier), inputs=inputs)
    code, events, log = run_process("export", job, tmp_path)
    assert (code, isinstance(events[-1], StageResult)) == (0, True), log[-3000:]
    again = Path(job.output)
    assert {path.name: sha256_file(path) for path in again.iterdir()} == {
        path.name: sha256_file(path) for path in here.iterdir()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_of_the_layout(family: str, verifiers: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = mtp_heads.checkpoint(tmp_path, family, verifiers[family])
    config, headers = read_speculator(checkpoint)
    layout = algorithm("mtp").layout(mtp_heads.DRAFT, mtp_heads.facts(family, verifiers[family]))
    require(layout, headers, "float32", where="here")
    assert {one.name.rsplit(".", 1)[0] for one in headers if one.name.count(".") == 3} >= {
        f"mtp_layers.0.{name}" for name in ("input_proj", "token_layernorm", "hidden_layernorm", "final_layernorm")
    }
    assert config["architectures"] == ["MTPDraftModel"]
    assert (config["speculators_model_type"], config["num_nextn_predict_layers"]) == ("mtp", 1)
    decoder = config["transformer_layer_config"]
    assert decoder["model_type"] == {"mimo": "qwen2", "qwen3_next": "qwen3_next"}[family]
    assert (decoder["num_hidden_layers"], decoder.get("num_experts")) == (1, None if family == "mimo" else 4)


def test_vllm_serves_it_stitched_alone(verifiers: dict[str, Path], tmp_path: Path) -> None:
    """The head alone is of a type that vLLM's parser of speculators does not have."""
    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig

    checkpoint = mtp_heads.checkpoint(tmp_path, "mimo", verifiers["mimo"])
    config = json.loads((checkpoint / "config.json").read_text())
    with pytest.raises(ValueError, match="Expected one of"):
        SpeculatorsConfig.extract_transformers_pre_trained_config(config)


def test_the_card_says_what_is_particular_to_it(verifiers: dict[str, Path]) -> None:
    words = card(mtp_heads.resolved("mimo", verifiers["mimo"]))
    assert "stitch it in first" in words
    assert "| weights at the start | the verifier's own head |" in words
    assert "| decoder layers | 1 |" in words
    assert "| vocabulary | 384 (the verifier's) |" in words


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_on_with_the_same_bits(family: str, verifiers: dict[str, Path], tmp_path: Path) -> None:
    verifier = verifiers[family]
    checkpoint = mtp_heads.checkpoint(tmp_path, family, verifier)
    read_speculator(checkpoint)
    assert_goes_on_with_the_same_bits(mtp_heads.resolved(family, verifier), checkpoint, verifier)

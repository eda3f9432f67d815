"""A converted draft computes what its source does: both are asked for the logits of whole drafts, on random inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import drafts  # noqa: E402
import mtp_heads  # noqa: E402
from export.convert import reference, sources  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.core.files import merged  # noqa: E402
from specc.core.layouts import layout, section  # noqa: E402
from specc.export import read_speculator  # noqa: E402
from specc.train.models import Reading, load, read_verifier  # noqa: E402

pytestmark = pytest.mark.engine
DRAFTED = 3
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier with a head of its own, and embeddings that are not those of any source."""
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=sources.LAYERS, tie=False, dtype="float32")


def loaded(folder: Path, verifier: Path, config: dict[str, Any], name: str) -> Any:
    """Return the converted draft as a model of ours, which what its `specc.json` says is enough for."""
    said = json.loads((folder / "specc.json").read_text())["resolved"]
    defaults = algorithm(said["draft"]["algorithm"]).section.model_validate({"algorithm": said["draft"]["algorithm"]})
    draft = merged(defaults.model_dump(), said["draft"])
    tensors = load_file(folder / "model.safetensors")
    own = {**config, **said["decoder"]}
    assert said["draft"] == section(layout(name), json.loads((folder.parents[1] / "source/config.json").read_text()),
                                    config)[0]  # fmt: skip
    return load(tensors, draft, own, read_verifier(verifier, own, tensors.get("d2t"), torch.float32)), draft, own


@pytest.mark.parametrize("name", [name for name, (row, _) in sources.ALL.items() if row != "eagle"])
def test_a_converted_draft_computes_what_its_source_does(name: str, verifier: Path, tmp_path: Path) -> None:
    detected, make = sources.ALL[name]
    written, config = make(), drafts.verifier_config(verifier)
    folder = sources.convert(tmp_path / "stage", written.into(tmp_path / "source"), verifier, config)
    read_speculator(folder)
    model, draft, _ = loaded(folder, verifier, config, detected)
    ends = load_file(verifier / "model.safetensors")
    embedding, head = ends["model.embed_tokens.weight"], ends["lm_head.weight"]
    random = torch.Generator().manual_seed(11)
    for length in (2, 9, 17):
        ids = torch.randint(384, (length,), generator=random)
        states = torch.randn(length, len(draft["hidden_state_layers"]), 64, generator=random)
        drafted: list[int] = torch.randint(384, (DRAFTED,), generator=random).tolist()
        for count in range(DRAFTED):
            found = model.logits(Reading(ids, states, states[:, 0]), torch.tensor(drafted[:count], dtype=torch.int64))
            arguments = (written.config, written.tensors)
            match detected:
                case "eagle3" | "modelopt":
                    embeds = written.tensors.get("embed_tokens.weight", embedding)
                    wanted = reference.eagle3(*arguments, embeds, ids, states, drafted[:count])
                case "peagle":
                    embeds = written.tensors["embed_tokens.weight"]
                    wanted = reference.peagle(*arguments, embeds, ids, states, drafted[:count])
                case "dflash":
                    wanted = reference.dflash(*arguments, (embedding, head), ids, states, drafted[:count])
                case _:
                    wanted = reference.dspark(*arguments, (embedding, head), ids, states, drafted[:count])
            torch.testing.assert_close(found, wanted, **CLOSE)


def test_a_converted_mtp_head_computes_what_it_did_in_its_verifier(tmp_path: Path) -> None:
    where = mtp_heads.make(tmp_path / "source", "mimo")
    config = mtp_heads.facts("mimo", where)
    folder = sources.convert(tmp_path / "stage", where, where, config)
    read_speculator(folder)
    model, *_ = loaded(folder, where, config, "mtp")
    raw, weights = json.loads((where / "config.json").read_text()), load_file(where / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    random = torch.Generator().manual_seed(12)
    ids, last = torch.randint(384, (9,), generator=random), torch.randn(9, 64, generator=random)
    for count in range(DRAFTED):
        drafted: list[int] = torch.randint(384, (count,), generator=random).tolist()
        found = model.logits(Reading(ids, last[:, None, :][:, :0], last), torch.tensor(drafted, dtype=torch.int64))
        wanted = reference.mimo(raw, weights, (embedding, embedding), ids, last, drafted)
        torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("fused", [True, False])
def test_biases_of_eagle_go_to_where_vllm_has_them(fused: bool, layers: int, verifier: Path, tmp_path: Path) -> None:
    """What vLLM computes with the converted tensors is the same forward pass, without a bias of `fc`."""
    written, config = sources.eagle_biased(), drafts.verifier_config(verifier)
    if not fused:
        written.tensors["fc.bias"].zero_()
    if layers == 2:
        draw, biases = sources.Draw(13), [name for name in written.tensors if name.endswith("_proj.bias")]
        more = {name.replace("layers.0", "layers.1"): draw.matrix(*written.tensors[name].shape) for name in biases}
        written = sources.Written(
            written.config | {"num_hidden_layers": 2},
            {**written.tensors, **more, **sources.layer(draw, "layers.1")},
        )
    where = written.into(tmp_path / "source")
    if fused and layers == 2:
        with pytest.raises(SpeccError, match=r"`fc\.bias` would be left out .* and is not only zeros"):
            sources.convert(tmp_path / "stage", where, verifier, config)
        return
    folder = sources.convert(tmp_path / "stage", where, verifier, config)
    said, made = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert (said["attention_bias"], said["qkv_bias"]) == (fused, True)
    assert "fc.bias" not in made
    assert ("layers.0.self_attn.o_proj.bias" in made) == fused
    ends = load_file(verifier / "model.safetensors")
    random = torch.Generator().manual_seed(14)
    ids, states = torch.randint(384, (9,), generator=random), torch.randn(9, 64, generator=random)
    for drafted in ([], [5], [5, 70]):
        both = ((written.tensors, written.config), (made, written.config))
        wanted, found = (
            reference.eagle(raw, tensors, tensors["embed_tokens.weight"], ids, states, drafted, ends["lm_head.weight"])
            for tensors, raw in both
        )
        torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["enorm.weight", "layers.0.input_layernorm.weight"])
def test_a_norm_that_vllm_does_not_compute_is_refused_by_its_name(name: str, verifier: Path, tmp_path: Path) -> None:
    written = sources.eagle()
    written.tensors[name] = torch.ones(64)
    with pytest.raises(SpeccError, match=f"a norm that vLLM does not compute: `{name}`"):
        sources.convert(tmp_path / "s", written.into(tmp_path / "source"), verifier, drafts.verifier_config(verifier))


@pytest.mark.parametrize("form", ["bin", "bin shards", "safetensors shards"])
def test_the_form_of_the_weights_makes_no_difference(form: str, verifier: Path, tmp_path: Path) -> None:
    written, config = sources.safeailab(), drafts.verifier_config(verifier)
    folders = [
        sources.convert(
            tmp_path / kind / "stage", written.into(tmp_path / kind / "source", form=kind), verifier, config
        )
        for kind in ("safetensors", form)
    ]
    one, two = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two


def test_copies_of_the_verifiers_ends_are_left_out_and_others_are_not(verifier: Path, tmp_path: Path) -> None:
    written, config = sources.dspark(verifier=verifier), drafts.verifier_config(verifier)
    folder = sources.convert(tmp_path / "stage", written.into(tmp_path / "source"), verifier, config)
    report = json.loads((folder / "conversion.json").read_text())
    why = "a copy of the verifier's own, which the draft shares"
    assert report["left_out"] == {"embed_tokens.weight": why, "lm_head.weight": why}
    written.tensors["lm_head.weight"] = written.tensors["lm_head.weight"] + 1
    with pytest.raises(SpeccError, match=r"`lm_head\.weight` would be left out .* and is not the verifier's own"):
        sources.convert(tmp_path / "other", written.into(tmp_path / "source"), verifier, config)

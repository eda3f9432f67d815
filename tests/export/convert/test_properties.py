"""Nothing of a source is dropped in silence: a tensor that is gone, new, renamed or of another shape is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402

import drafts  # noqa: E402
from export.convert import sources  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.core.layouts import LAYOUTS, assign, detect, layout, section  # noqa: E402
from specc.core.layouts.registry import mismatch  # noqa: E402

pytestmark = pytest.mark.engine
CONFIG = {
    "hidden_size": 64, "vocab_size": 384, "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "intermediate_size": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
}  # fmt: skip
VARIANTS = some.sampled_from(sorted(sources.ALL))


def shapes(name: str) -> tuple[str, dict[str, object], dict[str, tuple[int, ...] | None]]:
    detected, make = sources.ALL[name]
    written = make()
    return detected, written.config, {key: tuple(tensor.shape) for key, tensor in written.tensors.items()}


def refused(name: str, found: dict[str, tuple[int, ...] | None]) -> str:
    """Return what is said of a source's tensors; nothing is said of good ones."""
    detected, config, _ = shapes(name)
    draft, decoder = section(layout(detected), config, CONFIG)
    with pytest.raises(SpeccError) as caught:
        assign(layout(detected), draft, decoder, found)
    return caught.value.message


@pytest.mark.parametrize("name", sources.ALL)
def test_a_folder_is_of_one_layout_by_its_configuration_alone_and_by_its_names(name: str) -> None:
    detected, config, found = shapes(name)
    assert detect(config, found).name == detect(config, None).name == detected
    draft, decoder = section(layout(detected), config, CONFIG)
    assigned = assign(layout(detected), draft, decoder, found)
    places = {place.name for ways in assigned.taken.values() for place in ways}
    assert places | set(assigned.ignored) == set(found)
    assert {*assigned.taken, *assigned.filled} == set(layout(detected).tensors(draft, decoder))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=VARIANTS, data=some.data())
def test_a_dropped_tensor_is_missed_by_name_or_made_of_something_that_is_said(name: str, data: some.DataObject) -> None:
    detected, config, found = shapes(name)
    gone = data.draw(some.sampled_from(sorted(found)))
    draft, decoder = section(layout(detected), config, CONFIG)
    before = assign(layout(detected), draft, decoder, found)
    del found[gone]
    if gone in before.ignored:
        assert set(assign(layout(detected), draft, decoder, found).ignored) == set(before.ignored) - {gone}
    elif gone in layout(detected).filled:
        after = assign(layout(detected), draft, decoder, found)
        assert gone in {spec.name for spec in after.filled}
    else:
        assert f"`{gone}`" in refused(name, found)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=VARIANTS, data=some.data())
def test_a_new_a_renamed_and_a_misshapen_tensor_are_named(name: str, data: some.DataObject) -> None:
    detected, config, found = shapes(name)
    draft, decoder = section(layout(detected), config, CONFIG)
    taken = {place.name for ways in assign(layout(detected), draft, decoder, found).taken.values() for place in ways}
    one = data.draw(some.sampled_from(sorted(taken)))
    added = data.draw(some.sampled_from([f"{one}_extra", one.replace("weight", "bias") + "2", "adapter.weight"]))
    assert f"`{added}`" in refused(name, {**found, added: (3, 5)})
    rest = {key: shape for key, shape in found.items() if key != one}
    said = refused(name, {**rest, f"{one}x": found[one]})
    assert f"`{one}x`" in said
    shape = found[one] or ()
    assert f"`{one}` is {[*shape, 2]}, not" in refused(name, {**found, one: (*shape, 2)})


def test_a_misnamed_tensor_is_told_as_one() -> None:
    _, _, found = shapes("SafeAILab")
    found["midlayer.self_atn.q_proj.weight"] = found.pop("midlayer.self_attn.q_proj.weight")
    said = refused("SafeAILab", found)
    assert said.startswith("1 tensor of the source does not fit the layout `eagle3`")
    assert "`midlayer.self_attn.q_proj.weight` is named `midlayer.self_atn.q_proj.weight`" in said


def test_both_names_of_one_layer_are_one_too_many() -> None:
    _, _, found = shapes("SafeAILab")
    found["layers.0.hidden_norm.weight"] = (64,)
    assert "`midlayer.hidden_norm.weight` and `layers.0.hidden_norm.weight` are the same tensor" in refused(
        "SafeAILab", found
    )


def test_a_gate_that_the_speculators_library_drops_is_an_error_here() -> None:
    _, _, found = shapes("DFlash, fused")
    found["layers.0.self_attn.g_proj.weight"] = (64, 64)
    assert "`layers.0.self_attn.g_proj.weight` is not known" in refused("DFlash, fused", found)


def test_a_folder_of_no_layout_is_told_why_of_each_and_one_of_two_to_choose() -> None:
    with pytest.raises(SpeccError) as caught:
        detect({"architectures": ["GPT2LMHeadModel"]}, {"wte.weight"})
    assert [line.split(":")[0].strip() for line in (caught.value.note or "").splitlines()] == list(LAYOUTS)
    both = {**sources.LLAMA, "architectures": ["DFlashDraftModel"], "dflash_config": {}, "markov_rank": 4,
            "target_layer_ids": [1]}  # fmt: skip
    with pytest.raises(SpeccError, match="of the layout `dflash` and of `dspark`") as caught:
        detect(both, None)
    assert caught.value.hint == "say which with `--from NAME`"
    speculator = {"speculators_model_type": "eagle3", "draft_vocab_size": 8}
    assert all(mismatch(row, speculator, None) for row in LAYOUTS.values())


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("SafeAILab", {"hidden_act": "gelu"}, "sets `hidden_act` to gelu"),
        ("SafeAILab", {"hidden_size": 128}, "`hidden_size` is 128, and the verifier's 64"),
        ("SafeAILab", {"target_hidden_size": 128}, "reads states of width 128"),
        ("SafeAILab", {"rope_scaling": {"rope_type": "odd", "factor": 2}}, "type `odd` are not known"),
        ("SpecForge", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]}}, "comes out of layer 5"),
        ("ModelOpt", {"num_hidden_layers": "two"}, "lacks or garbles invalid literal"),
        ("P-EAGLE", {"ptd_token_id": None}, "lacks or garbles 'mask_token_id'"),
        ("DFlash", {"is_causal": True}, "blocks are causal and see all positions"),
        ("DFlash", {"layer_types": ["full_attention", "sliding_attention"]}, "layers are of several kinds"),
        ("DFlash", {"output_multiplier": 2.0}, "sets `output_multiplier` to 2.0"),
        ("DFlash", {"input_embedding_scale": 8.0}, "reads embeddings times 8.0"),
        ("DSpark", {"markov_rank": 0}, "has no Markov head"),
        ("EAGLE-1", {"attention_bias": True}, "sets `attention_bias` to true"),
    ],
)
def test_what_the_format_has_no_word_for_is_refused(name: str, changes: dict[str, object], said: str) -> None:
    detected, config, _ = shapes(name)
    with pytest.raises(SpeccError) as caught:
        section(layout(detected), {**config, **changes}, CONFIG)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("SafeAILab, all tokens", "d2t", torch.arange(384), "left out (the draft keeps the whole vocabulary)"),
        ("SafeAILab", "d2t", torch.arange(96) - 50, "does not map to the verifier's tokens"),
        ("SafeAILab", "t2d", torch.ones(384, dtype=torch.bool), "marks other tokens than its `d2t`"),
        ("SafeAILab", "norm.weight", torch.full((64,), float("nan")), "not finite numbers"),
    ],
)
def test_values_that_are_none_or_would_be_lost_are_refused_and_nothing_is_written(
    name: str, key: str, value: torch.Tensor, said: str, tmp_path: Path
) -> None:
    written = sources.ALL[name][1]()
    written.tensors[key] = value
    verifier = make_verifier(tmp_path / "verifier", layers=6, tie=False, dtype="float32")
    where = written.into(tmp_path / "source")
    with pytest.raises(SpeccError) as caught:
        sources.convert(tmp_path / "stage", where, verifier, CONFIG)
    assert said in caught.value.message
    assert not any((tmp_path / "stage/output").iterdir())


def test_a_card_says_where_it_is_from_and_that_nothing_was_trained(tmp_path: Path) -> None:
    verifier = make_verifier(tmp_path / "verifier", layers=6, tie=False, dtype="float32")
    for name, format_said in (
        ("SafeAILab", "in the speculators format."),
        ("EAGLE-1", "not in the speculators format"),
    ):
        where = sources.ALL[name][1]().into(tmp_path / name / "some-draft")
        folder = sources.convert(tmp_path / name / "stage", where, verifier, drafts.verifier_config(verifier))
        card = (folder / "README.md").read_text()
        for part in ("Nothing was trained here", format_said, "`some-draft`", "vllm serve VERIFIER"):
            assert part in card, part
        provenance = json.loads((folder / "provenance.json").read_text())["predicate"]["buildDefinition"]
        materials = {item["name"] for item in provenance["resolvedDependencies"]}
        assert materials == {"source/config.json", "source/model.safetensors", "verifier/config.json"}
        assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))

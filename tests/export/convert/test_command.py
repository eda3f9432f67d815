"""`specc convert` as a user types it, and a spec whose draft starts from a conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import drafts  # noqa: E402
import mtp_heads  # noqa: E402
from export.convert import sources  # noqa: E402
from projects import Project  # noqa: E402
from small import make_verifier, write_prompts  # noqa: E402
from specc.core.contracts import Note  # noqa: E402
from specc.core.stage import Stage  # noqa: E402
from specc.train.initial import initial_weights  # noqa: E402
from stages import make_job  # noqa: E402

pytestmark = pytest.mark.engine
SPEC = """\
version: 1
name: goes-on
verifier: {model: ./verifier, dtype: float32}
draft:
  algorithm: eagle3
  vocabulary: 96
  intermediate_size: 96
  norm_before_residual: false
  norm_before_fc: false
  norm_output: false
  init: {convert: ./draft}
data:
  sources: [{file: prompts.jsonl}]
  responses: {from: data}
train: {batch_tokens: 4096, precision: fp32}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    make_verifier(folder / "verifier", layers=8, tie=False, dtype="float32")
    sources.safeailab().into(folder / "draft", form="bin")
    sources.eagle().into(folder / "eagle")
    write_prompts(folder / "prompts.jsonl", 12, answers=True)
    config = json.loads((folder / "draft/config.json").read_text())
    alike = json.loads((folder / "verifier/config.json").read_text())
    (folder / "draft/config.json").write_text(json.dumps(config | {"rms_norm_eps": alike["rms_norm_eps"]}))
    (folder / "spec.yaml").write_text(SPEC)
    return Project(folder, folder / ".specc/store")


def convert(project: Project, *arguments: str, expect: int = 0) -> tuple[dict[str, Any], str]:
    out, said = project.run("convert", *arguments, "--json", expect=expect)
    return json.loads(out), said


def test_a_draft_is_converted_once_and_its_lock_says_of_what(project: Project) -> None:
    arguments = ("./draft", "--verifier", "./verifier", "--out", "out/converted")
    first, said = convert(project, *arguments)
    assert "draft: EAGLE-3 of SafeAILab or SpecForge (layout `eagle3`)" in said
    folder, lock = project.folder / "out/converted", project.folder / "out/converted.lock.json"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "conversion.json", "model.safetensors", "provenance.json", "specc.json",
    }  # fmt: skip
    assert (first["layout"], first["written"], first["speculators"]) == ("eagle3", True, True)
    assert first["filled"] == {"embed_tokens.weight": "the verifier's embeddings"}
    pinned = json.loads(lock.read_text())
    values, results = pinned["locked"]["values"], pinned["results"]
    assert values["source"]["layout"] == "eagle3"
    assert set(values["source"]["files"]) == {"config.json", "pytorch_model.bin"}
    assert {f"sha256:{digest}" for row in results.values() for digest in row.values()} == set(
        first["artifacts"].values()
    )
    assert str(project.folder) not in lock.read_text()

    before = lock.read_text()
    again, said = convert(project, *arguments)
    assert not again["written"]
    assert "started" not in said
    assert lock.read_text() == before
    other, said = convert(project, str(project.folder / "draft"), *arguments[1:-1], "out/other")
    assert other["artifacts"] == first["artifacts"]
    assert str(project.folder) not in (project.folder / "out/other.lock.json").read_text()


def test_words_for_a_person_end_in_the_folder(project: Project) -> None:
    out, said = project.run("convert", "eagle", "--verifier", "verifier", "--out", "as-eagle",
                            "--speculative-tokens", "2")  # fmt: skip
    assert out == "as-eagle\n"
    assert "`fc.bias` left out: a bias of zeros, which changes nothing" in said
    assert 'the layout that vLLM serves with `"method": "eagle"`' in said
    config = json.loads((project.folder / "as-eagle/config.json").read_text())
    assert (config["architectures"], config["num_attention_heads"]) == (["LlamaForCausalLM"], sources.HEADS)
    assert '"num_speculative_tokens": 2' in (project.folder / "as-eagle/README.md").read_text()


@pytest.mark.parametrize(("source", "serving"), [("./draft", {"method": "eagle3"}), ("./eagle", {"method": "eagle"})])
def test_a_conversion_is_served_and_exported_by_its_id(project: Project, source: str, serving: dict[str, str]) -> None:
    made, _ = convert(project, source, "--verifier", "./verifier", "--out", f"out/of-{source[2:]}",
                      "--speculative-tokens", "2")  # fmt: skip
    digest = made["artifacts"]["converted"].removeprefix("sha256:")
    out, _ = project.run("serve", digest[:12], "--dry-run", "--json")
    said = json.loads(out)
    line = said["command"]
    asked = json.loads(line[line.index("--speculative-config") + 1])
    assert asked == {**serving, "model": said["speculator"], "num_speculative_tokens": 2}
    assert digest[:12] in said["speculator"]
    project.run("export", digest[:12], "--to", f"plain-{source[2:]}")
    plain = project.folder / f"plain-{source[2:]}"
    assert {path.name for path in plain.iterdir()} == {path.name for path in Path(said["speculator"]).iterdir()}


def test_what_vllm_has_a_method_of_its_own_for_is_measured_at_a_server(project: Project) -> None:
    made, _ = convert(project, "./eagle", "--verifier", "./verifier", "--out", "out/measured")
    _, said = project.run("evaluate", made["artifacts"]["converted"][7:19], "--prompts", "prompts.jsonl", expect=2)
    assert "is measured at a server" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("./draft", "--out", "prompts.jsonl"), "this is a file, not a folder"),
        (("./draft", "--out", "verifier"), "the folder is not empty"),
        (("./draft", "--out", "."), "the working directory cannot be replaced"),
        (("./nothing", "--out", "new"), "there is no folder `./nothing`"),
        (("./verifier", "--out", "new"), "the folder is of no known layout"),
        (("./draft", "--out", "new", "--revision", "main"), "is no hub id, and has no revisions"),
        (("./eagle", "--out", "new", "--from", "dflash"), "lacks or garbles"),
        (("org/draft", "--out", "new", "--offline"), "is not pinned by a lock"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    project: Project, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(path for path in project.folder.rglob("*") if ".specc" not in path.parts)
    _, words = project.run("convert", *arguments, "--verifier", "./verifier", expect=1)
    assert said in words
    assert sorted(path for path in project.folder.rglob("*") if ".specc" not in path.parts) == before


def test_peagle_asks_for_the_tokens_that_its_folder_does_not_name(project: Project) -> None:
    sources.peagle().into(project.folder / "peagle")
    _, said = project.run("convert", "peagle", "--verifier", "verifier", "--out", "new", expect=1)
    assert "hint: `--speculative-tokens 5`, or as many as it was trained for" in said


def test_an_mtp_head_goes_out_of_a_verifier_and_back(tmp_path: Path) -> None:
    where = mtp_heads.make(tmp_path / "mimo", "mimo")
    raw = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(raw | {"model_type": "mimo"}))
    project = Project(tmp_path, tmp_path / "store")
    head, _ = convert(project, "mimo", "--verifier", "mimo", "--out", "head")
    assert head["layout"] == "mtp"
    assert set(head["left_out"].values()) == {"of the verifier's body, not of its head"}
    changed = load_file(tmp_path / "head/model.safetensors")
    changed["mtp_layers.0.input_proj.weight"] += 1
    from safetensors.torch import save_file

    save_file(changed, tmp_path / "head/model.safetensors")
    back, _ = convert(project, "head", "--verifier", "mimo", "--stitch", "--out", "whole")
    one = [change["name"] for change in back["stitched"]["changed"] if change["changed_elements"]]
    assert one == ["model.mtp_layers.0.input_proj.weight"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("mimo", "whole"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(one)
    _, said = project.run("convert", "mimo", "--verifier", "mimo", "--out", "x", "--from", "eagle3", expect=1)
    assert "--from" in said

    # What came out has a name, which keeps it, and what it is made of, without its lock; and which it is served by.
    assert (head["ref"], back["ref"]) == ("mimo", "head")
    for name in ("head", "whole"):
        (tmp_path / f"{name}.lock.json").unlink()
    assert json.loads(project.run("gc", "--keep-last", "0", "--json")[0])["artifacts"] == []
    named = {one["name"]: one["digest"] for one in json.loads(project.run("status", "--json")[0])["named"]}
    assert named == {"mimo": head["artifacts"]["converted"], "head": back["artifacts"]["stitched"]}
    served = json.loads(project.run("serve", "head", "--dry-run", "--json")[0])
    assert named["head"][7:19] in served["speculator"]
    gone = json.loads(project.run("gc", "--keep-last", "0", "--forget", "head", "--json")[0])["artifacts"]
    assert {one["stage"] for one in gone} == {"converted", "stitched"}


def test_a_spec_starts_from_a_conversion_and_its_plan_shows_it(project: Project) -> None:
    made, _ = convert(project, "./draft", "--verifier", "./verifier", "--out", "out/again")
    project.run("lock", "spec.yaml")
    locked = json.loads((project.folder / "spec.lock.json").read_text())["locked"]
    init = locked["values"]["draft"]["init"]
    assert (init["convert"], init["layout"], init["name"], init["revision"]) == ("./draft", "eagle3", "draft", None)
    assert locked["stages"]["converted"] == 1
    stages = {one["stage"]: one for one in json.loads(project.run("plan", "--json", "spec.yaml")[0])["stages"]}
    assert f"sha256:{stages['converted']['digest']}" == made["artifacts"]["converted"]  # the same, made once
    assert "converted" not in stages["draft"]["waits_for"]
    assert "read from `./draft`" in project.run("explain", "spec.yaml", "draft.init.layout")[0]
    assert "converted" in project.run("status", "spec.yaml")[0]
    text = SPEC.replace("./draft", "./eagle")
    (project.folder / "other.yaml").write_text(text)
    _, said = project.run("lock", "--dry-run", "other.yaml", expect=1)
    assert "other.yaml:11:19: the source is EAGLE-1, EAGLE-2 or HASS, which no algorithm here trains" in said


def test_training_goes_on_from_the_weights_of_a_conversion_and_says_what_it_lacks(
    project: Project, tmp_path: Path
) -> None:
    config = drafts.verifier_config(project.folder / "verifier")
    values = drafts.resolved(project.folder / "verifier", vocabulary=96, intermediate_size=96, norm_output=False,
                             norm_before_fc=False, norm_before_residual=False, init={"layout": "eagle3"})  # fmt: skip
    folder = sources.convert(tmp_path / "stage", project.folder / "draft", project.folder / "verifier", config)
    events: list[Any] = []
    job = make_job("draft", tmp_path / "draft", values, inputs={"converted": folder})
    weights = initial_weights(Stage(job, events.append))
    written = sources.safeailab().tensors
    assert torch.equal(weights["layers.0.mlp.up_proj.weight"], written["midlayer.mlp.up_proj.weight"])
    assert not {"lm_head.weight", "embed_tokens.weight"} & weights.keys()
    said = [event.text for event in events if isinstance(event, Note)]
    assert said == ["the converted draft has `lm_head.weight` of its own, and gets the verifier's here"]

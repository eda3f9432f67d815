"""`specc lock --upgrade` and the flags that promise to write nothing, on verifiers that can be locked and not run."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from specc.core.cli import main
from specc.core.compiler import compile_spec
from specc.core.errors import SpeccError
from specc.core.lock import CLASSES
from specc.core.plan import lower

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3}
data:
  sources: [{file: prompts.jsonl}]
train:
  batch_tokens: 4096
"""
EVALUATE = "evaluate: {prompts: [{file: held-out.jsonl}], max_tokens: 64}\n"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 400, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages[0].role }}",
    "model.safetensors": b"weights that locking never reads as such",
}
CLASS = "cpu-avx2"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec with its files, in the working directory."""
    (tmp_path / "tiny").mkdir()
    for name, data in FILES.items():
        (tmp_path / "tiny" / name).write_bytes(data)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "Goodbye"}\n')
    (tmp_path / "tiny.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECC_STORE", raising=False)
    return tmp_path / "tiny.yaml"


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return what it says, or with `--json` what it prints."""

    def run(*arguments: str, expect: int = 0) -> str:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert code == expect, out + err
        return out if "--json" in arguments else err

    return run


def read(spec: Path) -> dict[str, Any]:
    """Return the lock."""
    return json.loads(spec.with_name("tiny.lock.json").read_text())


def rewrite(spec: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the lock as another release or another day would have written it; return its bytes."""
    raw = read(spec)
    change(raw)
    path = spec.with_name("tiny.lock.json")
    path.write_text(json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return path.read_bytes()


def age(raw: dict[str, Any]) -> None:
    """Give every part of a lock something that this release would not write."""
    values = raw["locked"]["values"]
    values["date"] = "2020-02-02"
    values["train"]["seed"] = 7
    values["data"]["sequence_length"] = 1024
    values["verifier"]["chat_template_sha256"] = "0" * 64
    for row in raw["locked"]["engines"].values():
        row["torch"] = "2.0.0"


def moved(run: Run, *arguments: str) -> set[str]:
    """Return what a lock would move, engines as one."""
    found = json.loads(run("lock", "--dry-run", "--json", *arguments))
    assert found["written"] is False
    return {item["path"].split(".")[0] if "engines" in item["path"] else item["path"] for item in found["moved"]}


# What `--upgrade` moves

VERIFIER = {"verifier.chat_template_sha256"}
ENGINES = {"engines"}
DEFAULTS = {"date", "train.seed", "data.sequence_length"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tiny.yaml"], set[str]()),
        (["--upgrade", "verifier", "tiny.yaml"], VERIFIER),
        (["--upgrade", "data", "tiny.yaml"], set[str]()),
        (["--upgrade", "engines", "tiny.yaml"], ENGINES),
        (["tiny.yaml", "--upgrade", "defaults"], DEFAULTS),
        (["--upgrade=engines", "tiny.yaml", "--upgrade", "verifier"], ENGINES | VERIFIER),
        (["--upgrade", "tiny.yaml"], VERIFIER | ENGINES | DEFAULTS),
        (["tiny.yaml", "--upgrade"], VERIFIER | ENGINES | DEFAULTS),
        (["--upgrade", "all", "tiny.yaml"], VERIFIER | ENGINES | DEFAULTS),
        (["--upgrade", "--", "tiny.yaml"], VERIFIER | ENGINES | DEFAULTS),
    ],
)
def test_an_upgrade_moves_what_it_names_and_nothing_else(
    spec: Path, run: Run, arguments: list[str], expected: set[str]
) -> None:
    run("lock", "tiny.yaml")
    before = rewrite(spec, age)
    assert moved(run, *arguments) == expected
    assert spec.with_name("tiny.lock.json").read_bytes() == before, "a dry run writes nothing"
    run("lock", *arguments)
    assert (spec.with_name("tiny.lock.json").read_bytes() == before) == (not expected)
    run("lock", "--check", "tiny.yaml")
    assert moved(run, *arguments) == set(), "once is enough"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--upgrade", "engine", "tiny.yaml"], "'engine' is not one of 'verifier', 'data', 'engines', 'defaults'"),
        (["--upgrade=tiny.yaml"], "'tiny.yaml' is not one of"),
        (["--upgrade", "engines"], "Missing argument 'SPEC...'"),
        (["--upgrade"], "Missing argument 'SPEC...'"),
    ],
)
def test_a_part_that_is_none_and_a_missing_spec_are_usage_errors(
    spec: Path, run: Run, arguments: list[str], said: str
) -> None:
    assert said in run("lock", *arguments, expect=2)


def test_a_check_says_which_upgrade_writes_what_it_found(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, lambda raw: raw["locked"]["values"]["train"].update(seed=7))
    assert run("lock", "--check", "--upgrade", "defaults", "tiny.yaml", expect=1) == (
        "error: the lock tiny.lock.json is stale, and `--check` was given\n"
        "  train.seed: 7 in the lock, 42 by default\n"
        "\nhint: `specc lock --upgrade defaults tiny.yaml` writes it anew\n"
    )
    assert "hint: `specc lock --upgrade tiny.yaml`" in run("lock", "--check", "tiny.yaml", "--upgrade", expect=1)


# Several specs


def test_a_check_takes_several_specs_and_says_everything_at_once(spec: Path, run: Run) -> None:
    for name in ("other", "third"):
        spec.with_name(f"{name}.yaml").write_text(SPEC)
    run("lock", "tiny.yaml")
    run("lock", "third.yaml")
    assert run("lock", "--check", "tiny.yaml", "third.yaml") == (
        "tiny.lock.json is up to date\nthird.lock.json is up to date\n"
    )
    good = json.loads(run("lock", "--check", "--json", "tiny.yaml", "third.yaml"))
    assert good == {"locks": ["tiny.lock.json", "third.lock.json"]}
    before = tree(spec.parent)
    spec.write_text(SPEC.replace("4096", "8192"))
    spec.with_name("bad.yaml").write_text(SPEC + "  learing_rate: 1e-3\n  batch: 3\n")
    specs = ["tiny.yaml", "other.yaml", "bad.yaml", "third.yaml"]
    said = run("lock", "--check", *specs, expect=1)
    assert said.startswith("third.lock.json is up to date\nerror: the lock tiny.lock.json is stale")
    assert "error: there is no lock `other.lock.json`" in said
    assert said.count("error: bad.yaml:9:3: unknown field `learing_rate`") == said.count("error: bad.yaml:10:3") == 1
    errors = json.loads(run("lock", "--check", "--json", *specs, expect=1))["errors"]
    assert len(errors) == said.count("error: ") == 4
    spec.write_text(SPEC)
    spec.with_name("bad.yaml").unlink()
    assert tree(spec.parent) == before, "a check writes nothing"


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--upgrade", "engines"]])
def test_one_lock_is_written_at_a_time(spec: Path, run: Run, arguments: list[str]) -> None:
    before = tree(spec.parent)
    assert run("lock", *arguments, "tiny.yaml", "other.yaml", expect=2) == (
        "error: `specc lock` writes one lock, and 2 specs were given\n"
        "\nhint: lock them one by one; `specc lock --check SPEC...` takes several\n"
    )
    assert tree(spec.parent) == before


def test_what_moved_says_where_it_is_from(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, age)
    spec.write_text(SPEC + "  epochs: 5\n")
    (spec.parent / "prompts.jsonl").write_text('{"prompt": "Hello again"}\n')
    lines = run("lock", "--dry-run", "--upgrade", "tiny.yaml")
    assert "  train.epochs: 3 in the lock, 5 in the spec (tiny.yaml:9)\n" in lines
    assert "… now (tiny.yaml:6)\n" in lines, "the prompts' hash, at the line that names them"
    assert "data.sequence_length: 1024 in the lock, 2048 derived from verifier.config.max_position" in lines
    assert "… read from the verifier `./tiny`\n" in lines
    assert "  engines.cuda.torch: 2.0.0 in the lock, 2.13.0 in specc\n" in lines
    assert lines.endswith("nothing was written (`--dry-run`)\n")


def test_the_spec_and_the_files_beside_it_are_followed_by_every_lock(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, age)
    (spec.parent / "prompts.jsonl").write_text('{"prompt": "Hello again"}\n')
    assert moved(run, "--upgrade", "engines", "tiny.yaml") == ENGINES | {"data.sources.0.sha256"}
    (spec.parent / "prompts.jsonl").unlink()
    assert moved(run, "tiny.yaml") == set(), "of a file that is not here the lock knows the hash"
    assert "there is no file `prompts.jsonl`" in run("lock", "--upgrade", "data", "tiny.yaml", expect=1)


# A hub's branch that moves

LATER = {**FILES, "config.json": json.dumps({**CONFIG, "max_position_embeddings": 1024}).encode()}
COMMITS = {"a" * 40: FILES, "b" * 40: LATER}


class Hub(BaseHTTPRequestHandler):
    heads: dict[str, str]

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/tiny/revision/"):
            commit = self.heads[self.path.rsplit("/", 1)[1].split("?")[0]]
            weights = {"sha256": hashlib.sha256(FILES["model.safetensors"]).hexdigest()}
            files = [{"rfilename": name, "lfs": weights if name.endswith("s") else None} for name in COMMITS[commit]]
            self._send(json.dumps({"sha": commit, "siblings": files}).encode())
        else:
            commit, name = self.path.removeprefix("/org/tiny/resolve/").split("/")
            self._send(COMMITS[commit][name])

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A hub on this machine: which commit each branch is at."""
    Hub.heads = {"main": "a" * 40, "old": "a" * 40}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Hub.heads
    server.shutdown()
    server.server_close()


def test_a_branch_that_moved_is_followed_by_upgrading_the_verifier_alone(
    spec: Path, run: Run, heads: dict[str, str]
) -> None:
    spec.write_text(SPEC.replace("./tiny", "org/tiny"))
    run("lock", "tiny.yaml")
    rewrite(spec, lambda raw: raw["locked"]["values"].update(date="2020-02-02"))
    heads["main"] = "b" * 40
    for part in ("data", "engines"):
        assert moved(run, "tiny.yaml", "--upgrade", part) == set()
    assert moved(run, "tiny.yaml", "--upgrade", "defaults") == {"date"}
    assert moved(run, "tiny.yaml", "--upgrade", "verifier") == {
        "verifier.revision", "verifier.files.config.json", "verifier.config.max_position_embeddings",
        "data.sequence_length",
    }  # fmt: skip


def test_a_revision_that_is_no_longer_written_is_the_main_branch_again(
    spec: Path, run: Run, heads: dict[str, str]
) -> None:
    heads["main"] = "b" * 40
    spec.write_text(SPEC.replace("./tiny", "org/tiny, revision: old"))
    run("lock", "tiny.yaml")
    assert read(spec)["locked"]["values"]["verifier"]["revision"] == "a" * 40
    spec.write_text(SPEC.replace("./tiny", f"org/tiny, revision: {'a' * 40}"))
    assert moved(run, "tiny.yaml") == {"verifier.asked_revision"}
    spec.write_text(SPEC.replace("./tiny", "org/tiny"))
    run("lock", "tiny.yaml")
    assert read(spec)["locked"]["values"]["verifier"]["revision"] == "b" * 40


# Engines and stages


def recipes(run: Run, *arguments: str) -> dict[str, str]:
    """Return the recipe of every stage of the plan."""
    stages = json.loads(run("plan", "--json", *arguments))["stages"]
    return {stage["stage"]: stage["recipe"] for stage in stages}


@pytest.mark.parametrize("name", CLASSES)
def test_a_plan_has_the_lock_s_engines(spec: Path, run: Run, name: str) -> None:
    run("lock", "tiny.yaml")
    before = recipes(run, "--class", name, "tiny.yaml")
    rewrite(spec, lambda raw: raw["locked"]["engines"][name].update(torch="2.0.0"))
    after = recipes(run, "--class", name, "tiny.yaml")
    assert {stage for stage in before if before[stage] != after[stage]} == {
        "responses", "tokens", "hidden_states", "draft", "checkpoint"
    }  # fmt: skip
    compiled = compile_spec(Path("tiny.yaml"), machine=name)
    assert compiled.machine.engines["torch"] == "2.0.0"
    assert compiled.moved == ()


def test_an_engine_that_a_release_adds_is_pinned_beside_the_lock_s_own(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    old = {"torch": "2.0.0", "vllm": "0.30.0"}
    rewrite(spec, lambda raw: raw["locked"]["engines"].update(cuda=old))
    said = run("plan", "--class", "cuda", "tiny.yaml")
    assert f"engines.cuda.zstandard: nothing in the lock, {CLASSES['cuda'].engines['zstandard']} in specc" in said
    run("lock", "tiny.yaml")
    found = json.loads(spec.with_name("tiny.lock.json").read_text())["locked"]["engines"]
    assert found["cuda"] == {**CLASSES["cuda"].engines, **old}


def test_a_class_that_the_lock_lacks_is_planned_with_this_release_s_engines_and_said(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, lambda raw: (raw["locked"].update({"class": "cpu-amx"}), raw["locked"]["engines"].pop("cuda")))
    run("lock", "--check", "tiny.yaml")
    said = run("plan", "--class", "cuda", "tiny.yaml")
    assert f"engines.cuda.torch: nothing in the lock, {CLASSES['cuda'].engines['torch']} in specc" in said
    with pytest.raises(SpeccError, match="is stale, and `--locked` was given"):
        compile_spec(Path("tiny.yaml"), trust="locked", machine="cuda")
    assert moved(run, "tiny.yaml", "--upgrade", "engines") == ENGINES


def test_a_stage_of_another_version_makes_the_lock_stale_and_is_named(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, lambda raw: raw["locked"]["stages"].update(draft=0))
    said = run("lock", "--check", "tiny.yaml", expect=1)
    assert "  stages.draft: 0 in the lock, 4 in specc\n" in said
    assert "hint: `specc lock tiny.yaml` writes it anew" in said
    run("lock", "tiny.yaml")
    run("lock", "--check", "tiny.yaml")


def filled(spec: Path) -> str:
    """Give the lock a result of every stage for a class, and return the class's name."""
    compiled = compile_spec(spec)
    plan = lower(compiled.lock.locked.values, CLASSES[CLASS])
    results = {stage.name: f"{index:064x}" for index, stage in enumerate(plan.stages)}
    rewrite(spec, lambda raw: raw.update(results={plan.numerics: results}))
    return plan.numerics


@pytest.mark.parametrize(
    ("change", "part", "kept"),
    [
        (lambda raw: None, "defaults",
         {"verifier", "conversations", "responses", "tokens", "hidden_states", "draft", "checkpoint"}),
        (age, "engines", {"verifier", "conversations"}),
        (lambda raw: raw["locked"]["values"]["train"].update(seed=7), "defaults",
         {"verifier", "conversations", "responses", "tokens", "hidden_states"}),
        (lambda raw: raw["locked"]["stages"].update(tokens=0), "data", {"verifier", "conversations", "responses"}),
        (lambda raw: None, "all", set[str]()),
    ],
)  # fmt: skip
def test_results_stay_where_recipes_and_code_are_the_same(
    spec: Path, run: Run, change: Callable[[dict[str, Any]], object], part: str, kept: set[str]
) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, change)
    numerics = filled(spec)
    run("lock", "--upgrade", part, "tiny.yaml")
    assert read(spec)["results"].get(numerics, {}).keys() == kept


# What an edited spec takes from its lock, and what it does not


def relock(spec: Path, run: Run, before: str, after: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Lock one text, change the lock, lock another text; return its values."""
    spec.write_text(before)
    run("lock", "tiny.yaml")
    rewrite(spec, change)
    spec.write_text(after)
    run("lock", "tiny.yaml")
    return read(spec)["locked"]["values"]


def test_sections_and_choices_that_go_take_their_defaults_with_them(spec: Path, run: Run) -> None:
    kept = relock(spec, run, SPEC + EVALUATE, SPEC, age)
    assert kept["evaluate"] is None
    assert kept["train"]["seed"] == 7
    assert kept["data"]["sequence_length"] == 1024, "what it is derived from has not moved"
    kept = relock(spec, run, SPEC + "  steps: 10\n", SPEC, age)
    assert (kept["train"]["epochs"], kept["train"]["steps"]) == (3, None)
    kept = relock(spec, run, SPEC, SPEC + "  steps: 10\n", age)
    assert (kept["train"]["epochs"], kept["train"]["steps"]) == (None, 10)
    kept = relock(spec, run, SPEC, SPEC + "  loss: {ce: 0.5}\n", age)
    assert kept["train"]["loss"] == {"ce": 0.5}
    kept = relock(
        spec, run, SPEC, SPEC + "  epochs: 4\n", lambda raw: raw["locked"]["values"]["train"].update(loss={"ce": 1.0})
    )
    assert kept["train"]["loss"] == {"ce": 1.0}, "a default loss is one value"


def test_a_folder_to_start_from_goes_with_its_line(spec: Path, run: Run) -> None:
    (spec.parent / "earlier").mkdir()
    for name in ("config.json", "model.safetensors"):
        (spec.parent / "earlier" / name).write_text("{}")
    kept = relock(spec, run, SPEC.replace("eagle3}", "eagle3, init: {from: ./earlier}}"), SPEC, age)
    assert kept["draft"]["init"] is None


def test_a_derived_value_moves_with_what_it_is_derived_from(spec: Path, run: Run) -> None:
    narrow = SPEC.replace("eagle3}", "eagle3, ttt: {steps: 2}}")
    kept = relock(spec, run, SPEC, narrow, age)
    assert kept["export"]["speculative_tokens"] == 2
    assert kept["data"]["sequence_length"] == 1024
    spec.write_text(narrow)
    (spec.parent / "tiny/config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 1536}))
    run("lock", "tiny.yaml")
    assert read(spec)["locked"]["values"]["data"]["sequence_length"] == 1536


# What writes nothing


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file beside the spec; what is in the store is the digest cache's."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".specc" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("arguments", "expect"),
    [
        (["lock", "--check"], 1),
        (["lock", "--check", "--upgrade"], 1),
        (["lock", "--dry-run"], 0),
        (["lock", "--dry-run", "--upgrade", "defaults"], 0),
        (["plan"], 0),
        (["status"], 0),
        (["build", "--locked"], 1),
    ],
)
@pytest.mark.parametrize("lock", ["none", "stale"])
def test_nothing_is_written_where_nothing_should_be(
    spec: Path, run: Run, arguments: list[str], expect: int, lock: str
) -> None:
    if lock == "stale":
        run("lock", "tiny.yaml")
        spec.write_text(SPEC.replace("4096", "8192"))
    before = tree(spec.parent)
    run(*arguments, "tiny.yaml", expect=expect)
    assert tree(spec.parent) == before


def test_a_locked_build_refuses_a_missing_and_a_stale_lock_in_words(spec: Path, run: Run) -> None:
    for flag in ("--locked", "--frozen"):
        assert run("build", flag, "tiny.yaml", expect=1) == (
            f"error: there is no lock `tiny.lock.json`, and `{flag}` was given\n"
            "\nhint: `specc lock tiny.yaml` writes it\n"
        )
    run("lock", "tiny.yaml")
    spec.write_text(SPEC.replace("4096", "8192"))
    assert run("build", "--locked", "tiny.yaml", expect=1) == (
        "error: the lock tiny.lock.json is stale, and `--locked` was given\n"
        "  train.batch_tokens: 4096 in the lock, 8192 in the spec (tiny.yaml:8)\n"
        "\nhint: `specc lock tiny.yaml` writes it anew\n"
    )


@pytest.mark.parametrize(
    "text", [SPEC.replace("4096", "8192"), SPEC.replace("prompts.jsonl", "others.jsonl") + EVALUATE, "version: [", ""]
)
def test_a_frozen_build_has_the_lock_s_values_whatever_the_spec_says(spec: Path, run: Run, text: str) -> None:
    original = SPEC.replace("eagle3}", "eagle3, vocabulary: full}") + "  loss: {kl: 0.9, ce: 0.1}\n" + EVALUATE
    spec.write_text(original)
    run("lock", "tiny.yaml")
    before = rewrite(spec, age)
    planned = compile_spec(spec).plan
    spec.write_text(text)
    (spec.parent / "held-out.jsonl").write_text('{"prompt": "changed"}\n')
    compiled = compile_spec(spec, trust="frozen")
    assert compiled.lock == compiled.before
    assert compiled.plan == planned
    assert compiled.resolved.files == {
        "prompts.jsonl": spec.parent / "prompts.jsonl",
        "held-out.jsonl": spec.parent / "held-out.jsonl",
        **{f"verifier/{name}": spec.parent / "tiny" / name for name in FILES},
    }
    (spec.parent / "tiny").rename(spec.parent / "gone")
    assert "there is no verifier at `./tiny`" in run("build", "--frozen", "tiny.yaml", expect=1)
    assert spec.with_name("tiny.lock.json").read_bytes() == before


def test_a_frozen_build_uses_the_lock_s_store(spec: Path, run: Run) -> None:
    spec.write_text(SPEC + "runtime: {store: elsewhere}\n")
    run("lock", "tiny.yaml")
    spec.write_text(SPEC)
    assert compile_spec(spec, trust="frozen").store.root == spec.parent / "elsewhere"


def test_a_frozen_build_refuses_the_lock_of_other_code(spec: Path, run: Run) -> None:
    run("lock", "tiny.yaml")
    rewrite(spec, lambda raw: raw["locked"]["stages"].update(draft=0))
    said = run("build", "--frozen", "tiny.yaml", expect=1)
    assert (
        "the lock tiny.lock.json is stale, and `--frozen` was given\n  stages.draft: 0 in the lock, 4 in specc" in said
    )

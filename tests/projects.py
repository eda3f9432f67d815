"""A small project that `specc` builds up to its vocabulary with no engine: four real stages, in under a second."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensor import one_tensor
from small import CHATML, make_tokenizer, write_prompts

SPEC: Final = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3, vocabulary: 128}
data:
  sources: [{file: prompts.jsonl}]
  responses: {from: data}
  shard_rows: 8
train: {batch_tokens: 4096}
"""
BUILT: Final = ("verifier", "conversations", "tokens", "vocabulary")
"""The stages that need no engine, each made of the one before it."""
CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 384, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with a spec `tiny.yaml`, and where its store is."""

    folder: Path
    store: Path
    prefix: tuple[str, ...] = ()
    """What stands before `specc`: a command that starts it otherwise."""

    def specc(self, *arguments: str, expect: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `specc` in the folder as a user would; no traceback is ever shown."""
        done = subprocess.run(self.command(*arguments), check=False, **self.options(**options))
        said = f"{done.returncode}\n{done.stdout}{done.stderr}"
        assert expect is None or done.returncode == expect, said
        assert "Traceback" not in said
        return done

    def run(self, *arguments: str, expect: int = 0) -> tuple[str, str]:
        """Run a command in this process, which is ten times as fast; return its standard output and error."""
        from specc.core.cli import main

        before, kept = Path.cwd(), os.environ.get("SPECC_STORE")
        out, err = io.StringIO(), io.StringIO()
        os.chdir(self.folder)
        os.environ["SPECC_STORE"] = str(self.store)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = main(list(arguments))
        finally:
            os.chdir(before)
            os.environ.pop("SPECC_STORE")
            if kept is not None:
                os.environ["SPECC_STORE"] = kept
        assert code == expect, f"{code}\n{out.getvalue()}{err.getvalue()}"
        return out.getvalue(), err.getvalue()

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `specc` in the folder."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **self.options(**options)}
        del options["capture_output"]
        return subprocess.Popen(self.command(*arguments), **options)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line."""
        return [*self.prefix, str(Path(sys.executable).parent / "specc"), *arguments]

    def options(self, environment: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
        """Return how it is started."""
        return {"cwd": self.folder, "capture_output": True, "text": True, **options,
                "env": {**os.environ, "SPECC_STORE": str(self.store), **(environment or {})}}  # fmt: skip

    def build(self, stage: str = "vocabulary", *options: str) -> dict[str, str]:
        """Build up to a stage and return the digests."""
        out, _ = self.run("build", "--json", "--stage", stage, *options, "tiny.yaml")
        return {name: digest.removeprefix("sha256:") for name, digest in json.loads(out)["artifacts"].items()}

    def why(self) -> dict[str, str]:
        """Return what `plan` says of each stage that a build would run, and of no other."""
        stages = json.loads(self.run("plan", "--json", "tiny.yaml")[0])["stages"]
        return {item["stage"]: item["why"] for item in stages if item["action"] != "hit" and item["stage"] in BUILT}

    def artifact(self, stage: str) -> Path:
        """Return the only artifact of a stage, its files writable for a test to damage."""
        (folder,) = self.store.glob(f"*-{stage}-*/")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        return folder


def write_verifier(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a verifier that can be locked and not run."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "model.safetensors").write_bytes(b"weights that locking never reads as such")


def make_project(folder: Path, store: Path | None = None) -> Project:
    """Write the project's files; the store is below it unless another place is given."""
    folder.mkdir(parents=True, exist_ok=True)
    verifier = folder / "tiny"
    make_tokenizer(verifier, CHATML)
    (verifier / "config.json").write_text(json.dumps(CONFIG))
    (verifier / "model.safetensors").write_bytes(one_tensor())
    write_prompts(folder / "prompts.jsonl", 40, answers=True)
    (folder / "tiny.yaml").write_text(SPEC)
    return Project(folder, store or folder / ".specc/store")


def copy_sources(root: Path, folder: Path) -> None:
    """Copy what the package is built from, as a clone has it."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, folder)
    for name in ("packages", "schema", "specs", "tests/specs/bad"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".specc"))


def processes_of(folder: Path) -> list[int]:
    """Return the processes that have `folder` in their command line, but for zombies and this one."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def leftovers(store: Path) -> list[str]:
    """Return what a build that ended should not have left: half-written files, leases, outputs."""
    inside = [path for name in ("tmp", "leases") if (store / name).is_dir() for path in (store / name).iterdir()]
    half = [path for path in store.rglob(".*") if path.is_file()]
    return sorted(path.relative_to(store).as_posix() for path in inside + half)

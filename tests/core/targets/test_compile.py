"""`specc compile`: what must be there before anything is written, and what is said then."""

from __future__ import annotations

from pathlib import Path

from compiling import Compiler


def test_what_is_said_is_the_script_and_what_is_left_to_do(plain: Compiler) -> None:
    out, err = plain.project.run("compile", "--target", "shell", "--out", "a b", "tiny.yaml")
    assert out == "a b/build.sh\n"
    lines = err.split("\n")
    assert lines[0] == "wrote 7 files for the target `shell`; `compiled.json` lists them"
    assert "  put `prompts.jsonl` into a b/project, or compile `--with-files`" in lines
    assert lines[-2] == "  start it: bash 'a b/build.sh'"


def test_a_lock_that_is_missing_or_stale_is_refused(plain: Compiler) -> None:
    spec, lock = plain.project.folder / "tiny.yaml", plain.project.folder / "tiny.lock.json"
    spec.write_text(spec.read_text().replace("batch_tokens: 4096", "batch_tokens: 2048"))
    assert plain.fails("--target", "shell") == (
        "error: the lock tiny.lock.json is stale, and other machines build the lock as it is\n"
        "  train.batch_tokens: 4096 in the lock, 2048 in the spec (tiny.yaml:9)\n\n"
        "hint: `specc lock tiny.yaml` writes it anew\n"
    )
    lock.unlink()
    assert plain.fails("--target", "shell") == (
        "error: there is no lock `tiny.lock.json`, which is what other machines build\n\n"
        "hint: `specc lock tiny.yaml` writes it\n"
    )
    spec.unlink()
    assert "error: tiny.yaml: there is no such file" in plain.fails("--target", "shell")


def test_an_unknown_target_or_class_is_a_usage_error(plain: Compiler) -> None:
    assert "'shell', 'slurm', 'kubernetes', 'ray'" in plain.fails("--target", "slurp", expect=2)
    assert "these are known: `cpu-amx`" in plain.fails("--target", "shell", "--class", "tpu", expect=2)


def test_of_a_matrix_one_build_is_compiled(plain: Compiler) -> None:
    spec: Path = plain.project.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + "matrix:\n  train.loss: [kl, ce]\n")
    plain.project.run("lock", "tiny.yaml")
    assert "matrix has 2 builds, and one is meant" in plain.fails("--target", "shell", expect=2)
    folder = plain("shell", "--only", "loss=ce")
    script = (folder / "build.sh").read_text()
    assert "specc build --frozen --offline --stage tokens --only train.loss=ce ./tiny.yaml\n" in script
    assert "# build: train.loss=ce\n" in script
    other = plain("shell", "--only", "loss=kl", out="other")
    assert "--only train.loss=kl ./tiny.yaml\n" in (other / "build.sh").read_text()

"""`specc env`: the pinned engines of every class, and their closure with hashes from wheels that a test makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from specc.core.cli import main
from specc.core.lock import CLASSES

Capture = pytest.CaptureFixture[str]
ENGINES = {"alpha": "1.0", "beta-engine": "2.0+cpu"}
"""Two engines that no index has, as a lock may pin them."""


def env(capsys: Capture, *arguments: str, expect: int = 0) -> tuple[str, str]:
    """Run the command; return what it prints and what it says."""
    code = main(["env", *arguments])
    out, err = capsys.readouterr()
    assert code == expect, out + err
    return out, err


@pytest.fixture
def lock(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock in the working directory, of class `cpu-avx2`, whose engines are the two."""
    raw = json.loads((root / "specs/quickstart.lock.json").read_text())
    raw["locked"] |= {"class": "cpu-avx2", "engines": {"cpu-avx2": ENGINES}}
    path = tmp_path / "mine.lock.json"
    path.write_text(json.dumps(raw))
    monkeypatch.chdir(tmp_path)
    return path


# What is pinned


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_requirements_of_its_extra(root: Path, capsys: Capture, name: str) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extra = sorted(project["optional-dependencies"][CLASSES[name].device])
    release = f"specc {metadata.version('specc')}"
    assert env(capsys, "--class", name) == ("\n".join([f"# engines of class {name}, from {release}", *extra, ""]), "")
    data = json.loads(env(capsys, "--class", name, "--json")[0])
    assert (data["class"], data["from"]) == (name, release)
    assert [f"{item['name']}=={item['version']}" for item in data["requirements"]] == extra
    assert {item["sha256"] for item in data["requirements"]} == {None}


def test_a_lock_has_the_class_and_the_pins(lock: Path, capsys: Capture) -> None:
    pinned = "# engines of class cpu-avx2, from mine.lock.json\nalpha==1.0\nbeta-engine==2.0+cpu\n"
    assert env(capsys, "mine.yaml") == (pinned, "")
    out, err = env(capsys, "mine.yaml", "--class", "cuda")
    assert out == env(capsys, "--class", "cuda")[0]
    assert err == "no lock of mine.yaml pins class `cuda`: these are this release's engines\n"


def test_a_spec_without_a_lock_is_said_and_one_that_is_not_there_is_an_error(lock: Path, capsys: Capture) -> None:
    lock.unlink()
    assert "hint: `specc env` without a spec" in env(capsys, "mine.yaml", expect=1)[1]
    Path("mine.yaml").write_text("version: 1\n")
    out, err = env(capsys, "mine.yaml")
    assert out == env(capsys)[0]
    assert err.startswith("no lock of mine.yaml pins class")


def test_a_class_that_is_none_is_a_usage_error(capsys: Capture) -> None:
    assert "these are known: `cpu-amx`" in env(capsys, "--class", "tpu", expect=2)[1]


@pytest.mark.parametrize(
    "pins",
    [
        {"--index-url=http://127.0.0.1": "1.0"},
        {"alpha": "1.0 --index-url http://127.0.0.1"},
        {"alpha": "1.0\n-r other.txt"},
        {"alpha": "1.0\n"},
        {"alpha @ file:///tmp/alpha": "1.0"},
        {"alpha": "*"},
        {"alpha": ["1.0"]},
    ],
)
def test_a_pin_that_pip_could_take_for_something_else_is_refused(
    lock: Path, capsys: Capture, pins: dict[str, Any]
) -> None:
    raw = json.loads(lock.read_text())
    raw["locked"]["engines"]["cpu-avx2"] = pins
    lock.write_text(json.dumps(raw))
    for arguments in (["mine.yaml"], ["mine.yaml", "--hashes"]):
        out, err = env(capsys, *arguments, expect=1)
        assert out == ""
        assert err.startswith("error: mine.lock.json: `")
        assert "cannot be pinned to" in err


# The closure, with hashes


def wheel(folder: Path, name: str, version: str, *requires: str, code: str = "") -> Path:
    """Write the least that pip takes for a wheel (https://packaging.python.org/specifications/binary-distribution-format)."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{module}.py": code,
        f"{info}/METADATA": head + "".join(f"Requires-Dist: {item}\n" for item in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for inner, text in files.items():
            file.writestr(inner, text)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A folder of wheels that pip looks into and nowhere else: the engines, and what one of them needs."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    wheel(folder, "Gamma.Base", "0.9")
    return {
        "alpha": wheel(folder, "alpha", "1.0", "gamma_base >= 1"),
        "beta-engine": wheel(folder, "beta-engine", "2.0+cpu"),
        "gamma-base": wheel(folder, "gamma-base", "1.5"),
    }


def install(requirements: Path) -> subprocess.CompletedProcess[str]:
    """Install what a file requires, as a user would."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--target", "installed",
               "-r", str(requirements)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_pip_installs_the_closure_by_its_hashes(lock: Path, wheels: Mapping[str, Path], capsys: Capture) -> None:
    out, err = env(capsys, "mine.yaml", "--hashes")
    assert err == "asking pip for everything that the engines need\n"
    first, second, *lines = out.splitlines()
    assert first == "# engines of class cpu-avx2, from mine.lock.json"
    assert re.fullmatch(r"# resolved by pip [\d.]+ for CPython 3\.\d+ on linux \w+", second)
    versions = {**ENGINES, "gamma-base": "1.5"}
    hashes = {name: sha256(path.read_bytes()).hexdigest() for name, path in wheels.items()}
    assert lines == [f"{name}=={versions[name]} --hash=sha256:{hashes[name]}" for name in sorted(versions)]
    data = json.loads(env(capsys, "mine.yaml", "--hashes", "--json")[0])
    assert {item["name"]: item["sha256"] for item in data["requirements"]} == hashes

    requirements = Path("requirements.txt")
    requirements.write_text(out)
    done = install(requirements)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("installed").glob("*.py")} == {"alpha.py", "beta_engine.py", "gamma_base.py"}
    wheel(wheels["alpha"].parent, "alpha", "1.0", "gamma_base >= 1", code="print('another')\n")
    assert "DO NOT MATCH THE HASHES" in install(requirements).stderr


def test_a_pip_of_the_working_directory_is_not_run(lock: Path, wheels: Mapping[str, Path], capsys: Capture) -> None:
    Path("pip.py").write_text("import pathlib; pathlib.Path('ran').touch()\n")
    env(capsys, "mine.yaml", "--hashes")
    assert not Path("ran").exists()


def test_a_source_package_is_not_built(lock: Path, wheels: Mapping[str, Path], capsys: Capture) -> None:
    path = wheels["alpha"]
    path.rename(path.with_name("alpha-1.0.zip"))
    _, err = env(capsys, "mine.yaml", "--hashes", expect=1)
    assert "error: where pip looks there is no wheel of `alpha==1.0` for this interpreter\n" in err


def test_what_pip_cannot_resolve_is_said_in_words(lock: Path, wheels: Mapping[str, Path], capsys: Capture) -> None:
    wheels["gamma-base"].unlink()
    _, err = env(capsys, "mine.yaml", "--hashes", expect=1)
    assert re.search("no wheel of `gamma[-_]base>=1`", err)
    wheel(wheels["alpha"].parent, "gamma-base", "1.5")
    wheel(wheels["alpha"].parent, "beta-engine", "2.0+cpu", "alpha < 1")
    wheel(wheels["alpha"].parent, "alpha", "0.5")
    _, err = env(capsys, "mine.yaml", "--hashes", expect=1)
    assert "error: the pinned versions do not go together where pip looks\n" in err
    assert str(Path.cwd()) not in err


def test_an_index_out_of_reach_is_said_without_its_address(
    lock: Path, wheels: Mapping[str, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"INDEX_URL": "http://user:secret@127.0.0.1:9/simple", "NO_INDEX": "0", "RETRIES": "1",
                        "FIND_LINKS": ""}.items():  # fmt: skip
        monkeypatch.setenv(f"PIP_{name}", value)
    out, err = env(capsys, "mine.yaml", "--hashes", expect=1)
    assert "error: pip cannot reach its package index\n" in err
    assert "hint: without `--hashes` no network is needed" in err
    assert not any(word in out + err for word in ("secret", "user", "127.0.0.1", "http"))


def test_what_pip_says_otherwise_is_not_repeated(
    lock: Path, wheels: Mapping[str, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", "http-secret.txt")
    _, err = env(capsys, "mine.yaml", "--hashes", expect=1)
    assert "error: pip cannot resolve the engines\n" in err
    assert "secret" not in err


def test_an_interpreter_without_pip_is_said(
    lock: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    _, err = env(capsys, "mine.yaml", "--hashes", expect=1)
    assert err.endswith("error: this interpreter has no pip to ask\n\nhint: `python -m ensurepip` brings it\n")

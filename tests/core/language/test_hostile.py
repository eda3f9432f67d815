"""What is made to hurt: each text is refused with a place in it, by a process of under a second and 200 MB."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HEAD = "version: 1\nname: x\nverifier: {model: ./v}\ndraft: {algorithm: eagle3}\ndata: {sources: [{file: a.jsonl}]}\n"
SECONDS, BYTES = 1.0, 200e6
COUNTED = 0.1
"""Seconds of the processor that `counted` takes on one of which a second is meant; a slower one has longer."""
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}], k{level}: 1}}\n" for level in range(1, 40)
)
MANY = "[" + ", ".join(map(str, range(1, 400))) + "]"

HOSTILE: dict[str, Callable[[], bytes]] = {
    "a billion laughs": LAUGHS.encode,
    "a billion merges": MERGES.encode,
    "100,000 lists": lambda: b"name: " + b"[" * 100_000,
    "100,000 lists that are closed": lambda: b"name: " + b"[" * 100_000 + b"]" * 100_000,
    "100,000 mappings": lambda: b"name: " + b"{a: " * 100_000,
    "100,000 levels of a block": lambda: b"".join(b" " * level + b"a:\n" for level in range(1400)),
    "100,000 dashes": lambda: b"- " * 100_000,
    "50 MB": lambda: b"name: " + b"x" * 50_000_000,
    "50 MB of lines": lambda: b"# nothing\n" * 5_000_000,
    "a mebibyte of colons": lambda: b": " * (1 << 19),
    "a mebibyte of quotes": lambda: b'name: "' + b"\\" * ((1 << 20) - 100),
    "a mebibyte of keys": lambda: b"".join(b"k%d: 1\n" % number for number in range(90_000)),
    "a mebibyte of anchors": lambda: b"".join(b"k%d: &a%d 1\n" % (number, number) for number in range(60_000)),
    "a million digits": lambda: b"version: " + b"9" * 1_000_000,
    "a million digits behind a point": lambda: b"version: 1." + b"9" * 1_000_000,
    "a number beyond all": lambda: b"version: 1e999999999",
    "NUL bytes": lambda: b"version: 1\nname: a\0b\n",
    "nothing but NUL bytes": lambda: b"\0" * 1000,
    "bad UTF-8": lambda: b"version: 1\nname: \xff\xfe\n",
    "an overlong slash": lambda: b"version: 1\nname: \xc0\xaf\n",
    "half a surrogate": lambda: b"version: 1\nname: \xed\xa0\x80\n",
    "UTF-16": lambda: HEAD.encode("utf-16"),
    "UTF-32": lambda: HEAD.encode("utf-32"),
    "a tab": lambda: b"version: 1\ndraft:\n\talgorithm: eagle3\n",
    "a byte-order mark inside": "version: 1\nname: \ufeffx\nverifier: 3\n".encode,
    "two byte-order marks": "\ufeff\ufeffversion: 1\n".encode,
    "an alias inside its anchor": lambda: b"draft: &a {b: *a}\n",
    "a merge of itself": lambda: b"draft: &a {<<: *a}\n",
    "merges in a circle": lambda: b"a: &a {<<: *b}\nb: &b {<<: *a}\n",
    "an alias of nothing": lambda: b"draft: *nothing\n",
    "a constructor": lambda: b"name: !!python/object/apply:os.system [id]\n",
    "a tag that is a file": lambda: b"name: !include /etc/passwd\n",
    "two documents": lambda: HEAD.encode() + b"---\nname: y\n",
    "a trillion builds": f"{HEAD}matrix:\n  train.seed: {MANY}\n  train.epochs: {MANY}\n  draft.layers: [1]\n".encode,
    "ten thousand exclusions of nothing": (
        f"{HEAD}matrix:\n  train.seed: [1, 2]\n  exclude:\n" + "    - {train.seed: 3}\n" * 10_000
    ).encode,
    "names that are nearly all fields": lambda: HEAD.encode() + b"train: {" + b"".join(
        b"epoch%d: 1, " % number for number in range(2000)) + b"}\n",
    "a spec of itself": lambda: b"extends: s.yaml\n",
    "a spec of a device": lambda: b"extends: zero\n",
    "a spec of 50 MB": lambda: b"extends: large.yaml\n",
}  # fmt: skip


RUN = """
import re, sys, time
from specc.core.cli import main
code = main(["check", "s.yaml"])
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1], time.process_time())
sys.exit(code)
"""
"""Run a check; print the most kB that were resident and the processor's seconds (of a child, both count its parent)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "large.yaml").write_bytes(b"# nothing\n" * 5_000_000)
    return folder


def counted() -> float:
    """Return the processor's seconds for a fixed amount of work."""
    started = time.process_time()
    sum(number * number for number in range(1_500_000))
    return time.process_time() - started


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_in_words_and_soon(folder: Path, name: str) -> None:
    spec = folder / "s.yaml"
    spec.write_bytes(HOSTILE[name]())
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert re.match(r"error: (s|large)\.yaml(:\d+:\d+)?: ", done.stderr), done.stderr[:2000]
    assert "Traceback" not in done.stderr
    memory, seconds = done.stdout.split()
    limit = SECONDS * max(1.0, counted() / COUNTED)
    assert float(seconds) < limit, "of the processor, whatever else has it meanwhile"
    assert int(memory) * 1024 < BYTES

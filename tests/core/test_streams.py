"""The folder in which a training and its producers meet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from specc.core.claims import Claims
from specc.core.streams import Stream, Wanted

HOLDER = """
import sys
from pathlib import Path
from specc.core.claims import Claims

with Claims(Path(sys.argv[1])).claim(sys.argv[2]) as ours:
    print(ours, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_wanted_before_the_training_says_so(tmp_path: Path) -> None:
    assert Stream(tmp_path / "stream").wanted() == Wanted((), ())


def test_what_is_not_wanted_any_more_goes_before_anything_new_is_asked_for(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "stream")
    stream.want(Wanted([3, 1]))
    for number in (1, 3):
        stream.shard(number).write_bytes(b"whole")
    stream.held(1).write_bytes(b"whole")
    stream.want(Wanted([1, 2], [7]))
    assert stream.wanted() == Wanted([1, 2], [7])
    assert [path.name for path in sorted(stream.folder.glob("*.safetensors"))] == ["00001.safetensors"]
    assert stream.held(1).exists(), "what is held out stays"


def test_a_claim_is_one_processs_and_ends_with_it(tmp_path: Path) -> None:
    path, key = tmp_path / "claims", "ab" * 32
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path), key], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        claims = Claims(path)
        with claims.claim(key) as ours:
            assert not ours
        with claims.claim("cd" * 32) as ours:
            assert ours, "another byte"
        holder.kill()
    with claims.claim(key, wait=True) as ours:
        assert ours

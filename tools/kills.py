"""Kill a build at random points until it is done, and compare: `python tools/kills.py SPEC [--times 100] [--seed 1]`.

SPEC is built once as it is, in its own store. Then it is built in an empty store inside that one, and each try is ended
by SIGKILL: of `specc`, or of one of the processes below it (a stage, a rank, an engine's own child); at a time drawn
from `--seed`, or just when a file is being written. After every kill nothing may be left running. The last try is not
disturbed, and every stage must come to the digest of the first build.

Exit code: 0 the same, 1 another digest or a process left over.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from specc.core.files import remove_tree

LONGEST = 40.0
"""Seconds after which a try is ended at the latest: most stages take longer, so that kills meet all of them."""
AIMED = 0.4
"""Share of the kills that wait for a file that is being written."""
GRACE = 5.0
"""Seconds in which what was started must be gone after `specc` was killed."""
SPECC = str(Path(sys.executable).parent / "specc")


def descendants(pid: int) -> list[int]:
    """Return the processes below one, by their numbers."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with suppress(OSError):
                children = [int(child) for child in task.read_text().split()]
                found += children
                waiting += children
    return found


def being_written(store: Path) -> Iterator[Path]:
    """Yield what is in the middle of being written: temporary files, and folders of training checkpoints."""
    for parent in (store / "work", store / "tmp", store / "units"):
        with suppress(OSError):
            yield from parent.rglob(".*.tmp")
            yield from parent.rglob(".step-*")


def killed(command: list[str], store: Path, random: Random, env: dict[str, str]) -> str | None:
    """Run a build and kill it, or something below it; return what was done, or None if it ended by itself before.

    Raises `AssertionError` if something survives.
    """
    with (store.parent / "kills.log").open("ab") as log:
        build = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        aimed, end = random.random() < AIMED, time.monotonic() + random.uniform(0.2, LONGEST)
        while time.monotonic() < end and build.poll() is None and not (aimed and any(being_written(store))):
            time.sleep(0.001 if aimed else 0.01)
        below = descendants(build.pid)
        if build.poll() is not None:
            return None
        if below and random.random() < 0.5:
            target = random.choice(below)
            with suppress(OSError):
                os.kill(target, signal.SIGKILL)
            what = f"one of {len(below)} processes below it"
            with suppress(subprocess.TimeoutExpired):
                build.wait(random.uniform(0, 2))
        else:
            what = "specc"
        below = list({*below, *descendants(build.pid)})
        build.kill()
        build.wait()
    deadline = time.monotonic() + GRACE
    while (left := [pid for pid in below if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        raise AssertionError(f"processes {left} outlived specc")
    return f"{what}, {'while a file was written' if aimed else 'at a time'}"


def alive(pid: int) -> bool:
    """Tell whether a process runs: one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def artifacts(spec: Path, env: dict[str, str]) -> dict[str, str]:
    """Build without being disturbed, and return every stage's digest."""
    done = subprocess.run([SPECC, "build", "--json", str(spec)], env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["artifacts"]


def compare(spec: Path, *, times: int, seed: int) -> int:
    """Build, build with kills, and print how the two differ; return the exit code."""
    random, env = Random(seed), dict(os.environ)  # noqa: S311 - it must repeat
    expected = artifacts(spec, env)
    where = json.loads(subprocess.run([SPECC, "doctor", "--json", str(spec)], env=env, stdout=subprocess.PIPE,
                                      check=False).stdout)["store"]  # fmt: skip
    store = Path(where) / "tmp" / f"kills-{os.getpid()}"
    store.mkdir(parents=True)
    env["SPECC_STORE"] = str(store)
    try:
        for number in range(1, times + 1):
            what = killed([SPECC, "build", str(spec)], store, random, env)
            print(f"{number} of {times}: {what or 'it was done before it could be killed'}", flush=True)
            if what is None:
                shutil.rmtree(store / "index", ignore_errors=True)  # and begin again, with what else is there
        found = artifacts(spec, env)
    finally:
        remove_tree(store)
    for stage in expected:
        same = "the same" if found.get(stage) == expected[stage] else f"{expected[stage]} and {found.get(stage)}"
        print(f"{stage:<14} {same}")
    return int(found != expected)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="kills.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("spec", type=Path)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    return compare(args.spec, times=args.times, seed=args.seed)


if __name__ == "__main__":
    raise SystemExit(main())

"""Stages that do what an engine may do, for tests of the executor: `python -m specc.toy JOB.json`."""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage, Tell, Unit, log, run


def write(stage: Stage) -> None:
    """Write the files that the parameters hold."""
    for name, text in stage.params["files"].items():
        path = stage.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        stage.progress(1, 1, "files", name)
    stage.note("a sentence")
    stage.record["rate"] = 2.5


def slow(stage: Stage) -> None:
    """Write shards, each of which takes a while, and say so in a file that tests watch."""

    def unit(index: int) -> Unit:
        def write(path: Path, _: Tell) -> None:
            with Path(stage.job.context["watch"]).open("a") as file:
                file.write(f"{os.getpid()} {index}\n")
            path.write_text(f"half of {index}")
            time.sleep(stage.job.context["seconds"])
            while (wait := stage.job.context.get("until")) and not Path(wait).exists():
                time.sleep(0.01)
            path.write_text(f"shard {index}\n")

        return Unit(name=f"shards/{index:05}.txt", material={"index": index}, amount=1, write=write)

    stage.units([unit(index) for index in range(stage.params["shards"])], "shards")


def environment(stage: Stage) -> None:
    """Write the environment, and print on both streams, as engines do."""
    print("engine chatter on standard output")
    os.write(2, b"engine chatter on standard error\n")
    (stage.output / "environment.json").write_text(json.dumps(dict(os.environ)))
    (stage.output / "cwd").write_text(str(Path.cwd()))
    (stage.output / "cores.json").write_text(json.dumps(sorted(os.sched_getaffinity(0))))


def fail(stage: Stage) -> None:
    """Fail in words."""
    raise SpeccError("row 3 has no messages", where="prompts.jsonl:3", hint="add one", code=Exit(stage.params["code"]))


def crash(stage: Stage) -> None:
    """Raise what no stage foresaw."""
    raise ValueError("shapes differ\nand a second line")


def refuse(stage: Stage) -> None:
    """Say in one line what an engine raised."""
    try:
        crash(stage)
    except ValueError as error:
        log(error)
        raise SpeccError("the engine cannot load it", hint="the log has its own words", code=Exit.STAGE) from error


def full_disk(stage: Stage) -> None:
    """Write to a device that is always full."""
    with Path("/dev/full").open("w") as file:
        file.write("x")


def die(stage: Stage) -> None:
    """Die of a signal."""
    os.kill(os.getpid(), stage.params["signal"])


def leave(stage: Stage) -> None:
    """Leave without a word."""
    os._exit(stage.params["code"])


def link(stage: Stage) -> None:
    """Put a symbolic link into the output."""
    (stage.output / "link").symlink_to("/etc/hostname")


def nothing(stage: Stage) -> None:
    """Write nothing."""


def random(stage: Stage) -> None:
    """Write other bytes each time."""
    (stage.output / "random").write_bytes(os.urandom(16))


def orphan(stage: Stage) -> None:
    """Leave a child that holds the event pipe and goes on writing into the output."""
    path = stage.output / "file"
    path.write_text("whole\n")
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.01)
            (stage.output / f"late-{time.monotonic_ns()}").write_text("late")


def stubborn(stage: Stage) -> None:
    """Sleep through SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(stage.job.context["watch"]).write_text(f"{os.getpid()} 0\n")
    time.sleep(60)


def mapped(stage: Stage) -> None:
    """Fill a file through memory, as torch does: where its disk is full the kernel sends SIGBUS."""
    path, size = stage.output / "states", 1 << 20
    with path.open("wb") as file:
        file.truncate(size)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as memory:
        memory[:] = bytes(size)


def glutton(stage: Stage) -> None:
    """Fill the disk, the log's last bytes too, and fail in an exception of an engine's own."""
    try:
        with (stage.output / "file").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        with suppress(OSError):
            while True:
                os.write(2, b"so much to say\n")
        raise RuntimeError(f"while serializing: {os.strerror(error.errno or 0)} (os error {error.errno})") from None


def garbage(stage: Stage) -> None:
    """Say what is no event on the pipe of the events, and then what is."""
    (stage.output / "file").write_text("whole\n")
    for line in stage.params["lines"]:
        os.write(PIPE, line.encode("latin-1") + b"\n")
    if megabytes := stage.params.get("megabytes"):
        for _ in range(megabytes):
            os.write(PIPE, b"x" * (1 << 20))
        os.write(PIPE, b"\n")
    stage.record["rate"] = math.nan


def parent(stage: Stage) -> None:
    """Wait for a child, which tests kill."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(stage.job.context["watch"]).write_text(f"{child.pid} 0\n")
    if child.wait():
        raise subprocess.CalledProcessError(child.returncode, "worker")


def hang(stage: Stage) -> None:
    """Wait for what never comes, with a child that does, too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(stage.job.context["watch"]).write_text(f"{os.getpid()} {child.pid}\n")
    time.sleep(600)


def beside(stage: Stage) -> None:
    """Be an attendant that does what its context says, each time that it is started; or wait for one that does."""
    context = stage.job.context
    with Path(context["watch"]).open("a") as file:
        file.write(f"{os.getpid()} {context.get('name', 'main')} {Path.cwd()}\n")
    (stage.output / "file").write_text("whole\n")
    stage.progress(0, 10, context.get("unit", "steps"))
    for word in context.get("does", ()):
        match word:
            case "progress":
                stage.progress(4, 10, context.get("unit", "steps"))
            case "note":
                stage.note("the same sentence")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise SpeccError("a worker's own words", hint="do this")
            case "leave":
                os._exit(7)
            case _:
                while not Path(word).exists():
                    time.sleep(0.01)


STAGES = {
    function.__name__: function
    for function in (
        write,
        slow,
        environment,
        fail,
        crash,
        refuse,
        full_disk,
        die,
        leave,
        link,
        nothing,
        random,
        orphan,
        stubborn,
        mapped,
        glutton,
        garbage,
        parent,
        hang,
        beside,
    )
}

if __name__ == "__main__":
    PIPE = os.dup(1)
    print("printed before the stage took its streams", flush=True)
    raise SystemExit(run(STAGES))

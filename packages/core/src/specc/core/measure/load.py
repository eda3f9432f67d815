"""A speculator under load: GuideLLM drives a server with it, and then one without it.

All of what comes out is times, of this machine and of this hour: it is kept in a directory of the user's and is in no
artifact. The two servers run one after the other, since at once they would take each other's cores.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.execute.environment import plain
from specc.core.execute.machine import detect_class
from specc.core.execute.processes import guarded, has_exited
from specc.core.files import new_folder, pretty
from specc.core.measure.prompts import read_source, text_of
from specc.core.serving.served import HOST, Served, started, vllm_command
from specc.core.serving.server import START, Server, free, reason
from specc.core.store.manifests import SHORT

PROFILES: Final = ("synchronous", "concurrent", "throughput", "sweep")
STREAMS: Final = (1, 4, 16)
MAX_TOKENS: Final = 128
"""Tokens of an answer at most, if nobody says."""
RATES: Final = 5
"""Steps of a sweep: one request at a time, as many as go, and rates between the two."""
SIDES: Final = ("with_speculator", "without_speculator")
PERCENTILES: Final = ("p50", "p90", "p95", "p99")
TIMES: Final[Mapping[str, str]] = {
    "time_to_first_token_ms": "time_to_first_token_ms",
    "inter_token_latency_ms": "inter_token_latency_ms",
    "request_latency": "request_latency_s",
}
"""GuideLLM's names of what is measured of each request, and ours, which say the unit."""
START_OF_A_LOAD: Final = 300.0
"""Seconds that GuideLLM has beside the load itself: to start, to read the tokenizer, to end."""
PER_SECOND: Final = 200
"""Prompts that a second of load may use up; those that there are come around again."""


def drive(
    served: Served,
    *,
    profile: str,
    seconds: int,
    folder: Path,
    prompts: Sequence[str] = (),
    max_tokens: int = MAX_TOKENS,
    streams: Sequence[int] = STREAMS,
    rates: int = RATES,
    variables: Mapping[str, str] | None = None,
    timeout: float = START,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Drive a server with the speculator and one without it, and return what `load.json` in `folder` says.

    `profile` is one of `PROFILES`: requests one by one; as many at once as each of `streams`; all that `max(streams)`
    lets through; or `rates` steps between the first and the last. Each step lasts `seconds`. The prompts are `prompts`,
    over and over, or else GuideLLM's synthetic text; answers are greedy, of up to
    `max_tokens` tokens. No prompt is answered from a cache. Beside ours, `folder`, new or empty, gets GuideLLM's own
    reports as JSON and as a page that asks no other host.

    Raises `SpeccError` if GuideLLM is not installed or fails, if a server does, or if no request was answered.
    """
    if util.find_spec("guidellm") is None:
        raise SpeccError("`guidellm` is not installed", hint="`pip install 'specc[load]'` brings it",
                         code=Exit.STAGE)  # fmt: skip
    device, _ = detect_class()
    with new_folder(folder) as made:
        found: dict[str, Any] = {
            "name": served.name,
            "checkpoint": f"sha256:{served.checkpoint.digest}",
            "profile": profile,
            "seconds": seconds,
            "streams": list(streams),
            "max_tokens": max_tokens,
            "prompts": len(prompts) or "synthetic",
            "speculative_tokens": served.values["export"]["speculative_tokens"],
            "order": list(SIDES),
            "guidellm": metadata.version("guidellm"),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        for side in SIDES:
            port = free(HOST, 0)
            line = vllm_command(served, device=device, port=port, speculate=side == SIDES[0],
                                further=["--no-enable-prefix-caching"])  # fmt: skip
            say(f"{side.replace('_', ' ')}: starting the server")
            with started(served, line, port=port, device=device, variables=variables or {}, seconds=timeout) as server:
                scenario = {
                    "backend": {
                        "kind": "openai_http",
                        "target": server.url,
                        "model": served.name,
                        "request_format": "/v1/chat/completions" if talks(served.verifier) else "/v1/completions",
                        "max_tokens": max_tokens,
                        "extras": {"body": {"temperature": 0}},
                    },
                    "profile": _profile(profile, streams, rates),
                    "constraints": [{"kind": "max_duration", "seconds": seconds}],
                    "tokenizer": {"kind": "huggingface_auto", "model": str(served.verifier)},
                    "outputs": [
                        {"kind": kind, "path": str(made / f"guidellm-{side}.{kind}")} for kind in ("json", "html")
                    ],
                }
                say(f"{side.replace('_', ' ')}: {profile} load, {seconds} s a step")
                steps = rates if profile == "sweep" else len(streams) if profile == "concurrent" else 1
                report = _run(served, server, scenario, rows=prompts, report=made / f"guidellm-{side}.json",
                              seconds=steps * seconds)  # fmt: skip
                found[side] = {"steps": [_step(one) for one in report["benchmarks"]]}
                if side == SIDES[0]:
                    found[side]["speculation"] = server.speculation().as_json()
        found["speed_up"] = _speed_up(found)
        (made / "load.json").write_text(pretty(found))
    return found


def texts(path: Path, source: Mapping[str, Any] | None = None) -> list[str]:
    """Return the first turn of a user of each row of a file of prompts: of those rows that `source` takes.

    Tools that a row lists are not among them. Raises `SpeccError` for a row that has no such turn.
    """
    every = read_source(path, path.name, source or {}, None)
    return [next(text_of(one) for one in prompt.messages if one["role"] == "user") for prompt in every]


def talks(verifier: Path) -> bool:
    """Tell whether a verifier has a chat template; without one it only goes on with a text."""
    try:
        tokenizer: dict[str, Any] = json.loads((verifier / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        tokenizer = {}
    return bool(tokenizer.get("chat_template")) or (verifier / "chat_template.jinja").is_file()


def _profile(name: str, streams: Sequence[int], rates: int) -> dict[str, Any]:
    """Return GuideLLM's own arguments of a profile."""
    more: dict[str, dict[str, Any]] = {
        "concurrent": {"streams": list(streams)},
        "throughput": {"max_concurrency": max(streams)},
        "sweep": {"sweep_size": rates, "max_concurrency": max(streams)},
    }
    return {"kind": name, **more.get(name, {})}


def _run(
    served: Served, server: Server, scenario: dict[str, Any], *, rows: Sequence[str], report: Path, seconds: int
) -> dict[str, Any]:
    """Run GuideLLM over a server in a process of its own; return its report."""
    limit = seconds + START_OF_A_LOAD
    with tempfile.TemporaryDirectory(prefix="specc-load-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        if rows:
            around = itertools.islice(itertools.cycle(rows), max(len(rows), PER_SECOND * seconds))
            with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({"prompt": row}) + "\n" for row in around)
            data: dict[str, Any] = {"kind": "json_file", "path": str(folder / "prompts.jsonl")}
        else:
            tokens = scenario["backend"]["max_tokens"]
            data = {"kind": "synthetic_text", "prompt_tokens": 128, "output_tokens": tokens}
        (folder / "scenario.json").write_text(json.dumps({"spec": {**scenario, "data": [data]}}))
        log_path = folder / "log" if not served.store.writable else served.store.log(
            f"load-{served.checkpoint.digest[:SHORT]}"
        )  # fmt: skip
        command = [sys.executable, "-P", "-m", "guidellm", "run", "-c", str(folder / "scenario.json"),
                   "--disable-console-interactive"]  # fmt: skip
        environment = {
            **plain(folder, folder),
            # Each is a Python of its own that imports all of GuideLLM: half the cores are the server's.
            "GUIDELLM__MAX_WORKER_PROCESSES": str(max(1, min(10, (os.cpu_count() or 1) // 2))),
        }
        with log_path.open("ab", buffering=0) as log:
            log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} guidellm\n".encode())
            with guarded(command, environment=environment, folder=folder, log=log) as process:
                deadline = time.monotonic() + limit
                while not has_exited(process.pid):
                    if has_exited(server.process.pid):
                        server.wait()  # which says why
                    if time.monotonic() > deadline:
                        raise _failed(f"GuideLLM did not end within {limit:.0f} s", log_path)
                    time.sleep(0.2)
        try:
            found: dict[str, Any] = json.loads(report.read_bytes())
        except (OSError, ValueError) as error:
            raise _failed("GuideLLM ended without a report", log_path) from error
        if not any(one["metrics"]["request_totals"]["successful"] for one in found["benchmarks"]):
            errors = [request.get("info", {}).get("error")
                      for one in found["benchmarks"] for request in one["requests"]["errored"]]  # fmt: skip
            raise _failed("no request of the load was answered", log_path, next(filter(None, errors), None))
        return found


def _failed(what: str, log: Path, why: str | None = None) -> SpeccError:
    return SpeccError(what, note=why or reason(log), code=Exit.STAGE,
                      hint=f"the whole log is {log}" if log.exists() else None)  # fmt: skip


def _step(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step of a load came to, of GuideLLM's record of it."""
    metrics, strategy = one["metrics"], one["config"]["strategy"]
    at_once = strategy.get("streams") or (
        strategy.get("max_concurrency") if strategy["type_"] == "throughput" else None
    )
    return {
        "strategy": strategy["type_"],
        "at_once": at_once,
        "rate": strategy.get("rate"),
        "seconds": round(one["duration"], 3),
        "requests": {name: metrics["request_totals"][name] for name in ("successful", "errored", "incomplete")},
        "requests_per_second": metrics["requests_per_second"]["successful"]["mean"],
        "output_tokens_per_second": metrics["output_tokens_per_second"]["successful"]["mean"],
        **{
            ours: {"mean": metrics[name]["successful"]["mean"],
                   **{part: metrics[name]["successful"]["percentiles"][part] for part in PERCENTILES}}
            for name, ours in TIMES.items()
        },
    }  # fmt: skip


def _speed_up(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how many times the output tokens per second are, step by step, of those that both sides were driven at.

    A sweep's rates are found for each side by itself, so that only its first step and its last are compared.
    """
    ours, plain_ones = (
        {(step["strategy"], step["at_once"]): step["output_tokens_per_second"] for step in found[side]["steps"]
         if step["rate"] is None}
        for side in SIDES
    )  # fmt: skip
    return [
        {"strategy": strategy, "at_once": at_once, "times": round(value / plain_ones[strategy, at_once], 3)}
        for (strategy, at_once), value in ours.items()
        if plain_ones.get((strategy, at_once))
    ]

"""Answers of a server: each row once and in its place, however the server fails and whenever the stage is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaky import FAULTS, Flaky, each_in_turn
from projects import Project, make_project
from small import CHATML, make_tokenizer, make_verifier
from specc.core.compiler import compile_spec
from specc.core.contracts import Event, Note, Progress
from specc.core.errors import SpeccError
from specc.core.execute import Reporter
from specc.core.files import directory_digest, entries, pretty, remove_tree, sha256, sha256_file
from specc.core.serving.server import free, serving
from specc.core.store import Store
from specc.core.verify import rebuild, rebuild_one
from specc.datagen import client, endpoint
from specc.datagen.client import AgainError, RefusedError, pause_after, seconds_of
from specc.datagen.journal import Journal
from specc.datagen.responses import responses
from specc.datagen.rows import Message, Row, canonical_text, write_rows
from specc.datagen.talks import sampled
from stages import make_job, run_here
from values import values
from vllm_runs import ENVIRONMENT, facts, run

LENGTH = 256


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def make_row(number: int, *messages: Message) -> Row:
    return {"id": sha256(str(number).encode()), "row": number, "split": "train", "source": "p.jsonl",
            "line": number + 1, "messages": list(messages)}  # fmt: skip


def conversations(folder: Path, rows: list[Row], shard: int = 16) -> Path:
    index: list[dict[str, Any]] = []
    for start in range(0, len(rows), shard):
        name = f"shards/{start // shard:05d}.jsonl"
        write_rows(folder / name, rows[start : start + shard])
        index.append({"file": name, "rows": len(rows[start : start + shard]), "sha256": sha256_file(folder / name)})
    (folder / "index.json").write_text(pretty({"rows": len(rows), "shards": index}))
    return folder


def talks(count: int) -> list[Row]:
    """Return rows of one turn, and every fifth of three."""
    more = (user("Why?"), user("Sure?"))
    return [make_row(number, user(f"Explain {number} to a child."), *(more if number % 5 == 0 else ()))
            for number in range(count)]  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier of which the server's stubs and the stage read the tokenizer and the template alone."""
    folder = tmp_path_factory.mktemp("verifier")
    make_tokenizer(folder, CHATML)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(folder: Path, verifier: Path, source: Path, address: str, *, endpoint: Mapping[str, Any] | None = None,
        how: Mapping[str, Any] | None = None, **options: Any) -> tuple[str, list[Event]]:  # fmt: skip
    """Run the stage in this process; return its artifact's digest and what it said."""
    what = {"model": "tiny", "protocol": "completions", **(endpoint or {})}
    params = values(**{"data.sequence_length": LENGTH, "data.responses.endpoint": what,
                       **{f"data.responses.{name}": value for name, value in options.items()}})  # fmt: skip
    job = make_job("responses", folder, params, inputs={"conversations": source, "verifier": verifier})
    paced = {"concurrency": 8, "retries": 6, "timeout": 5.0, "refused": 0.1, "address": address, **(how or {})}
    events = run_here(responses, replace(job, context={"endpoint": paced}))
    return directory_digest(entries(Path(job.output))), events


def read(folder: Path) -> list[Row]:
    return [json.loads(line) for path in sorted((folder / "output/shards").iterdir()) for line in path.open()]


def test_every_row_is_answered_once_and_in_its_place_whatever_fails(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(40))
    with Flaky(verifier, delay=0.02) as good:
        expected, _ = ask(tmp_path / "good", verifier, source, good.url)
    assert set(good.served.values()) == {1}
    assert good.most_open == 8
    fault = each_in_turn(3)
    with Flaky(verifier, fault) as bad:
        found, events = ask(tmp_path / "bad", verifier, source, bad.url, how={"timeout": 3.0})
    assert found == expected
    rows = read(tmp_path / "bad")
    assert [row["row"] for row in rows] == list(range(40))
    assert all("".join(message["role"][0] for message in row["messages"]) == ("ua" if row["row"] % 5 else "uauaua")
               for row in rows)  # fmt: skip
    # Of each fault some, and of each question no answer more than was wanted: one, after three failures.
    assert {fault(asked, n) for asked in bad.asked for n in range(3)} == set(FAULTS)
    assert len(bad.served) == 40 + 2 * 8 + 1  # turns, and the first question
    assert set(bad.served.values()) == {1}
    assert any(isinstance(event, Progress) and event.text.endswith("tokens/s") for event in events)
    assert not any(isinstance(event, Note) for event in events)


def test_a_server_that_is_not_up_yet_is_waited_for(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(3))
    with Flaky(verifier) as first:
        expected, _ = ask(tmp_path / "first", verifier, source, first.url)
    late = Flaky(verifier, port=first.port)  # bound, and not listening: connections are refused
    thread = threading.Timer(0.3, late.__enter__)
    thread.start()
    assert ask(tmp_path / "late", verifier, source, late.url, how={"retries": 30})[0] == expected
    late.__exit__()


def test_what_was_answered_outlives_a_server_that_stays_away(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(40))
    with Flaky(verifier) as good:
        expected, _ = ask(tmp_path / "good", verifier, source, good.url)
    answered = 0

    def fault(asked: str, before: int) -> str | None:
        nonlocal answered
        answered += 1
        return None if answered <= 30 else "reset"

    with Flaky(verifier, fault) as dying:
        with pytest.raises(SpeccError, match=r"the endpoint is away \(a broken connection: .*of 40 rows") as caught:
            ask(tmp_path / "run", verifier, source, dying.url, how={"retries": 2})
        assert caught.value.hint == "the same command goes on behind them, once the server is back"
        assert caught.value.code == 3
    done = set(dying.served)
    with Flaky(verifier) as again:
        found, events = ask(tmp_path / "run", verifier, source, again.url)
    assert found == expected
    # Whole shards are not looked at, and of the one that was begun only what is missing is asked for.
    (note,) = (event.text for event in events if isinstance(event, Note))
    assert note.endswith("answers are there from an earlier run")
    assert len(done & set(again.served)) == 1  # the first question, by which a server is known
    assert len(done | set(again.served)) == 40 + 2 * 8 + 1


def test_rows_that_the_server_refuses_are_left_out_up_to_a_limit(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(20))
    order: dict[str, int] = {}

    def fault(asked: str, before: int) -> str | None:
        number = order.setdefault(asked, len(order))
        # The fifth question is refused, and the ninth kills whoever answers it, each time.
        return {0: None, 1: None, 5: "400 no\nsuch thing", 9: "error"}.get(number)

    with Flaky(verifier, fault) as server:
        _, events = ask(tmp_path / "run", verifier, source, server.url, how={"concurrency": 1, "retries": 2})
    notes = [event for event in events if isinstance(event, Note)]
    assert [(note.level, note.text) for note in notes][:2] == [
        ("warning", "2 of 20 rows are too long or refused, and left out"),
        ("warning", "2 of 20 rows are refused by the server and were left out, or end there: `refused_rows.jsonl` of"
         " the artifact lists them"),
    ]  # fmt: skip
    index = json.loads((tmp_path / "run/output/index.json").read_text())
    assert (index["rows"], index["left_out"]) == (18, 2)
    listed = [json.loads(line) for line in (tmp_path / "run/output/refused_rows.jsonl").open()]
    assert [(row["file"], row["line"]) for row in listed] == [("p.jsonl", 2), ("p.jsonl", 6)]
    assert [row["reason"] for row in listed] == ["HTTP 400", "HTTP 500, 3 times"], "no word of the server's own"
    with Flaky(verifier, lambda asked, before: None if asked == "models" else "422 never") as server, \
            pytest.raises(SpeccError, match="does not take a first question: HTTP 422: never"):  # fmt: skip
        ask(tmp_path / "all", verifier, source, server.url)
    seen = set[str]()

    def most(asked: str, before: int) -> str | None:
        seen.add(asked)
        return "400 no" if len(seen) > 6 else None

    with Flaky(verifier, most) as server, pytest.raises(SpeccError) as caught:
        ask(tmp_path / "most", verifier, source, server.url, how={"concurrency": 1})
    first, *rows = caught.value.message.splitlines()
    assert first == "3 rows of 20 are refused by the server, and `data.responses.endpoint.refused` allows 0.1"
    assert [row.split(": ", 1)[1] for row in rows] == ["HTTP 400: no"] * 3
    # What was refused by then is refused no more: all rows are there, and none is listed.
    with Flaky(verifier) as server:
        ask(tmp_path / "most", verifier, source, server.url)
    assert not (tmp_path / "most/output/refused_rows.jsonl").exists()


def test_rows_with_images_count_as_refused(tmp_path: Path, verifier: Path) -> None:
    rows = talks(20)
    rows[3]["messages"][0]["images"] = [{"sha256": "0" * 64, "width": 4, "height": 4}]
    with Flaky(verifier) as server:
        _, events = ask(tmp_path, verifier, conversations(tmp_path / "source", rows), server.url)
    assert [row["row"] for row in read(tmp_path)] == [number for number in range(20) if number != 3]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0] == "1 of 20 rows are too long or refused, and left out"
    listed = [json.loads(line) for line in (tmp_path / "output/refused_rows.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in listed] == [
        (4, "an endpoint is asked without images in this release")]  # fmt: skip


def test_a_server_that_asks_for_a_pause_gets_one(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(4))
    times = list[float]()

    def fault(asked: str, before: int) -> str | None:
        if asked != "models":
            times.append(time.monotonic())
        return "wait 1" if len(times) == 2 else None

    with Flaky(verifier, fault) as server:
        ask(tmp_path / "run", verifier, source, server.url, how={"concurrency": 2})
    asked = [time for time in times[2:] if time > times[1] + 0.3]  # save for what was on its way already
    assert 0.95 < asked[0] - times[1] < 3
    assert len(times) - 2 - len(asked) <= 1


@pytest.mark.parametrize(
    ("server", "endpoint", "message"),
    [
        ({"model": "other"}, {}, r"the endpoint serves `other`, and not `tiny`"),
        ({"room": 128}, {}, r"the endpoint has room for 128 tokens, and `data.sequence_length` is 256"),
        ({"key": "sk-secret"}, {}, r"the endpoint wants a key \(HTTP 401\)"),
    ],
)
def test_a_server_that_does_not_serve_the_verifier_is_not_asked(
    tmp_path: Path, verifier: Path, server: dict[str, Any], endpoint: dict[str, Any], message: str
) -> None:
    source = conversations(tmp_path / "source", talks(2))
    with Flaky(verifier, **server) as other, pytest.raises(SpeccError, match=message) as caught:
        ask(tmp_path / "run", verifier, source, other.url, endpoint=endpoint)
    assert "sk-secret" not in caught.value.render()
    assert set(other.asked) <= {"models"}


def test_a_server_with_another_tokenizer_is_not_asked(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(2))
    other = tmp_path / "other"
    make_tokenizer(other, CHATML, specials=("<unk>", "<|im_start|>", "<|im_end|>", "return"))
    with (
        Flaky(other) as server,
        pytest.raises(SpeccError, match="the endpoint is not the verifier: it takes a text for"),
    ):
        ask(tmp_path / "run", verifier, source, server.url)


def test_a_wrong_address_is_said_to_be_one(tmp_path: Path, verifier: Path) -> None:
    source = conversations(tmp_path / "source", talks(2))
    with (
        Flaky(verifier) as server,
        pytest.raises(SpeccError, match=r"the endpoint has no `/models` \(HTTP 404\)") as caught,
    ):
        ask(tmp_path / "run", verifier, source, server.url.removesuffix("/v1"))
    assert "ends in `/v1`" in (caught.value.hint or "")


def test_a_key_reaches_the_server_alone(tmp_path: Path, verifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    source = conversations(tmp_path / "source", talks(2))
    with Flaky(verifier, key="sk-secret") as server:
        _, events = ask(tmp_path / "run", verifier, source, server.url)
        server.fault = lambda asked, before: None if asked == "models" else "400 sk-secret is wrong"
        with pytest.raises(SpeccError, match="HTTP 400: … is wrong"):
            ask(tmp_path / "other", verifier, source, server.url)
    assert server.served
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sk-secret" not in kept + repr(events).encode()
    assert server.url.encode() not in kept


def test_chats_send_messages_tools_and_the_templates_arguments(tmp_path: Path, verifier: Path) -> None:
    tools = '[{"type":"function","function":{"name":"bake","parameters":{"type":"object"}}}]'
    rows = [*talks(6), make_row(6, {"role": "system", "content": "Be brief."}, user("Bake."))]
    rows[6]["tools"] = tools
    source = conversations(tmp_path / "source", rows)
    with Flaky(verifier, each_in_turn(2, [fault for fault in FAULTS if fault != "other"])) as server:
        _, events = ask(tmp_path / "run", verifier, source, server.url, endpoint={"protocol": "chat"},
                        how={"timeout": 1.5}, template={"reasoning_effort": "low"}, temperature=0.7)  # fmt: skip
    assert [event.text for event in events if isinstance(event, Note)] == [
        "the server's own chat template writes the prompts (`protocol: chat`)"
    ]
    asked = server.bodies[-1]
    assert asked["chat_template_kwargs"] == {"reasoning_effort": "low"}
    assert asked["reasoning_effort"] == "low"
    with_tools = next(body for body in server.bodies if "tools" in body)
    assert with_tools["tools"] == json.loads(tools)
    assert [message["role"] for message in with_tools["messages"]] == ["system", "user"]
    assert {"seed", "temperature", "top_p", "max_tokens"} < set(with_tools)
    assert len(read(tmp_path / "run")) == 7


def test_samples_are_conversations_of_their_own(tmp_path: Path, verifier: Path) -> None:
    rows = talks(6)
    source = conversations(tmp_path / "source", rows, shard=4)
    with Flaky(verifier) as server:
        ask(tmp_path / "one", verifier, source, server.url, temperature=0.7)
        ask(tmp_path / "three", verifier, source, server.url, temperature=0.7, samples=3)
    one, three = read(tmp_path / "one"), read(tmp_path / "three")
    assert [row["row"] for row in three] == list(range(18))
    assert [row["line"] for row in three] == [row["line"] for row in one for _ in range(3)]
    assert len({row["id"] for row in three}) == len({json.dumps(row["messages"][1]) for row in three}) == 18
    # The first sample is the one there was.
    assert [(row["id"], row["messages"]) for row in three[::3]] == [(row["id"], row["messages"]) for row in one]
    assert json.loads((tmp_path / "three/output/index.json").read_text())["rows"] == 18
    assert sampled(rows, 1) == rows


def test_a_killed_build_goes_on_with_the_same_digest(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    spec = project.folder / "tiny.yaml"
    spec.write_text(spec.read_text().replace(
        "{from: data}", "{max_tokens: 16, endpoint: {model: tiny, concurrency: 4, timeout: 20}}"))  # fmt: skip
    out, said = project.run("plan", "--json", "tiny.yaml")
    assert {stage["stage"] for stage in json.loads(out)["stages"]} > {"responses"}
    said = project.run("build", "--stage", "responses", "tiny.yaml", expect=1)[1]
    assert "nothing says where the endpoint is that serves `tiny`" in said
    folder = project.folder / "tiny"
    with Flaky(folder, delay=0.05) as server:
        where = {"SPECC_ENDPOINT": server.url}
        process = project.start("build", "--stage", "tokens", "tiny.yaml", environment=where)
        until = time.monotonic() + 30
        while sum(server.served.values()) < 14 and time.monotonic() < until:
            time.sleep(0.01)
        (stage,) = (pid for pid in _children(process.pid))
        os.kill(stage, signal.SIGKILL)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 3
        assert "the stage `responses` was killed by SIGKILL" in said
        killed = sum(server.served.values())
        server.delay = 0
        project.specc("build", "--stage", "tokens", "tiny.yaml", environment=where)
        # What went out and was not kept was on its way when the stage died, and the first question is asked again.
        assert 14 <= killed < 41
        assert sum(server.served.values()) <= 41 + 4 + 1
    lock = json.loads((project.folder / "tiny.lock.json").read_text())
    ((_, found),) = lock["results"].items()
    other = make_project(tmp_path / "other")
    (other.folder / "tiny.yaml").write_text(spec.read_text())
    with Flaky(folder, each_in_turn(1, ("busy", "half", "array"))) as server:
        profile = other.folder / "here.yaml"
        profile.write_text(f"runtime: {{datagen: {{endpoint: '{server.url}'}}}}\n")
        other.specc("build", "--stage", "tokens", "--profile", "here.yaml", "tiny.yaml")
    theirs = json.loads((other.folder / "tiny.lock.json").read_text())
    assert theirs == lock
    assert found["responses"]
    places = [path for path in (*project.store.rglob("*"), *other.store.rglob("*")) if path.is_file()]
    assert not [path for path in places if b"127.0.0.1" in path.read_bytes()]
    verify_again(project, found)
    third = make_project(tmp_path / "third")
    for name in ("tiny.yaml", "tiny.lock.json"):
        (third.folder / name).write_bytes((project.folder / name).read_bytes())
    with Flaky(folder, salt="another day's ") as server:
        where = {"SPECC_ENDPOINT": server.url}
        said = third.specc("build", "--stage", "responses", "tiny.yaml", environment=where, expect=4).stderr
    assert "answers of an endpoint do not repeat: those that the lock has are in the store of who built them" in said


def verify_again(project: Project, digests: dict[str, str]) -> None:
    """See that all but the answers is built again, and from them."""
    compiled = compile_spec(project.folder / "tiny.yaml")
    plan = replace(compiled.plan, stages=tuple(stage for stage in compiled.plan.stages if stage.name in digests))
    store = Store(project.store)
    with store.scratch() as fresh:
        reporter, files = Reporter(io.StringIO()), compiled.resolved.files
        found = list(rebuild(plan, digests, store, fresh, values=compiled.values, files=files, reporter=reporter))
        assert [(one.stage, one.state) for one in found] == [
            ("verifier", "same"), ("conversations", "same"), ("responses", "taken"), ("tokens", "same"),
        ]  # fmt: skip
        with pytest.raises(SpeccError, match="not repeatable: answers of an endpoint"):
            rebuild_one(store.manifest(digests["responses"]), store, fresh, reporter=reporter)
        remove_tree(fresh.root)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(item) for item in found]


def test_a_journal_loses_a_torn_line_and_nothing_else(tmp_path: Path) -> None:
    said: Message = {"role": "assistant", "content": "Übel \u2028 \U0001f96a", "finish": "stop", "tokens": 3}
    journal = Journal(tmp_path / "0.jsonl")
    journal.add(3, 1, said)
    journal.add(4, 1, {**said, "content": "x"})
    journal.close()
    whole = (tmp_path / "0.jsonl").read_bytes()
    for end in (0, 1, 40, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        (tmp_path / "1.jsonl").write_bytes(whole[:end])
        again = Journal(tmp_path / "1.jsonl")
        assert len(again) == whole[:end].count(b"\n")
        again.add(5, 1, said)
        again.close()
        last = Journal(tmp_path / "1.jsonl")
        assert last.get(5, 1) == said
        last.close()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2**70)
    | st.floats()
    | st.sampled_from(["stop", "{}", "[1]", "\ud800", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["function", "name", "arguments", "id", "content", "text"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries({}, optional=dict.fromkeys(("content", "reasoning", "tool_calls"), JSON))
CHOICE = (
    st.fixed_dictionaries({"finish_reason": st.just("stop") | JSON, "text": JSON, "message": MESSAGE | JSON}) | JSON
)
USAGE = st.fixed_dictionaries({"prompt_tokens": st.just(3) | JSON, "completion_tokens": st.just(1) | JSON}) | JSON
ANSWER = st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2) | JSON, "usage": USAGE}) | JSON


@settings(max_examples=300, deadline=None)
@given(ANSWER)
def test_whatever_json_comes_back_it_is_an_answer_or_none(found: Any) -> None:
    for read_answer in (lambda one: endpoint._completion(one, 3), lambda one: endpoint._chat_answer(one)[0]):
        with suppress(AgainError, RefusedError):
            message = read_answer(found)
            assert canonical_text([message])
            assert message["finish"] == "stop"
            assert 0 <= message["tokens"] < 2**31
    with suppress(AgainError):
        assert all(type(room) in (int, type(None)) for room in endpoint._models(found).values())


def test_pauses_double_and_are_drawn() -> None:
    assert client.FIRST_PAUSE == 0.01
    pauses = [pause_after(failures, ["id", 1]) for failures in range(1, 12)]
    assert all(0.005 * 2**n <= pause <= 0.01 * 2**n for n, pause in enumerate(pauses[:3]))
    assert max(pauses) <= 0.05
    assert pause_after(2, ["id", 1]) == pauses[1] != pause_after(2, ["id", 3])


def test_retry_after_is_seconds_or_a_date() -> None:
    assert seconds_of("120", 0.0) == 120
    assert seconds_of("Fri, 31 Dec 1999 23:59:59 GMT", 946684799.0 - 5) == 5
    assert seconds_of("Fri, 31 Dec 1999 23:59:59 GMT", 1e9) == 0
    assert seconds_of("soon", 0.0) is seconds_of(None, 0.0) is seconds_of("-1", 0.0) is None


@pytest.mark.engine
def test_vllms_own_server_answers_as_the_stage_does(tmp_path: Path) -> None:
    small = make_verifier(tmp_path / "verifier", dtype="float32", max_position=LENGTH)
    source = conversations(tmp_path / "source", talks(12))
    params = values(**{"verifier.config": facts(small), "verifier.dtype": "float32", "data.sequence_length": LENGTH,
                       "data.responses.max_tokens": 12})  # fmt: skip
    output, _, _ = run("responses", tmp_path / "offline", params, {"conversations": source, "verifier": small})
    expected = [path.read_bytes() for path in sorted((output / "shards").iterdir())]
    port = free("127.0.0.1", 0)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(small), "--port", str(port),
               "--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", str(LENGTH), "--enforce-eager",
               "--host", "127.0.0.1"]  # fmt: skip
    how = {"name": "tiny", "host": "127.0.0.1", "port": port, "home": tmp_path / "home", "log": tmp_path / "log"}
    with serving(command, variables=ENVIRONMENT, device="cpu", seconds=240, **how) as server:
        options: dict[str, Any] = {"max_tokens": 12, "how": {"timeout": 60.0}}
        source_of = (tmp_path / "asked", small, source, f"{server.url}/v1")
        ask(*source_of, **options)
        asked = [path.read_bytes() for path in sorted((tmp_path / "asked/output/shards").iterdir())]
        _, said = ask(tmp_path / "chat", *source_of[1:], endpoint={"protocol": "chat"}, **options)
        chat = read(tmp_path / "chat")
    assert asked == expected
    # The server has the verifier's template too, so that chats are the same here.
    assert [row["messages"] for row in chat] == [json.loads(line)["messages"] for text in expected
                                                 for line in text.splitlines()]  # fmt: skip
    assert len([event for event in said if isinstance(event, Note)]) == 1

"""Hidden states that are computed while the draft trains: in no key, and never an artifact that is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from shelf import ALL, Shelf
from specc.core.lock import machine_class
from specc.core.plan import Decision, decide, lower
from specc.core.plan.corpus import Corpus
from specc.core.plan.costs import alive, captures
from specc.core.targets.jobs import jobs_of
from values import values

MACHINE = machine_class("cpu-amx")
STREAM = {"data.hidden_states": {"from": "stream", "keep": False}}


def decisions(shelf: Shelf, **changes: Any) -> dict[str, Decision]:
    return {item.stage.name: item for item in decide(lower(values(**changes), MACHINE), shelf)}


def test_a_stream_moves_no_key() -> None:
    on_disk, streamed = Shelf(), Shelf()
    assert on_disk.build(lower(values(), MACHINE)) == ALL
    assert streamed.build(lower(values(**STREAM), MACHINE)) == [name for name in ALL if name != "hidden_states"]
    assert on_disk.index.items() - streamed.index.items() == {
        item for item in on_disk.index.items() if item[0][0] == "hidden_states"
    }
    assert streamed.index.items() <= on_disk.index.items()


def test_what_is_on_disk_is_not_streamed() -> None:
    shelf = Shelf()
    shelf.build(lower(values(), MACHINE))
    assert {item.action for item in decisions(shelf, **STREAM).values()} == {"hit"}
    assert decisions(shelf, **STREAM, **{"train.seed": 7})["hidden_states"].action == "hit"


def test_a_draft_does_not_wait_for_a_stream() -> None:
    shelf = Shelf()
    first = decisions(shelf, **STREAM)
    assert (first["hidden_states"].action, first["hidden_states"].key) == ("stream", None)
    assert first["draft"].waits_for == ("tokens", "verifier", "vocabulary")
    shelf.build(lower(values(**STREAM), MACHINE))
    found = decisions(shelf, **STREAM, **{"train.seed": 7})
    assert not found["hidden_states"].due
    assert found["draft"].key is not None
    assert [change.path for change in found["draft"].changes] == ["train.seed"]
    moved = decisions(shelf, **STREAM, **{"verifier.dtype": "float16"})["hidden_states"]
    assert moved.action == "stream"


def test_a_draft_is_there_without_what_it_was_made_of() -> None:
    shelf = Shelf()
    shelf.build(lower(values(), MACHINE))
    shelf.index = {place: digest for place, digest in shelf.index.items() if place[0] != "hidden_states"}
    found = decisions(shelf)
    assert [name for name, item in found.items() if item.due] == ["hidden_states"]
    assert shelf.build(lower(values(), MACHINE)) == ["hidden_states"]


def test_a_cluster_runs_a_stream_in_the_job_that_reads_it() -> None:
    some = values(**STREAM, **{"runtime.datagen": {"workers": 3}})
    jobs = {job.stage: job for job in jobs_of(lower(some, MACHINE))}
    assert "hidden_states" not in jobs
    assert set(jobs["draft"].needs) == {"tokens", "verifier", "vocabulary"}
    assert (jobs["draft"].cpus, jobs["responses"].cpus, jobs["tokens"].cpus) == (8, 6, 3)
    assert [job.number for job in jobs.values()] == list(range(1, len(jobs) + 1))


@pytest.mark.parametrize(
    ("states", "rows", "share", "often"),
    [
        ({"from": "stream", "keep": False}, 8 * 64, 0.1 + 8 / 64, 3.0),
        ({"from": "stream", "keep": False, "ahead": 1}, 8 * 50, 0.1 + 5 / 50, 3.0),
        ({"from": "stream", "keep": True}, 8 * 64, 1.1, 1.0),
        ({"from": "stream", "keep": False}, 8 * 8, 1.1, 1.0),
    ],
)
def test_what_a_stream_holds(states: dict[str, Any], rows: int, share: float, often: float) -> None:
    some = values(**{"data.hidden_states": states, "data.shuffle_window": 4, "train.epochs": 3})
    corpus = Corpus(
        rows=rows, text=0, asked=50 * rows, answered=50 * rows, held=0.1, prompts=1, prompt=1, complete=True
    )
    assert alive(some["data"], rows, 0.1) == pytest.approx(share)
    assert captures(some, corpus) == often

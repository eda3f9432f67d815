"""What runs beside a training that streams: it computes the shards of hidden states that the training wants.

A shard is computed as the stage `hidden_states` does it, at once and by itself, so that its bits are the same whoever
makes it, and however often. Any number of producers share the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from specc.core.claims import Claims
from specc.core.files import sync, writing
from specc.core.stage import Stage
from specc.core.streams import Stream
from specc.datagen.hidden_states import Shards, layers_of
from specc.datagen.rows import read_index

POLL: Final = 0.1
"""Seconds between two looks at what is wanted."""


def produce(stage: Stage) -> None:
    """Compute what is wanted in the folder `stream` of the job's context, until this process is ended."""
    stream, source = Stream(Path(stage.job.context["stream"])), stage.input("tokens")
    index, claims, made = read_index(source)["shards"], Claims(stream.folder / "claims"), 0
    with Shards(stage, layers_of(stage.params)) as shards:
        while True:
            for number in _due(stream):
                with claims.claim(f"{number:015x}") as ours:
                    if ours and number in _due(stream):
                        _make(stage, stream, shards, number, source / index[number]["file"])
                        made += 1
                        stage.progress(made, None, "shards")
                        break  # what is wanted first may be another one now
            else:
                time.sleep(POLL)


def _due(stream: Stream) -> Iterator[int]:
    """Yield the shards that are wanted, whole or their held-out rows, and not there; the most urgent ones first."""
    wanted = stream.wanted()
    yield from (number for number in wanted.held if not stream.held(number).exists())
    yield from (number for number in wanted.shards if not stream.shard(number).exists())


def _make(stage: Stage, stream: Stream, shards: Shards, number: int, tokens: Path) -> None:
    """Compute a shard; give it its name, if it is still wanted, and one to a shard of its held-out rows alone."""
    whole, held = (stage.output / f"{name}.safetensors" for name in ("whole", "held"))
    kept = stream.held(number).exists()
    shards.write(tokens, whole, _quiet, None if kept else held)
    with writing(stream.folder):
        if not kept:
            sync(held)
            held.rename(stream.held(number))
        if number in stream.wanted().shards:
            sync(whole)
            whole.rename(stream.shard(number))
        else:
            whole.unlink()


def _quiet(done: float, text: str = "") -> None:
    """Say nothing of a shard that is begun: training says how far all is."""

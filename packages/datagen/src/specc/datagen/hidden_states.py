"""The stage `hidden_states`: what the verifier computes at the layers that the draft reads, captured by vLLM.

A shard's rows are given to vLLM in batches of one step, each filled up to an even number of tokens, so that shapes
and bits are the same whichever run makes it. vLLM writes a file a request; each is encoded into the shard and removed
as soon as it is its turn, so that neither memory nor the work folder ever holds a shard.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from specc.core.engines import EVEN, SEQUENCES, capture_arguments, step_tokens
from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, sha256_file, write_atomic
from specc.core.stage import Stage, Tell, Unit
from specc.datagen.encoding import ENCODING, StatesFile
from specc.datagen.engine import generate, start, stop
from specc.datagen.rows import read_index, shard_name
from specc.datagen.vision import Placed, Shown, folded

PATIENCE: Final = 60.0
"""Seconds that a request's file may take to be whole after its request is finished."""


def hidden_states(stage: Stage) -> None:
    """Write a shard of hidden states for each shard of tokens.

    A shard holds of each row of the tokens shard the states that training reads, as `specc.datagen.encoding` writes
    them: those up to its last target, which the verifier computes with all of the row, so that bits are the same.
    Layer id l is the input of decoder layer l, residual added; the last id, the number of layers, is the output
    of the last layer before the final norm. Raises `SpeccError` if vLLM gives back anything else.
    """
    if "stream" in stage.job.context:
        from specc.datagen.produced import produce

        produce(stage)
        return
    params, source, verifier = stage.params, stage.input("tokens"), stage.job.inputs["verifier"]
    config, index = params["verifier"]["config"], read_index(source)
    layers = layers_of(params)
    material = {
        "layers": layers,
        "sequence_length": params["data"]["sequence_length"],
        "verifier": params["verifier"],
        "verifier_digest": verifier.digest,
    }
    with Shards(stage, layers) as shards:
        units = [
            Unit(name=shard_name(number, ".safetensors"), material={**material, "tokens": shard["sha256"]},
                 amount=shard["tokens"], write=partial(shards.write, source / shard["file"]))
            for number, shard in enumerate(index["shards"])
        ]  # fmt: skip
        made = stage.units(units, "tokens")
    if stage.worker:
        return
    about = {
        "encoding": ENCODING,
        "layers": layers,
        "hidden_size": config["hidden_size"],
        "dtype": params["verifier"]["dtype"],
        "rows": index["rows"],
        "tokens": index["tokens"],
        "shards": [
            {"file": unit.name, "rows": shard["rows"], "tokens": shard["tokens"],
             "sha256": sha256_file(stage.output / unit.name), "tokens_sha256": shard["sha256"]}
            for unit, shard in zip(units, index["shards"], strict=True)
        ],
    }  # fmt: skip
    write_atomic(stage.output / "index.json", pretty(about))
    stage.record["tokens"] = sum(unit.amount for unit in units if unit.name in made)
    if shards.captured:
        stage.record["tokens_per_second"] = round(shards.captured / shards.seconds, 1)


def layers_of(params: Mapping[str, Any]) -> list[int]:
    """Return the ids of a shard's layers: those that the draft reads, and the last one's output."""
    return [*params["draft"]["hidden_state_layers"], params["verifier"]["config"]["num_hidden_layers"]]


class Shards:
    """What writes shards of hidden states; vLLM is started for the first one."""

    def __init__(self, stage: Stage, layers: Sequence[int]) -> None:
        self._stage, self._layers = stage, layers
        seeing = "image_token_id" in stage.params["verifier"]["config"]
        self._pictures = Shown(stage.input("conversations")) if seeing else None
        self._engine: Capture | None = None
        self.captured, self.seconds = 0, 0.0
        """Tokens of the shards that were written, and the time that it took."""

    def write(self, tokens: Path, path: Path, tell: Tell, held: Path | None = None) -> None:
        """Write the hidden states of a shard of tokens at `path`, and at `held` those of its held-out rows alone.

        The latter has all rows too, and keeps no token of the others.
        """
        stage, layers = self._stage, self._layers
        if self._engine is None:
            tell(0, "starting vLLM")
            self._engine = Capture(
                Path(stage.job.inputs["verifier"].path), stage.params, stage.facets, layers, stage.work / "captured"
            )
            tell(0, "")
        tensors = load_file(tokens)
        ids, mask, split = tensors["input_ids"].tolist(), tensors["loss_mask"].bool(), tensors["split"].tolist()
        offsets = tensors["offsets"].tolist()
        borders = list(pairwise(offsets))
        rows = [ids[start:end] for start, end in borders]
        config = stage.params["verifier"]["config"]
        asked = rows if self._pictures is None else pictured(rows, offsets, tensors, self._pictures, config)
        began, through = time.monotonic(), 0
        with ExitStack() as files:
            whole, *aside = (
                files.enter_context(StatesFile(place, len(borders), len(layers))) for place in (path, held) if place
            )
            for row, states in enumerate(self._engine.run(rows, asked)):
                read = states[: read_by_training(mask[slice(*borders[row])])]
                whole.add(read)
                for one in aside:
                    one.add(read if split[row] else read[:0])
                through += len(states)
                tell(through, "")
        self.captured, self.seconds = self.captured + through, self.seconds + time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()


def pictured(
    rows: Sequence[list[int]],
    offsets: Sequence[int],
    tensors: Mapping[str, Tensor],
    pictures: Shown,
    config: Mapping[str, Any],
) -> list[Any]:
    """Return a shard's rows as vLLM is asked them: with their images, and a token for each in place of its run."""
    if "image_spans" not in tensors:
        return list(rows)
    placed: list[list[Placed]] = [[] for _ in rows]
    for digest, (first, end) in zip(tensors["image_sha256"], tensors["image_spans"].tolist(), strict=True):
        row = bisect_right(offsets, first) - 1
        placed[row].append(Placed(bytes(digest.tolist()).hex(), first - offsets[row], end - offsets[row]))
    return [
        pictures.prompt(folded(row, images, config["image_token_id"]), [image.sha256 for image in images])
        if images
        else row
        for row, images in zip(rows, placed, strict=True)
    ]


def read_by_training(mask: Tensor) -> int:
    """Return of how many tokens training reads the states: of those before the row's last target.

    `mask` bool `[tokens]` is what the assistant wrote. A target is its token after another, not the row's second.
    """
    targets = (mask[2:] & mask[1:-1]).nonzero()
    return int(targets[-1]) + 2 if len(targets) else 0


class Capture:
    """A vLLM engine that computes prompts and hands out their hidden states."""

    def __init__(
        self, verifier: Path, params: Mapping[str, Any], facets: Mapping[str, Any], layers: Sequence[int], folder: Path
    ) -> None:
        """Start vLLM with its hidden-states connector, which writes into `folder`, emptied first."""
        shutil.rmtree(folder, ignore_errors=True)  # a killed run's leftovers
        folder.mkdir(parents=True)
        self.dtype: torch.dtype = getattr(torch, params["verifier"]["dtype"])
        self._shape = (len(layers), params["verifier"]["config"]["hidden_size"])
        length = params["data"]["sequence_length"]
        self._even = min(EVEN, length)
        self._tokens = step_tokens(length + 1) // self._even * self._even
        stock = {"kv_connector": "ExampleHiddenStatesConnector"}
        ours = {"kv_connector": "CpuHiddenStatesConnector", "kv_connector_module_path": "specc.datagen.connector"}
        self._llm = start(
            verifier,
            params,
            facets,
            length=length + 1,
            **capture_arguments(layers),
            kv_transfer_config={
                **(ours if facets.get("device", "cpu") == "cpu" else stock),
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": str(folder)},
            },
        )

    def run(self, rows: Sequence[Sequence[int]], asked: Sequence[Any] | None = None) -> Iterator[Tensor]:
        """Compute all rows of token ids; yield the states of each, `[tokens, layers, hidden]`, in the rows' order.

        `asked` are the prompts that vLLM makes the rows of, if those have images. Raises `SpeccError` if the states are
        not those of the row, or not finite, or do not come.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        once = SamplingParams(temperature=0, max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        waiting: dict[int, Path] = {}
        turn = 0

        def whole() -> Iterator[Tensor]:
            nonlocal turn
            for row in sorted(waiting):
                if row > turn or not released(path := waiting[row]):
                    continue
                if row == turn:
                    turn += 1
                    yield read_states(path, rows[row], self._shape, self.dtype)
                del waiting[row]
                path.unlink()
                lock_of(path).unlink()

        for number, batch in enumerate(batches([len(row) for row in rows], self._tokens)):
            fill = -sum(len(rows[row]) for row in batch) % self._even
            prompts = [(asked or rows)[row] for row in batch] + [[0] * fill] * (fill > 0)
            for place, output in generate(self._llm, prompts, [once] * len(prompts)):
                row = batch[place] if place < len(batch) else ~number  # what only fills up has a negative number
                waiting[row] = Path(output.kv_transfer_params["hidden_states_path"])
                yield from whole()
        # A finished request's states leave the cache in the step after it, an empty one at the end.
        deadline = time.monotonic() + PATIENCE
        while waiting:
            self._llm.llm_engine.step()
            yield from whole()
            if waiting and time.monotonic() > deadline:
                raise _wrong(f"no states for {len(waiting)} of {len(rows)} rows within {PATIENCE:.0f} s")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop the engine."""
        stop(self._llm)


def batches(sizes: Sequence[int], tokens: int) -> list[range]:
    """Split rows of so many tokens, in order, into batches of at most `tokens` and a sequence less than a step has."""
    found: list[range] = []
    start = total = 0
    for row, size in enumerate(sizes):
        if row > start and (total + size > tokens or row - start == SEQUENCES - 1):
            found.append(range(start, row))
            start, total = row, 0
        total += size
    return [*found, range(start, len(sizes))] if sizes else []


def read_states(path: Path, row: Sequence[int], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return a request's states `[tokens, *shape]`; raises `SpeccError` if they are not the row's, or not finite."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _wrong(f"a file of states that is not whole ({error})") from error
    states, expected = found["hidden_states"], (len(row), *shape)
    if found["token_ids"].tolist() != list(row):
        raise _wrong("the states of other tokens than it was given")
    if states.shape != expected or states.dtype != dtype:
        raise _wrong(f"states {states.dtype} {list(states.shape)}, and {dtype} {list(expected)} were expected")
    if not torch.isfinite(states).all():
        raise _wrong("states that are not finite")
    return states


def released(path: Path) -> bool:
    """Tell whether vLLM is done with a request's file: it holds a lock beside it from the request's first step."""
    try:
        handle = os.open(lock_of(path), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def lock_of(path: Path) -> Path:
    """Return the lock beside a file of states."""
    return path.with_name(path.name + ".lock")


def _wrong(what: str) -> SpeccError:
    return SpeccError(
        f"vLLM gave back {what}",
        hint="look for a full disk in the stage's log, then run the build again: it goes on after the last shard",
        code=Exit.STAGE,
    )

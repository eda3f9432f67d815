"""The stage `responses`: the verifier answers the prompts itself, so that the draft learns its words.

In this process, a shard's conversations are answered turn by turn: round r makes the r-th answer of all rows that ask
for one, in one call. A server is asked in `specc.datagen.endpoint`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from specc.core.engines import answer_arguments
from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.stage import Stage, Tell, Unit
from specc.datagen.engine import generate, start, stop
from specc.datagen.refusals import REFUSED, Refusals
from specc.datagen.rows import Message, Row, ShardInfo, read_rows, read_shards, shard_info, shard_name, write_rows
from specc.datagen.talks import Asker, Talk, Writer, sampled
from specc.datagen.vision import Shown, images_of


def responses(stage: Stage) -> None:
    """Write a shard of answered conversations for each shard of conversations.

    A row whose first prompt does not fit into `data.sequence_length`, or which the chat template refuses, is left
    out; one whose later prompt does not fit ends before it. Both are counted. Raises `SpeccError` if no row is left.
    """
    params, source, verifier = stage.params, stage.input("conversations"), stage.job.inputs["verifier"]
    material = {
        "responses": params["data"]["responses"],
        "sequence_length": params["data"]["sequence_length"],
        "date": params["date"],
        "verifier": params["verifier"],
        "verifier_digest": verifier.digest,
    }
    shards, samples = read_shards(source), params["data"]["responses"].get("samples", 1)
    writer: Writer | None = None

    def unit(number: int, shard: ShardInfo) -> Unit:
        def write(path: Path, tell: Tell) -> None:
            nonlocal writer
            if writer is None:
                writer = _writer(stage, tell, total)
            write_rows(path, writer.answer(sampled(read_rows(source / shard.file), samples), tell))

        return Unit(name=shard_name(number, ".jsonl"), material={**material, "rows": shard.sha256},
                    amount=samples * shard.rows, write=write)  # fmt: skip

    units, total = [unit(*item) for item in enumerate(shards)], samples * sum(shard.rows for shard in shards)
    try:
        made = stage.units(units, "rows")
    finally:
        if writer is not None:
            writer.close()
    if stage.worker:
        return
    infos, counts, written = list[dict[str, Any]](), Counter[str](), 0
    for one, shard in zip(units, shards, strict=True):
        kept = list(read_rows(stage.output / one.name))
        found = count(sampled(read_rows(source / shard.file), samples), kept)
        counts, written = counts + found, written + found["tokens"] * (one.name in made)
        infos.append(asdict(shard_info(stage.output, one.name, len(kept))))
    if writer is not None:
        stage.record["tokens"] = written if stage.workers > 1 else writer.tokens
        stage.record["tokens_per_second"] = round(writer.tokens / writer.seconds, 1) if writer.tokens else None
    refused = Refusals(stage, total).every() if "endpoint" in params["data"]["responses"] else None
    _say(stage, counts, writer, total)
    if refused and refused.count:
        stage.warn(refused.warning(total, REFUSED, "were left out, or end there"))
        refused.write(stage.output / REFUSED)
    names = ("tokens", "length", "left_out", "shortened")
    index = {"rows": total - counts["left_out"], "shards": infos, **{name: counts[name] for name in names}}
    write_atomic(stage.output / "index.json", pretty(index))


def _writer(stage: Stage, tell: Tell, total: int) -> Writer:
    """Return what answers a stage's `total` rows."""
    verifier = Path(stage.job.inputs["verifier"].path)
    if "endpoint" in stage.params["data"]["responses"]:
        try:
            from specc.datagen.endpoint import Endpoint
        except ModuleNotFoundError as error:
            raise SpeccError(f"an endpoint is asked with `{error.name}`, and it is not installed",
                             hint="`pip install 'specc[endpoint]'` brings it", code=Exit.STAGE) from error  # fmt: skip
        tell(0, "asking the endpoint")
        return Endpoint(verifier, stage, total)
    tell(0, "starting vLLM")
    return Offline(verifier, stage.params, stage.facets, stage.input("conversations"))


def count(asked: Sequence[Row], kept: Sequence[Row]) -> Counter[str]:
    """Return a shard's counts, from its rows alone, so that a shard of an earlier build has them too."""
    turns = {row["row"]: _users(row) for row in asked}
    answers = [message for row in kept for message in row["messages"] if message["role"] == "assistant"]
    return Counter(
        tokens=sum(message.get("tokens", 0) for message in answers),
        length=sum(message.get("finish") == "length" for message in answers),
        left_out=len(asked) - len(kept),
        shortened=sum(_users(row) < turns[row["row"]] for row in kept),
    )


def _users(row: Row) -> int:
    return sum(message["role"] == "user" for message in row["messages"])


def _say(stage: Stage, counts: Counter[str], writer: Writer | None, total: int) -> None:
    example = f", the first of them {writer.refused[0]}" if writer and writer.refused else ""
    if counts["left_out"] == total:
        raise SpeccError(
            f"no prompt fits into `data.sequence_length` ({stage.params['data']['sequence_length']}){example}",
            hint="give a larger `data.sequence_length`, or shorter prompts",
            code=Exit.STAGE,
        )
    if counts["left_out"]:
        stage.warn(f"{counts['left_out']} of {total} rows are too long or refused, and left out{example}")
    if counts["shortened"]:
        stage.note(
            f"{counts['shortened']} of {total} conversations end before a turn that would be too long, or that"
            " follows what a tool answered"
        )


class Offline(Asker):
    """A verifier that answers conversations in this process."""

    def __init__(self, verifier: Path, params: Mapping[str, Any], facets: Mapping[str, Any], rows: Path) -> None:
        """Read tokenizer and template; `params` are the stage's, and in `rows` are the images of conversations.

        vLLM is started for the first prompt that fits.
        """
        super().__init__(verifier, params)
        self._pictures = Shown(rows)
        self._start: Callable[[], Any] = partial(
            start, verifier, params, facets, length=self.length,
            **answer_arguments(self.options, facets.get("device", "cpu")),
        )  # fmt: skip
        self._llm: Any = None
        self.tokens, self.seconds = 0, 0.0

    def answer(self, rows: Sequence[Row], done: Callable[[int, str], None]) -> list[Row]:
        """Return the rows with every answer written anew; see `Writer`."""
        talks = self.begin(rows)
        going = talks
        while going:
            asking, prompts, params = list[Talk](), list[Any](), list[Any]()
            for talk in going:
                messages = talk.next_prompt()
                if (prompt := self.prompt(talk, messages)) is not None:
                    talk.said = messages
                    asking.append(talk)
                    prompts.append(self._shown(prompt, messages, talk.row.get("tools")))
                    params.append(self._params(talk, len(prompt)))
            if not asking:
                break
            if self._llm is None:
                self._llm = self._start()
                done(0, "")
            began, tokens, last = time.monotonic(), 0, sum(not talk.asked for talk in asking)
            through = len(rows) - last
            for number, output in generate(self._llm, prompts, params):
                talk, found = asking[number], output.outputs[0]
                talk.said.append({"role": "assistant", "content": found.text, "finish": found.finish_reason,
                                  "tokens": len(found.token_ids)})  # fmt: skip
                tokens += len(found.token_ids)
                through += not talk.asked
                spent = self.seconds + time.monotonic() - began  # over all shards: one ends in bursts
                done(through, f"{(self.tokens + tokens) / spent:.0f} tokens/s")
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + time.monotonic() - began
            going = [talk for talk in asking if talk.asked]
        return [{**talk.row, "messages": talk.said} for talk in talks if talk.said]

    def _shown(self, ids: list[int], messages: Sequence[Message], tools: str | None) -> Any:
        """Return a prompt as vLLM takes it: its token ids, or with images a token for each, and these."""
        images = [image["sha256"] for image in images_of(messages)]
        return self._pictures.prompt(self.encode(messages, tools), images) if images else ids

    def _params(self, talk: Talk, length: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(**self.sampling(talk, len(talk.said), length), output_kind=RequestOutputKind.FINAL_ONLY)

    def close(self) -> None:
        """Stop the engine."""
        if self._llm is not None:
            stop(self._llm)

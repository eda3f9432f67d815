"""What must hold between fields: each rule has an id, one line of explanation and a way out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from specc.core.datafiles import FROM, KNOWN, format_of, is_pattern, label
from specc.core.errors import SpeccError
from specc.core.language.deepspeed import conflicts
from specc.core.language.text import printable
from specc.core.language.words import listed
from specc.core.references import is_hub_id

if TYPE_CHECKING:
    from specc.core.algorithms import Algorithm
    from specc.core.language.document import Document
    from specc.core.language.node import KeyPath

Values = Mapping[str, Any]
OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "config": ("dataset",),
    "split": ("dataset",),
    "path": ("dataset",),
    "revision": ("dataset", "preset"),
    "columns": ("file", "dataset", "url"),
    "images": ("file",),
}
"""Keys of a source, and which sources they say something of."""
TAKEN: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
"""Arguments of a chat template that are not a spec's to give."""


class Rules:
    """The rules over one valid spec: `values` is the tree of `Spec.values()`."""

    def __init__(self, document: Document, values: Values, algorithm: Algorithm) -> None:
        self.document = document
        self.values = values
        self.draft: Values = values["draft"]
        self.data: Values = values["data"]
        self.train: Values = values["train"]
        self.algorithm = algorithm
        self.written = document.written()

    def check(self) -> list[SpeccError]:
        """Return what is wrong without knowing the verifier."""
        return [*self._verifier(), *self._draft(), *self._responses(), *self._files(), *self._mix(), *self._training(),
                *self._deepspeed(), *self._evaluation()]  # fmt: skip

    def check_with(self, config: Values) -> list[SpeccError]:
        """Return what is wrong given `verifier.config` of the resolved spec."""
        try:
            self.algorithm.derive(self.draft, config)
        except SpeccError as error:  # a draft that there is no deriving for: of a part that the verifier lacks
            return [self._error(str(error.id), error.message, str(error.where), hint=error.hint)]
        return [*self._layers(config), *self._lengths(config), *self._answers(config), *self._images(config),
                *self._mask(config), *self._reach(config), *self.spread(config), *self._quantised(config)]  # fmt: skip

    def _error(self, id: str, message: str, *paths: str, note: str | None = None,  # noqa: A002 - as in SpeccError
               hint: str | None = None) -> SpeccError:  # fmt: skip
        """Return an error at the first of the dotted `paths` that the user wrote, else near the last."""
        chosen = next((path for path in paths if self._wrote(path)), paths[-1])
        return self.document.error(message, tuple(chosen.split(".")), id=id, note=note, hint=hint)

    def _wrote(self, path: str) -> bool:
        return any(name == path or name.startswith(path + ".") for name in self.written)

    def _default(self, path: str) -> str:
        """Return «, the default,» for a value that the user did not write."""
        return "" if self._wrote(path) else " (the default)"

    def _verifier(self) -> Iterator[SpeccError]:
        verifier = self.values["verifier"]
        model = printable(verifier["model"])
        if verifier["revision"] is not None and not is_hub_id(verifier["model"]):
            yield self._error("E0225", f"`{model}` is no hub id, and has no revisions", "verifier.revision",
                              hint="remove it: the lock pins what a file or a folder holds")  # fmt: skip
        if verifier["trust_remote_code"] and verifier["model"].endswith(".gguf"):
            yield self._error("E0226", f"`{model}` carries no code to trust", "verifier.trust_remote_code",
                              hint="remove it")  # fmt: skip

    def _training(self) -> Iterator[SpeccError]:
        train, length = self.train, self.data["sequence_length"]
        if train["epochs"] is not None and train["steps"] is not None:
            yield self._error("E0201", "`train.epochs` and `train.steps` exclude each other", "train.steps",
                              hint="remove one of them")  # fmt: skip
        if train["epochs"] is None and train["steps"] is None:
            yield self._error("E0202", "neither `train.epochs` nor `train.steps` says how long to train",
                              "train.epochs", hint="add `epochs: 3`, or remove the line")  # fmt: skip
        if length is not None and train["batch_tokens"] < length:
            yield self._error(
                "E0203",
                f"`train.batch_tokens` is {train['batch_tokens']}{self._default('train.batch_tokens')}, less than"
                f" `data.sequence_length`, {length}",
                "train.batch_tokens", "data.sequence_length",
                hint=f"set `train.batch_tokens` to {length} or more: a step holds whole sequences")  # fmt: skip
        if train["zero"]["stage"] == 0 and train["precision"] == "bf16":
            yield self._error("E0206", "ZeRO stage 0 cannot train in bf16: DeepSpeed refuses it", "train.zero.stage",
                              hint="use `zero: {stage: 1}` or `precision: fp32`")  # fmt: skip
        stage, offload = train["zero"]["stage"], train["zero"]["offload"]
        if offload == "optimizer" and stage == 0:
            yield self._error("E0220", "ZeRO stage 0 has no part of the optimizer that could be offloaded",
                              "train.zero.offload", hint="use `zero: {stage: 1, offload: optimizer}`")  # fmt: skip
        if offload == "parameters" and stage != 3:
            yield self._error("E0221", f"parameters are offloaded at ZeRO stage 3 only, and this is stage {stage}",
                              "train.zero.offload", hint="use `stage: 3`, or `offload: optimizer`")  # fmt: skip
        ranks = self.values["runtime"]["train"]["ranks"]
        *ends, last = [phase["until"] for phase in ranks] if isinstance(ranks, list) else [None]
        given = [end for end in ends if end is not None]
        if last is not None or len(given) < len(ends) or given != sorted(set(given)):
            yield self._error("E0222", "each phase but the last needs `until`, a later step than the phase before it",
                              "runtime.train.ranks",
                              hint="write `ranks: [{ranks: 2, until: 500}, {ranks: 1}]`")  # fmt: skip
        elif given and train["steps"] is not None and given[-1] >= train["steps"]:
            yield self._error("E0223", f"a phase ends after step {given[-1]}, and `train.steps` is {train['steps']}",
                              "runtime.train.ranks",
                              hint="give the phase an earlier end, or remove the ones after it")  # fmt: skip
        yield from self._devices()
        warmup = train["schedule"]["warmup"]
        if train["steps"] is not None and isinstance(warmup, int) and warmup >= train["steps"]:
            yield self._error("E0216", f"the warm-up of {warmup} steps is as long as the training of {train['steps']}",
                              "train.schedule.warmup",
                              hint="a warm-up below 1 is a share of all steps: `warmup: 0.01`")  # fmt: skip
        if train["loss"] == {}:
            yield self._error("E0218", "no loss in `train.loss` has a weight", "train.loss.kl", "train.loss",
                              hint="write `loss: kl`")  # fmt: skip

    def _devices(self) -> Iterator[SpeccError]:
        """Rules on the devices that processes are to have."""
        train, datagen = (self.values["runtime"][section] for section in ("train", "datagen"))
        ranks, devices = train["ranks"], train.get("devices")
        most = max(phase["ranks"] for phase in ranks) if isinstance(ranks, list) else ranks
        if devices and len(devices) < most:
            yield self._error("E0247", f"training has {most} ranks, and `runtime.train.devices` names {len(devices)}",
                              "runtime.train.devices", hint="name one for each rank, or leave it out")  # fmt: skip
        workers, spread, devices = datagen["workers"], datagen.get("tensor_parallel", 1), datagen.get("devices")
        if devices and len(devices) % (workers * spread):
            each = f" of {spread} processes each" if spread > 1 else ""
            yield self._error("E0247", f"`runtime.datagen.devices` names {len(devices)}, which do not go round among"
                              f" {workers} worker{'s' * (workers > 1)}{each}", "runtime.datagen.devices",
                              hint=f"name {workers * spread}, or a multiple of that, or leave it out")  # fmt: skip

    def _deepspeed(self) -> Iterator[SpeccError]:
        for identity, message, paths, hint in conflicts(self.train):
            yield self._error(identity, message, *paths, hint=hint)

    def _draft(self) -> Iterator[SpeccError]:
        draft, asked = self.draft, self.values["export"]["speculative_tokens"]
        if draft.get("fc_norm") and draft.get("norm_before_fc"):
            yield self._error("E0204", "`draft.fc_norm` and `draft.norm_before_fc` exclude each other", "draft.fc_norm",
                              note=None if self._wrote("draft.norm_before_fc") else "`norm_before_fc` is on by default",
                              hint="add `norm_before_fc: false`, or remove `fc_norm`")  # fmt: skip
        most = self.algorithm.max_speculative_tokens(draft)
        if asked is not None and asked > most:
            yield self._error("E0205", f"`export.speculative_tokens` is {asked}, and this draft can be asked for at"
                              f" most {most}", "export.speculative_tokens",
                              hint=f"use `speculative_tokens: {most}` or fewer, or train for more steps")  # fmt: skip
        yield from self._init(draft.get("init"))
        layers = draft.get("hidden_state_layers")
        if layers is not None and layers != sorted(set(layers)):
            yield self._error("E0219", "the ids in `draft.hidden_state_layers` must rise", "draft.hidden_state_layers",
                              hint=f"write `{sorted(set(layers))}`" if len(set(layers)) == len(layers)
                              else "name each layer once")  # fmt: skip
        length, (steps, path) = self.data["sequence_length"], self.algorithm.drafted(draft)
        if length is not None and length < steps + 2:
            yield self._error("E0227", f"a sequence of {length} tokens is too short for a draft of {steps}, which"
                              f" `{path}` asks for", path, "data.sequence_length",
                              hint=f"set `data.sequence_length` to {steps + 2} or more")  # fmt: skip

    def _init(self, init: Values | None) -> Iterator[SpeccError]:
        """Rules on the weights to start from."""
        if init is None:
            return
        if ("from" in init) == ("convert" in init):
            both = "from" in init
            yield self._error("E0235", "`draft.init` names a speculator with `from`, or a draft to convert with"
                              f" `convert`, and this one names {'both' if both else 'neither'}",
                              "draft.init.convert" if both else "draft.init",
                              hint="remove one of them" if both else "write `init: {from: ./folder}`")  # fmt: skip
            return
        for key in ("layout", "revision"):
            if key in init and "convert" not in init:
                yield self._error("E0236", f"`draft.init.{key}` is of a draft to convert, and this one is in the"
                                  " speculators format", f"draft.init.{key}", hint="remove it")  # fmt: skip
        if "revision" in init and "convert" in init and not is_hub_id(init["convert"]):
            yield self._error("E0236", f"`{printable(init['convert'])}` is no hub id, and has no revisions",
                              "draft.init.revision",
                              hint="remove it: the lock pins what a folder holds")  # fmt: skip

    def _responses(self) -> Iterator[SpeccError]:
        responses, length = self.data["responses"], self.data["sequence_length"]
        for name in sorted(TAKEN.intersection(responses.get("template", {}))):
            yield self._error("E0251", f"`{name}` is what specc itself gives the chat template",
                              f"data.responses.template.{name}", hint="remove it")  # fmt: skip
        if responses["from"] == "data":
            for name in ("temperature", "top_p", "max_tokens", "seed", "samples", "endpoint"):
                if self._wrote(path := f"data.responses.{name}"):
                    yield self._error("E0208", f"`{path}` has no effect: the answers are the data's own", path,
                                      hint="remove it, or use `from: verifier`")  # fmt: skip
            return
        if length is not None and responses["max_tokens"] >= length:
            yield self._error(
                "E0207",
                f"`data.responses.max_tokens` is {responses['max_tokens']}{self._default('data.responses.max_tokens')},"
                f" and a whole sequence has {length} tokens",
                "data.responses.max_tokens", "data.sequence_length",
                hint="leave room for the question: half of `data.sequence_length`, say")  # fmt: skip
        if responses["temperature"] == 0 and responses["top_p"] != 1:
            yield self._error("E0209", "`data.responses.top_p` has no effect at temperature 0", "data.responses.top_p",
                              hint="remove it, or give a `temperature`")  # fmt: skip
        if responses["temperature"] == 0 and "samples" in responses:
            yield self._error("E0250", f"`data.responses.samples` is {responses['samples']}, and at temperature 0 all"
                              " of them are the same", "data.responses.samples",
                              hint="remove it, or give a `temperature`")  # fmt: skip

    def _files(self) -> Iterator[SpeccError]:
        """Rules on which file is used for what."""
        evaluate = self.values["evaluate"] or {"prompts": []}
        seen: dict[object, KeyPath] = {}
        for index, source in enumerate(self.data["sources"]):
            path: KeyPath = ("data", "sources", index)
            yield from self._source(path, source)
            if len(kinds := [key for key in FROM if key in source]) != 1:
                continue
            if (name := _place(source)) in seen:
                yield self.document.error(f"`{_called(source)}` is listed twice in `data.sources`", (*path, kinds[0]),
                                          id="E0212", hint="remove one of the two")  # fmt: skip
            seen.setdefault(name, (*path, kinds[0]))
        for index, source in enumerate(self.data["validation"]["sources"]):
            path = ("data", "validation", index)
            yield from self._source(path, source)
            if len(kinds := [key for key in FROM if key in source]) != 1:
                continue
            if (first := seen.get(_place(source))) is not None:
                yield self.document.error(
                    f"`{_called(source)}` is both training and validation data", (*path, kinds[0]), id="E0211",
                    note=self._line(first), hint="write `validation: 0.05` to hold out a share of it")  # fmt: skip
        for index, source in enumerate(evaluate["prompts"]):
            if "file" in source and (first := seen.get(_place(source))) is not None:
                yield self.document.error(
                    f"`{printable(source['file'])}` is both training data and the evaluation's prompts",
                    ("evaluate", "prompts", index, "file"), id="E0210", note=self._line(first),
                    hint="evaluate on prompts of a file of their own")  # fmt: skip

    def _source(self, path: KeyPath, source: Values) -> Iterator[SpeccError]:
        """Rules on what one source says."""
        kinds = [key for key in FROM if key in source]
        if len(kinds) != 1:
            both = f"{listed(kinds)} exclude each other" if kinds else f"a source has {listed(FROM, 'or')}"
            yield self.document.error(both, (*path, kinds[1]) if kinds else path, id="E0240", key=bool(kinds),
                                      hint="remove all but one of them" if kinds else
                                      "add `file: prompts/mine.jsonl`, say")  # fmt: skip
            return
        kind = kinds[0]
        for key, owners in OWNERS.items():
            if key in source and kind not in owners:
                yield self.document.error(
                    f"`{key}` goes with {listed(owners, 'or')}, and this source is a `{kind}`", (*path, key),
                    id="E0241", key=True, hint="remove it" if kind != "preset" else
                    "remove it, or name the data set itself: `dataset: org/name`")  # fmt: skip
        for key in ("split", "config"):
            if key in source and "path" in source:
                yield self.document.error(f"`path` and `{key}` both say which files are read", (*path, key), id="E0242",
                                          key=True, hint="remove one of them")  # fmt: skip
        name = source.get("path") or source.get("url")
        if name is not None and not is_pattern(name) and format_of(urlsplit(name).path) is None:
            yield self.document.error(f"`{printable(name)}` is of a format that is not read",
                                      (*path, "path" if "path" in source else "url"), id="E0243",
                                      hint=f"read are {KNOWN}")  # fmt: skip

    def _mix(self) -> Iterator[SpeccError]:
        """Rules on weights, filters and where hidden states are."""
        weighted = [index for index, source in enumerate(self.data["sources"]) if "weight" in source]
        if weighted and len(weighted) < len(self.data["sources"]):
            other = next(index for index in range(len(self.data["sources"])) if index not in weighted)
            yield self.document.error("some sources have a `weight`, and this one has none", ("data", "sources", other),
                                      id="E0244", hint="give all of them one, or none")  # fmt: skip
        for index, source in enumerate(self.data["validation"]["sources"]):
            if "weight" in source:
                yield self.document.error("validation rows are not mixed, and a `weight` has no effect",
                                          ("data", "validation", index, "weight"), id="E0244", key=True,
                                          hint="remove it; `rows` takes fewer of them")  # fmt: skip
        filters = self.data.get("filters", {})
        for what in ("characters", "turns"):
            least, most = filters.get(f"min_{what}"), filters.get(f"max_{what}")
            if least is not None and most is not None and least > most:
                yield self._error("E0245", f"no conversation has at least {least} and at most {most} {what}",
                                  f"data.filters.max_{what}", hint="swap the two")  # fmt: skip

        states = self.data.get("hidden_states") or {}
        if states.get("from") == "disk":
            for name in ("keep", "ahead"):
                if states.get(name):
                    path = f"data.hidden_states.{name}"
                    yield self._error("E0246", f"`{path}` is about a stream, and this reads from disk", path,
                                      hint="write `from: stream`, or remove it")  # fmt: skip

    def _line(self, path: KeyPath) -> str:
        return f"`{path[0]}.{path[1]}` has it on line {self.document.position(path).line}"

    def _evaluation(self) -> Iterator[SpeccError]:
        checks, evaluate = self.values["checks"], self.values["evaluate"]
        wanted = [name for name, value in checks.items() if value]
        if wanted and evaluate is None:
            yield self._error("E0213", "`checks` need an evaluation, and the spec has no `evaluate`",
                              f"checks.{wanted[0]}",
                              hint="add `evaluate: {prompts: [{file: prompts/held-out.jsonl}]}`")  # fmt: skip
        if checks["lossless"] and evaluate is not None and evaluate["lossless_prompts"] == 0:
            yield self._error("E0217", "`checks.lossless` needs prompts to compare, and `evaluate.lossless_prompts`"
                              " is 0", "evaluate.lossless_prompts", hint="use `lossless_prompts: 4`")  # fmt: skip
        if evaluate is not None and self._wrote("evaluate.lossless_prompts"):
            asked, rows = evaluate["lossless_prompts"], [source["rows"] for source in evaluate["prompts"]]
            if None not in rows and asked > sum(rows):
                yield self._error("E0228", f"`evaluate.lossless_prompts` is {asked}, and `evaluate.prompts` takes"
                                  f" {sum(rows)} rows", "evaluate.lossless_prompts",
                                  hint=f"use `lossless_prompts: {sum(rows)}`, or take more rows")  # fmt: skip
        if (asked := self.values["export"]["speculative_tokens"]) is not None:
            yield from self._measured(asked)
        if evaluate is not None:
            yield from self._prompts(evaluate["prompts"])
            yield from self._grid(evaluate.get("grid"))

    def _prompts(self, sources: list[dict[str, Any]]) -> Iterator[SpeccError]:
        """Rules on where prompts come from."""
        for index, source in enumerate(sources):
            path: KeyPath = ("evaluate", "prompts", index)
            alone = next((name for name in ("path", "revision") if name in source and "dataset" not in source), None)
            if ("file" in source) == ("dataset" in source):
                both = "both `file` and `dataset`" if "file" in source else "neither `file` nor `dataset`"
                yield self.document.error(f"a source of prompts has {both}", path, id="E0237",
                                          hint="write `file: prompts/held-out.jsonl`, or `dataset: org/name` with"
                                          " `path: question.jsonl`")  # fmt: skip
            elif "dataset" in source and "path" not in source:
                yield self.document.error(f"none of the data set's files is named: `{source['dataset']}`",
                                          (*path, "dataset"), id="E0237",
                                          hint="add `path: question.jsonl`")  # fmt: skip
            elif alone is not None:
                yield self.document.error(f"`{alone}` is of a data set, and this source is a file", (*path, alone),
                                          id="E0237", hint="remove it")  # fmt: skip
            elif "path" in source and not _is_inside(source["path"]):
                yield self.document.error(f"`{printable(source['path'])}` is not the path of a file in a data set",
                                          (*path, "path"), id="E0237", hint="name it as its page does")  # fmt: skip

    def _grid(self, grid: Values | None) -> Iterator[SpeccError]:
        """Rules on what a benchmark measures."""
        if grid is None:
            return
        most = self.algorithm.max_speculative_tokens(self.draft)
        for name in ("temperatures", "speculative_tokens", "batch_sizes"):
            seen: list[float] = []
            for index, value in enumerate(grid[name] or ()):
                path: KeyPath = ("evaluate", "grid", name, index)
                if value in seen:
                    yield self.document.error(f"`{value}` is listed twice in `evaluate.grid.{name}`", path, id="E0238",
                                              hint="remove one of the two")  # fmt: skip
                seen.append(value)
                if name != "speculative_tokens":
                    continue
                if value > most:
                    yield self.document.error(f"this draft can be asked for at most {most} tokens, and the grid has"
                                              f" {value}", path, id="E0239",
                                              hint=f"use {most} or fewer, or train for more steps")  # fmt: skip
                elif value >= self.values["evaluate"]["max_tokens"]:
                    yield self.document.error(f"`evaluate.max_tokens` is {self.values['evaluate']['max_tokens']}, too"
                                              f" few for a draft of {value} tokens", path, id="E0230",
                                              hint="use `max_tokens: 128`")  # fmt: skip

    def _measured(self, tokens: int) -> Iterator[SpeccError]:
        """Rules on what an evaluation can find for a number of speculative tokens."""
        evaluate, wanted = self.values["evaluate"], self.values["checks"]["mean_acceptance_length"]
        if evaluate is not None and evaluate["max_tokens"] <= tokens:
            yield self._error("E0230", f"`evaluate.max_tokens` is {evaluate['max_tokens']}, too few for a draft of"
                              f" {tokens} tokens", "evaluate.max_tokens", hint="use `max_tokens: 128`")  # fmt: skip
        if wanted is not None and not _can_be_met(wanted, 1, tokens + 1):
            yield self._error("E0229", f"no mean acceptance length is `{wanted}`: with {tokens} speculative tokens it"
                              f" is from 1 to {tokens + 1}", "checks.mean_acceptance_length",
                              hint='`">= 1.5"` is what a small draft reaches')  # fmt: skip

    def _reach(self, config: Values) -> Iterator[SpeccError]:
        derived = self.algorithm.derive(self.draft, config).get("export.speculative_tokens")
        if self.values["export"]["speculative_tokens"] is None and derived is not None:
            yield from self._measured(derived.value)

    def _answers(self, config: Values) -> Iterator[SpeccError]:
        if self.data["responses"]["from"] == "verifier" and not config["eos_token_ids"]:
            yield self._error("E0310", "the verifier is to write the answers, and has no token that ends one",
                              "data.responses.from", "verifier.model",
                              hint="use an instruct model, or `responses: {from: data}`")  # fmt: skip

    def _images(self, config: Values) -> Iterator[SpeccError]:
        """Rules on images, which only some verifiers take."""
        if "image_token_id" in config:
            return
        places: list[tuple[KeyPath, Values]] = [
            *((("data", "sources", index), item) for index, item in enumerate(self.data["sources"])),
            *((("data", "validation", index), item) for index, item in enumerate(self.data["validation"]["sources"])),
        ]
        for path, source in places:
            for where, key in ((path, "images"), ((*path, "columns"), "images")):
                if key in (source if where == path else source.get("columns", {})):
                    yield self.document.error("the source has images, and the verifier takes none", (*where, key),
                                              id="E0318", hint="remove it, or use a verifier that takes images, such as"
                                              " LLaVA")  # fmt: skip

    def _mask(self, config: Values) -> Iterator[SpeccError]:
        """Rules on the token that stands for one that is still to be drafted."""
        if "mask_token" not in self.draft:
            return
        mask, size = self.draft["mask_token"], config["vocab_size"]
        if mask is None and not config["eos_token_ids"]:
            yield self._error("E0314", "the verifier has no token that ends an answer, and `draft.mask_token` is"
                              " derived from it", "draft.mask_token",
                              hint="add `mask_token`, the id of a token that no text has")  # fmt: skip
        if mask is not None and mask >= size:
            yield self._error("E0313", f"`draft.mask_token` is {mask}, and the verifier has {size} tokens",
                              "draft.mask_token", hint=f"ids go from 0 to {size - 1}")  # fmt: skip

    def _layers(self, config: Values) -> Iterator[SpeccError]:
        draft, count, size = self.draft, config["num_hidden_layers"], config["vocab_size"]
        for index, layer in enumerate(draft.get("hidden_state_layers") or ()):
            if layer > count:
                yield self.document.error(f"the verifier has {count} layers, and there is no layer {layer}",
                                          ("draft", "hidden_state_layers", index), id="E0301",
                                          hint=f"ids go from 0 to {count}, the last layer's output")  # fmt: skip
        derived = self.algorithm.derive(draft, config).get("draft.hidden_state_layers")
        if draft.get("hidden_state_layers") is None and derived is not None:
            layers: list[int] = derived.value
            if layers != sorted(set(layers)) or layers[0] < 0:
                yield self._error("E0307", f"the verifier has {count} layers, too few for the default"
                                  f" `hidden_state_layers`, {layers}", "draft.hidden_state_layers",
                                  hint=f"add `hidden_state_layers` with {len(layers)} different ids from 0 to {count}"
                                  " to `draft`")  # fmt: skip
        vocabulary = draft.get("vocabulary")
        if isinstance(vocabulary, int) and vocabulary > size:
            yield self._error("E0302", f"`draft.vocabulary` is {vocabulary}, and the verifier has {size}"
                              " tokens", "draft.vocabulary", hint="`vocabulary: full` keeps them all")  # fmt: skip

    def spread(self, config: Values) -> Iterator[SpeccError]:
        """Rule on the processes that a verifier is spread over, which holds with a profile's, too."""
        count = self.values["runtime"]["datagen"].get("tensor_parallel", 1)
        if count > 1 and (heads := config["num_attention_heads"]) % count:
            fitting = listed([one for one in range(1, heads + 1) if heads % one == 0], "or")
            yield self._error("E0330", f"`runtime.datagen.tensor_parallel` is {count}, and the verifier's {heads}"
                              " attention heads do not divide by it", "runtime.datagen.tensor_parallel",
                              hint=f"use {fitting}: each process has as many heads as every other")  # fmt: skip

    def _quantised(self, config: Values) -> Iterator[SpeccError]:
        if self.algorithm.stitched and (quantised := config.get("quantization")):
            yield self._error("E0333", f"the verifier is quantised ({quantised['method']}), and a head is put back into"
                              " its files as they are", "draft.algorithm",
                              hint="name the model that it was made from, or choose another algorithm")  # fmt: skip

    def _lengths(self, config: Values) -> Iterator[SpeccError]:
        from specc.core.language.models import LONGEST_SEQUENCE

        context, length = config["max_position_embeddings"], self.data["sequence_length"]
        evaluate, responses = self.values["evaluate"], self.data["responses"]
        if length is not None and length > context:
            yield self._error("E0303", f"`data.sequence_length` is {length}, and the verifier's context has"
                              f" {context} tokens", "data.sequence_length",
                              hint=f"use `sequence_length: {context}` or less")  # fmt: skip
        if length is None:
            derived, batch = min(LONGEST_SEQUENCE, context), self.train["batch_tokens"]
            if batch < derived:
                yield self._error("E0304", f"`train.batch_tokens` is {batch}, less than the derived sequence length,"
                                  f" {derived}", "train.batch_tokens",
                                  hint=f"add `data.sequence_length: {batch}`, or raise `batch_tokens`")  # fmt: skip
            if responses["from"] == "verifier" and responses["max_tokens"] >= derived:
                yield self._error("E0305", f"`data.responses.max_tokens` is {responses['max_tokens']}"
                                  f"{self._default('data.responses.max_tokens')}, and the derived sequence length is"
                                  f" {derived}", "data.responses.max_tokens",
                                  hint="leave room for the question: half of it, say")  # fmt: skip
        window = self.draft.get("sliding_window")
        if window is not None and window >= context:
            yield self._error("E0308", f"`draft.sliding_window` is {window}, and the verifier's context has {context}"
                              " tokens", "draft.sliding_window", hint="remove it, or use a shorter one")  # fmt: skip
        if evaluate is not None and evaluate["max_tokens"] >= context:
            yield self._error("E0306", f"`evaluate.max_tokens` is {evaluate['max_tokens']}"
                              f"{self._default('evaluate.max_tokens')}, and the verifier's context has {context}",
                              "evaluate.max_tokens", "evaluate", hint="leave room for the prompt")  # fmt: skip


def _place(source: Values) -> object:
    """Return what tells the rows of a source from those of others: two that are equal are the same rows."""
    if "file" in source:
        return posixpath.normpath(source["file"])
    return tuple(source.get(key) for key in (*FROM, "config", "split", "path"))


def _called(source: Values) -> str:
    return printable(posixpath.normpath(source["file"]) if "file" in source else label(source))


def _is_inside(path: str) -> bool:
    """Tell whether a path names a file below the folder that it is relative to."""
    return not path.startswith("/") and not {"", ".", ".."} & set(path.split("/"))


def _can_be_met(comparison: str, least: float, most: float) -> bool:
    """Tell whether a comparison (`>= 1.5`) holds for some number from `least` to `most`."""
    operator, number = comparison.rstrip("0123456789. "), float(comparison.lstrip("<>= "))
    return {">": most > number, ">=": most >= number, "<": least < number, "<=": least <= number}[operator]


def template_error(template: str) -> SpeccError | None:
    """Return what is wrong with a verifier's chat template as a text; nothing of it is run."""
    if "assistant" in template or "role" in template:
        return None
    return SpeccError("the verifier's chat template shows neither `assistant` nor a message's `role`", id="E0309",
                      hint="use the instruct model, or put a `chat_template.jinja` beside its config")  # fmt: skip


def unpinned(document: Document, section: Values, pinned: Values) -> SpeccError | None:
    """Return the error for a hub id, or a revision of one, that is not what a lock pinned: a branch may have moved.

    `section` is `verifier` of the spec, `pinned` the same of the lock's values.
    """
    model, revision = section["model"], section["revision"]
    same = pinned["model"] == model and revision in (pinned.get("asked_revision"), pinned["revision"])
    if same or not is_hub_id(model) or (Path(document.name).parent / model).exists():
        return None
    place, branch = ("verifier", "model" if revision is None else "revision"), printable(revision or "main")
    return document.error(f"the lock pins no commit of `{printable(model)}` at `{branch}`", place, id="E0311",
                          note="`--locked` was given",
                          hint=f"`specc lock {document.name}` pins it")  # fmt: skip

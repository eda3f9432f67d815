"""What must hold between fields: each rule has an id, one line of explanation and a way out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from specc.core.errors import SpeccError
from specc.core.language.text import printable

if TYPE_CHECKING:
    from specc.core.algorithms import Algorithm
    from specc.core.language.document import Document, KeyPath

Values = Mapping[str, Any]


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
        return [*self._training(), *self._draft(), *self._responses(), *self._files(), *self._evaluation()]

    def check_with(self, config: Values) -> list[SpeccError]:
        """Return what is wrong given `verifier.config` of the resolved spec."""
        return [*self._layers(config), *self._lengths(config)]

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
        warmup = train["schedule"]["warmup"]
        if train["steps"] is not None and isinstance(warmup, int) and warmup >= train["steps"]:
            yield self._error("E0216", f"the warm-up of {warmup} steps is as long as the training of {train['steps']}",
                              "train.schedule.warmup",
                              hint="a warm-up below 1 is a share of all steps: `warmup: 0.01`")  # fmt: skip
        if not train["loss"]:
            yield self._error("E0218", "no loss in `train.loss` has a weight", "train.loss.kl", "train.loss",
                              hint="write `loss: kl`")  # fmt: skip

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
        layers = draft.get("hidden_state_layers")
        if layers is not None and layers != sorted(set(layers)):
            yield self._error("E0219", "the ids in `draft.hidden_state_layers` must rise", "draft.hidden_state_layers",
                              hint=f"write `{sorted(set(layers))}`" if len(set(layers)) == len(layers)
                              else "name each layer once")  # fmt: skip

    def _responses(self) -> Iterator[SpeccError]:
        responses, length = self.data["responses"], self.data["sequence_length"]
        if responses["from"] == "data":
            for name in ("temperature", "top_p", "max_tokens", "seed"):
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

    def _files(self) -> Iterator[SpeccError]:
        """Rules on which file is used for what."""
        evaluate = self.values["evaluate"] or {"prompts": []}
        seen: dict[str, KeyPath] = {}
        for index, source in enumerate(self.data["sources"]):
            path = ("data", "sources", index, "file")
            name = posixpath.normpath(source["file"])
            if name in seen:
                yield self.document.error(f"`{printable(name)}` is listed twice in `data.sources`", path, id="E0212",
                                          hint="remove one of the two")  # fmt: skip
            seen.setdefault(name, path)
        for index, source in enumerate(self.data["validation"]["sources"]):
            if (first := seen.get(posixpath.normpath(source["file"]))) is not None:
                yield self.document.error(
                    f"`{printable(source['file'])}` is both training and validation data",
                    ("data", "validation", index, "file"), id="E0211", note=self._line(first),
                    hint="write `validation: 0.05` to hold out a share of it")  # fmt: skip
        for index, source in enumerate(evaluate["prompts"]):
            if (first := seen.get(posixpath.normpath(source["file"]))) is not None:
                yield self.document.error(
                    f"`{printable(source['file'])}` is both training data and the evaluation's prompts",
                    ("evaluate", "prompts", index, "file"), id="E0210", note=self._line(first),
                    hint="evaluate on prompts of a file of their own")  # fmt: skip

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
        if isinstance(draft["vocabulary"], int) and draft["vocabulary"] > size:
            yield self._error("E0302", f"`draft.vocabulary` is {draft['vocabulary']}, and the verifier has {size}"
                              " tokens", "draft.vocabulary", hint="`vocabulary: full` keeps them all")  # fmt: skip

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
        if evaluate is not None and evaluate["max_tokens"] >= context:
            yield self._error("E0306", f"`evaluate.max_tokens` is {evaluate['max_tokens']}"
                              f"{self._default('evaluate.max_tokens')}, and the verifier's context has {context}",
                              "evaluate.max_tokens", "evaluate", hint="leave room for the prompt")  # fmt: skip


def check_paths(document: Document, *, exist: bool) -> list[SpeccError]:
    """Return what is wrong with the paths that a document names, even if the rest of it is not valid yet.

    With `exist`, files and folders that are not there are errors too.
    """
    base = Path(document.name).parent
    return [
        error
        for path, kind in _paths(document.data)
        if (error := _check_path(document, base, path, kind, exist=exist)) is not None
    ]


def named_files(document: Document) -> list[str]:
    """Return the files of data that a document names, each once."""
    names = [_get(document.data, path) for path, kind in _paths(document.data) if kind == "file"]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _check_path(document: Document, base: Path, path: KeyPath, kind: str, *, exist: bool) -> SpeccError | None:
    name = _get(document.data, path)
    if not isinstance(name, str) or not name:
        return None
    if name.startswith(("/", "~", "file:")) or PureWindowsPath(name).drive:
        return document.error(f"`{printable(name)}` is an absolute path", path, id="E0215",
                              hint="name it relative to the spec, so that it holds on other machines")  # fmt: skip
    if not exist or kind == "model":
        return None
    try:
        found = base / name
        there = found.is_dir() if kind == "folder" else found.is_file()
        other = found.exists()
    except (OSError, ValueError):  # a name that no file system takes
        there = other = False
    if there:
        return None
    what = "folder" if kind == "folder" else "file"
    message = f"`{printable(name)}` is not a {what}" if other else f"there is no {what} `{printable(name)}`"
    return document.error(message, path, id="E0214", hint="paths are relative to the spec")


def _paths(data: Values) -> Iterator[tuple[KeyPath, str]]:
    """Yield the places of a document, valid or not, that name a file, a folder or a model."""
    yield ("verifier", "model"), "model"
    yield ("draft", "init", "from"), "folder"
    for place in (("data", "sources"), ("data", "validation"), ("evaluate", "prompts")):
        items = _get(data, place)
        for index in range(len(items) if isinstance(items, list) else 0):
            yield (*place, index, "file"), "file"


def _get(data: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data

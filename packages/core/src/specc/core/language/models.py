"""The language as models: every section, field, default and bound, each described once.

The docstrings below the fields are what the schema, an editor's hover and `specc schema --field` show.
"""

from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from specc.core.algorithms import ALGORITHMS, DraftSection, Section
from specc.core.language.data import MAX_SEED, Data, described
from specc.core.language.deepspeed import DeepSpeed

VERSION: Final = 1
LONGEST_SEQUENCE: Final = 2048
"""Tokens of a training sequence when the spec does not say and the verifier could take more."""
DType = Literal["bfloat16", "float16", "float32"]


class Verifier(Section):
    """The large model that is sped up."""

    model: Annotated[str, Field(min_length=1)]
    """Hub id (`org/name`), `./folder`, `./file.gguf`, or `package:NAME/FILE` for a file of an installed package."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of a hub id; the lock pins the commit and every file's sha256. Default: `main`."""
    dtype: DType = "bfloat16"
    """Numeric type that the verifier runs in."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""


class AdamW(Section):
    """AdamW and its values (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    """Name of the optimizer: `adamw`, or `muon` for matrices with AdamW for everything else."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Learning rate after the warm-up."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.95]  # noqa: RUF012 - pydantic copies it
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Term added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of matrices."""


class Muon(AdamW):
    """Muon for matrices (Jordan et al. 2024), AdamW for norms; both with the learning rates and decay of AdamW."""

    name: Literal["muon"] = "muon"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name of the optimizer: `adamw`, or `muon` for matrices with AdamW for everything else."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of Muon's momentum, which is Nesterov's."""


def _optimizer(value: Any) -> Any:
    """Name the optimizer that is meant where none is named."""
    return {"name": "adamw", **cast("dict[str, Any]", value)} if isinstance(value, dict) else value


Optimizer = Annotated[AdamW | Muon, Field(discriminator="name")]


class Schedule(Section):
    """How the learning rate moves."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up: down to 0 in a line, down to 0 along a cosine, or level."""
    warmup: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=1)] = 0.01
    """Length of the linear warm-up: a share of all steps if below 1, otherwise a number of steps."""


class Loss(Section):
    """Losses and their weights; those without a weight are not computed."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    kl: Annotated[float, Field(gt=0)] | None = None
    """Weight of KL(verifier || draft) over the draft's vocabulary."""
    rkl: Annotated[float, Field(gt=0)] | None = None
    """Weight of KL(draft || verifier)."""
    jsd: Annotated[float, Field(gt=0)] | None = None
    """Weight of the Jensen-Shannon divergence: the mean of KL(verifier || m) and KL(draft || m), m their mean."""
    ce: Annotated[float, Field(gt=0)] | None = None
    """Weight of the cross entropy with the verifier's most probable token."""
    tv: Annotated[float, Field(gt=0)] | None = None
    """Weight of the total variation distance: the chance that a sampled draft token is rejected."""
    nla: Annotated[float, Field(gt=0)] | None = None
    """Weight of -log of the chance that a sampled draft token is accepted; below 1e-5 the chance counts as 1e-5."""
    lk: Annotated[float, Field(gt=0)] | None = None
    """Weight of `kl` and `tv` mixed, `kl` with the share exp(-3 a), where a is the chance of acceptance as in `nla`."""


def _loss(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


Logger = Literal["tensorboard", "trackio", "wandb", "mlflow"]


def _unique(value: list[Any]) -> list[Any]:
    if len(set(value)) < len(value):
        raise ValueError("an item stands in it twice")
    return value


Loggers = Annotated[list[Logger], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_unique)]


class Zero(Section):
    """DeepSpeed's ZeRO."""

    stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What ranks share: nothing (0), optimizer states (1), gradients too (2), parameters too (3)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in the machine's memory and not the device's: the optimizer's part, or at stage 3 parameters too."""


class Train(Section):
    """How the draft is trained."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = 3
    """Number of passes over the training rows; excludes `steps`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of optimizer steps; excludes `epochs`. Default: as many as the epochs have."""
    batch_tokens: Annotated[int, Field(ge=1)] = 8192
    """Number of tokens of one optimizer step, over all ranks."""
    optimizer: Annotated[Optimizer, BeforeValidator(_optimizer)] = AdamW()
    """The optimizer and its values."""
    schedule: Schedule = Schedule.model_construct()
    """How the learning rate moves."""
    loss: Annotated[
        Loss | None,
        BeforeValidator(
            _loss, json_schema_input_type=Literal["kl", "rkl", "jsd", "ce", "tv", "nla", "lk"] | Loss | None
        ),
    ] = None
    """Name of the loss, or several with their weights: `{kl: 0.9, ce: 0.1}`. Default: the one that the algorithm was
    published with."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Numeric type of the forward and backward pass; weights and moments are kept in fp32 either way."""
    gradient_clipping: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; `null` does not clip."""
    zero: Zero = Zero.model_construct()
    """DeepSpeed's ZeRO."""
    deepspeed: DeepSpeed | None = None
    """Further values of DeepSpeed, by DeepSpeed's own names. Default: none."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 42
    """Seed of the initial weights and of the order of the data."""
    loggers: Loggers | None = None
    """Libraries that are told of the training as it goes; they have no effect on the result. Default: none."""
    save_every: Annotated[int, Field(ge=1)] = 200
    """Number of steps between two training checkpoints; it has no effect on the result."""

    @model_validator(mode="before")
    @classmethod
    def _steps_instead_of_epochs(cls, data: Any) -> Any:
        """Drop the default of `epochs` where `steps` are given."""
        if isinstance(data, dict) and data.get("steps") is not None:
            return {"epochs": None, **cast("dict[str, Any]", data)}
        return data


class Export(Section):
    """The checkpoint in the speculators format."""

    speculative_tokens: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens that vLLM drafts at a time. Default: as many as the draft is trained for."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Numeric type of the stored weights."""


class Prompts(Section):
    """A file of prompts: one beside the spec, or one of a data set on a hub."""

    file: Annotated[str, Field(min_length=1)] | None = None
    """JSON Lines file; each line has `messages`, a list of `{role, content}`, or a text as `prompt`, or `turns`, a list
    of texts of which the first is asked. Relative to the spec. Default: a file of `dataset`."""
    dataset: (
        Annotated[
            str,
            Field(
                pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
                json_schema_extra=described("a hub id, `org/name`"),
            ),
        ]
        | None
    ) = None
    """Hub id of a data set (`org/name`); the lock pins its commit and the file's sha256. Default: none, for `file`."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """File inside the data set: JSON Lines as above, or Parquet with the same fields. Default: none, for a `file`."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of the data set. Default: `main`."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to take from the start of the file, of those in `categories`. Default: all."""
    subset: Annotated[str, Field(min_length=1)] | None = None
    """Name under which a benchmark counts these prompts. Default: the `category` of each row, or else the file's name
    without its ending."""
    categories: Annotated[list[str], Field(min_length=1)] | None = None
    """Values of the rows' `category` that are taken. Default: all rows."""


Temperature = Annotated[float, Field(ge=0, le=2)]


class Grid(Section):
    """What a benchmark measures: every combination of these values is a cell."""

    temperatures: Annotated[list[Temperature], Field(min_length=1)] = [0.0]  # noqa: RUF012 - pydantic copies it
    """Sampling temperatures; 0 is greedy."""
    speculative_tokens: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """Numbers of tokens that vLLM drafts at a time. Default: `export.speculative_tokens` alone."""
    batch_sizes: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1)] = [1, 16]  # noqa: RUF012 - as above
    """Numbers of sequences that are answered at once; each that ends makes place for the next."""
    repeats: Annotated[int, Field(ge=2, le=100)] = 3
    """Number of timed pairs of runs, one with and one without the speculator, in each cell."""


class Evaluate(Section):
    """Acceptance and losslessness, measured in vLLM on prompts that training never saw."""

    prompts: Annotated[list[Prompts], Field(min_length=1)]
    """Files of prompts; answers in them are ignored."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Number of tokens generated for each prompt."""
    lossless_prompts: Annotated[int, Field(ge=0)] = 4
    """Number of prompts whose output is compared with the verifier's alone, token by token."""
    grid: Grid | None = None
    """A benchmark: acceptance and speed over temperatures, speculative tokens and batch sizes. Default: none."""


class Checks(Section):
    """What the evaluation must show; a build that does not is built, and says that its checks failed."""

    mean_acceptance_length: (
        Annotated[
            str,
            Field(
                pattern=r"^(>=|<=|>|<) ?[0-9]+(\.[0-9]+)?$",
                json_schema_extra=described('a comparison such as `">= 1.5"`'),
            ),
        ]
        | None
    ) = None
    """Comparison of accepted draft tokens per draft + 1 with a number, such as `">= 1.5"`. Default: not checked."""
    lossless: bool = False
    """Whether greedy output with the draft must be the verifier's own."""


Devices = Annotated[
    list[Annotated[int, Field(ge=0, le=65535)]],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_unique),
]


class DatagenRuntime(Section):
    """Processes that make data."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of processes of this machine that make shards side by side, each of `runtime.threads`; in no key. One
    process asks an endpoint, whatever this says."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of processes, each with a GPU if there are any, that every layer of the verifier is spread over, in the
    evaluation too; part of the numerics class."""
    devices: Devices | None = None
    """Numbers of the GPUs, or on a CPU of the cores, that the verifier has, each worker its part of them: of those that
    the build may use, counted from 0. In no key and no lock. Default: all; of GPUs, each worker has its own."""
    endpoint: (
        Annotated[
            str,
            Field(
                pattern=r"^https?://[^\s/@?#]+(/[^\s?#@]*)?$",
                json_schema_extra=described("an address without a key in it, such as `http://127.0.0.1:8000/v1`,"),
            ),
        ]
        | None
    ) = None
    """Address of the server that `data.responses.endpoint` describes; in no key, lock or artifact. Default: the
    environment variable `SPECC_ENDPOINT`. The server's key is taken from `OPENAI_API_KEY` alone."""


Ranks = Annotated[int, Field(ge=1, le=1024)]


class Phase(Section):
    """A part of the training with a number of ranks of its own."""

    ranks: Ranks
    """Number of processes of this machine that share each batch."""
    until: Annotated[int, Field(ge=1)] | None = None
    """Optimizer step, counted from the training's first, that the phase ends after. Default: the end of the training,
    which only the last phase goes to."""


class TrainRuntime(Section):
    """Processes that train."""

    ranks: Ranks | Annotated[list[Phase], Field(min_length=2)] = 1
    """Number of processes of this machine that share each batch, or phases of a training that changes it; part of the
    numerics class."""
    devices: Devices | None = None
    """Numbers of the GPUs, one a rank, or on a CPU of the cores, that training has: of those that the build may use,
    counted from 0. In no key and no lock. Default: all."""


class Runtime(Section):
    """How and where, never what."""

    threads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Number of threads of each process; part of the numerics class, since sums depend on it."""
    datagen: DatagenRuntime = DatagenRuntime.model_construct()
    """Processes that make data."""
    train: TrainRuntime = TrainRuntime.model_construct()
    """Processes that train."""
    store: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the store, relative to the spec. Default: `SPECC_STORE`, or else `.specc/store`."""


class ByAlgorithm:
    """Marks the draft section as the union of all algorithms' sections, told apart by `algorithm`."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's tagged union, which unlike `Union[...]` may have a single member."""
        return core_schema.tagged_union_schema(
            {name: handler.generate_schema(row.section) for name, row in ALGORITHMS.items()},
            discriminator="algorithm",
        )


class Spec(Section):
    """A speculator, described: what to build, not how."""

    version: Literal[1]
    """Version of the language; this page describes version 1."""
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
            json_schema_extra=described("a name of at most 96 letters, digits, `.`, `_` and `-`"),
        ),
    ]
    """Name of the speculator, as in its model card and in the store."""
    verifier: Verifier
    """The large model that is sped up."""
    draft: Annotated[DraftSection, ByAlgorithm]
    """The draft model; `algorithm` decides which other keys this section has."""
    data: Data
    """What the draft learns from."""
    train: Train = Train.model_construct()
    """How the draft is trained."""
    export: Export = Export.model_construct()
    """The checkpoint in the speculators format."""
    evaluate: Evaluate | None = None
    """Acceptance and losslessness, measured in vLLM on held-out prompts. Default: no evaluation."""
    checks: Checks = Checks.model_construct()
    """What the evaluation must show."""
    runtime: Runtime = Runtime.model_construct()
    """How and where the stages run, never what they build."""

    def values(self) -> dict[str, Any]:
        """Return the tree of values in plain JSON types; None stands for what is derived later.

        Of the losses, of DeepSpeed's values, of `draft.init`, of the loggers, of a source, of a file of prompts, of
        samples, template and endpoint, and of what is done with rows and hidden states only what the spec gives is in
        it; the `rows` of a source are always.
        """
        tree = self.model_dump(by_alias=True)
        data = tree["data"]
        for item in (*data["sources"], *data["validation"]["sources"]):
            for name in [name for name, value in item.items() if value is None and name != "rows"]:
                del item[name]
            if "columns" in item:
                item["columns"] = _given(item["columns"])
        for name in ("filters", "bad_rows", "hidden_states"):
            if (value := data.pop(name)) not in (None, 0):
                data[name] = _given(value) if isinstance(value, dict) else value
        responses, runtime = tree["data"]["responses"], tree["runtime"]
        datagen = runtime["datagen"]
        for section, name in ((responses, "template"), (responses, "endpoint"), (datagen, "endpoint"),
                              (datagen, "devices"), (runtime["train"], "devices")):  # fmt: skip
            if not section[name]:
                del section[name]
        if responses["samples"] == 1:
            del responses["samples"]
        if datagen["tensor_parallel"] == 1:
            del datagen["tensor_parallel"]
        train = tree["train"]
        train["loss"] = train["loss"] and _given(train["loss"])
        if init := tree["draft"].get("init"):
            tree["draft"]["init"] = _given(init)
        if deepspeed := _given(train.pop("deepspeed") or {}):
            train["deepspeed"] = deepspeed
        if train["loggers"] is None:
            del train["loggers"]
        if (evaluate := tree["evaluate"]) is not None:
            # What a spec does not say of these is no value of it either: the keys of older evaluations stay.
            evaluate["prompts"] = [{"rows": one["rows"], **_given(one)} for one in evaluate["prompts"]]
            if evaluate["grid"] is None:
                del evaluate["grid"]
        return tree


def _given(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without what is None or an empty mapping."""
    inner = {name: _given(item) if isinstance(item, dict) else item for name, item in tree.items()}
    return {name: item for name, item in inner.items() if item is not None and item != {}}

"""The language's section `data`: sources of conversations, the verifier's answers, and what is done with rows."""

from typing import Annotated, Any, Final, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field

from specc.core.algorithms import Section
from specc.core.presets import PRESETS
from specc.core.references import HUB_ID

MAX_SEED: Final = 2**53 - 1
"""Canonical JSON (RFC 8785) holds integers exactly up to here."""
MAX_WEIGHT: Final = 1_000_000


def described(words: str) -> dict[str, Any]:
    """Return what tells a person which strings a pattern takes; the YAML language server shows it too."""
    return {"patternErrorMessage": words}


Column = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """Columns of a source by what they hold; those that are not named are not read."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    messages: Column | None = None
    """Column of a list of `{role, content}`. Default: none."""
    conversations: Column | None = None
    """Column of a list of `{from, value}`. Default: none."""
    prompt: Column | None = None
    """Column of what is asked: a text, or a list of messages. Default: none."""
    completion: Column | None = None
    """Column of the answer to `prompt`. Default: none."""
    instruction: Column | None = None
    """Column of what is asked, which `input` is put behind. Default: none."""
    input: Column | None = None
    """Column of what `instruction` is about. Default: none."""
    output: Column | None = None
    """Column of the answer to `instruction`. Default: none."""
    system: Column | None = None
    """Column of the system message. Default: none."""
    tools: Column | None = None
    """Column of the tools that the assistant may call. Default: none."""
    tagged: Column | None = None
    """Column of a list of `{from, value}` whose calls stand in the text, as Hermes marks them (`<tool_call>`). Default:
    none."""
    transcript: Column | None = None
    """Column of a conversation as one text of `USER:` and `ASSISTANT:`, whose calls stand in it as Glaive marks them
    (`<functioncall>`). Default: none."""
    images: Column | None = None
    """Column of the images that the text marks with `<image>`, or of the only one. Default: none."""


class Source(Section):
    """Conversations of one origin: `file`, `dataset`, `url` or `preset` says which."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    file: Annotated[str, Field(min_length=1)] | None = None
    """File, folder or pattern (`data/*.jsonl`), relative to the spec: JSON Lines, JSON, CSV, text, Parquet or Arrow by
    its suffix, JSON Lines if that says nothing. A row has `messages`, a list of `{role, content}`, or another of the
    usual shapes. Default: none."""
    dataset: (
        Annotated[
            str,
            Field(pattern=f"^{HUB_ID.pattern}$", json_schema_extra=described("a hub id such as `org/name`")),
        ]
        | None
    ) = None
    """Data set on a hub (`org/name`); the lock pins its commit and the sha256 of every file that is read. Default:
    none."""
    config: Annotated[str, Field(min_length=1)] | None = None
    """Configuration of a data set that has several. Default: the one that its card says."""
    split: Annotated[str, Field(min_length=1)] | None = None
    """Split of a data set. Default: `train`."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """File or pattern (`data/train-*.parquet`) of a data set, in place of a split. Default: the split's files."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of a data set. Default: `main`."""
    url: (
        Annotated[
            str,
            Field(
                pattern=r"^(https://[^/@\s]+/|http://(127\.0\.0\.1|localhost)(:[0-9]+)?/)\S+$",
                json_schema_extra=described("an address such as `https://host/rows.jsonl`, without a user in it"),
            ),
        ]
        | None
    ) = None
    """Address of a file, over https; the lock pins its sha256. Default: none."""
    preset: Literal[*PRESETS] | None = None  # pyright: ignore[reportInvalidTypeForm] - the table's names
    """Name of a data set whose hub id, split, columns and licence are known; the lock has what it stands for.
    Default: none."""
    columns: Columns | None = None
    """Columns by what they hold (`{prompt: question, completion: answer}`). Default: told by their names."""
    images: Annotated[str, Field(min_length=1)] | None = None
    """Folder that the images' paths in the rows are relative to, itself relative to the spec; the lock pins the sha256
    of each image in it. Default: images stand in the rows themselves, if there are any."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to take from the start. Default: all."""
    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] | None = None
    """Part of the mix, against the other sources' weights: of every beginning of the mix this source has that part of
    the rows. The mix ends where a source runs out. Default: sources are read whole, one after another."""


Allowance = Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=0)]
"""Rows that may be left out: a share of all if below 1, otherwise a number."""


class Endpoint(Section):
    """A server of OpenAI's protocol that serves the verifier; `runtime.datagen.endpoint` says where it is."""

    model: Annotated[str, Field(min_length=1)]
    """Name under which the server serves the verifier."""
    protocol: Literal["completions", "chat"] = "completions"
    """`completions` sends prompts as token ids, written by the verifier's template here; `chat` sends messages, which
    the server's own template writes."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Number of requests that are open at a time; in no key, like the three below."""
    retries: Annotated[int, Field(ge=0, le=100)] = 6
    """Number of times that a request which failed is sent again, after 0.5 s, 1 s, 2 s and so on up to 60 s."""
    timeout: Annotated[int, Field(ge=1, le=86400)] = 120
    """Seconds that an answer may take."""
    refused: Allowance = 0.01
    """Rows that the server refuses and that are left out and listed before the build fails: a share of all if below 1,
    otherwise a number."""


TemplateArguments = Annotated[
    dict[str, bool | Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | str],
    Field(json_schema_extra={"propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"}}),
]


class Responses(Section):
    """Where the assistant's answers come from."""

    from_: Annotated[Literal["verifier", "data"], Field(alias="from")] = "verifier"
    """`verifier` writes every answer anew (on-policy data); `data` keeps the answers that the source holds."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sampling temperature of the verifier; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability mass that tokens are drawn from."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Number of tokens after which an answer is cut."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of sampling; without effect at temperature 0."""
    samples: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of answers to each prompt, each a conversation of its own."""
    template: TemplateArguments | None = None
    """Arguments of the verifier's chat template, such as `enable_thinking: false`; also where its answers are trained
    and evaluated. Default: none."""
    endpoint: Endpoint | None = None
    """Server that gives the answers, whose address is `runtime.datagen.endpoint`. Default: vLLM inside the build."""


class Validation(Section):
    """Rows that are held out of training, in one form: a share of the sources, or sources of its own."""

    share: float
    sources: list[Source]


Share = Annotated[float, Field(ge=0, le=0.5)]
Sources = Annotated[list[Source], Field(min_length=1)]


def _validation(value: Any) -> Any:
    if isinstance(value, list):
        return {"share": 0.0, "sources": cast("list[Any]", value)}
    return {"share": float(value), "sources": []} if isinstance(value, int | float) else value


Language = Annotated[str, Field(pattern="^[a-z]{2,3}$", json_schema_extra=described("a language's code such as `en`"))]


class Filters(Section):
    """Which conversations are kept; what each filter removes is counted."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    min_characters: Annotated[int, Field(ge=1)] | None = None
    """Fewest characters of a conversation, over all its messages. Default: no bound."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Most characters of a conversation, over all its messages. Default: no bound."""
    min_turns: Annotated[int, Field(ge=1)] | None = None
    """Fewest messages of a conversation, the system's not counted. Default: no bound."""
    max_turns: Annotated[int, Field(ge=1)] | None = None
    """Most messages of a conversation, the system's not counted. Default: no bound."""
    languages: Annotated[list[Language], Field(min_length=1)] | None = None
    """Languages that are kept, by their ISO 639-1 codes, told from the text by py3langid. Default: all."""
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """Similarity from which a conversation is a duplicate of an earlier one: the share of character sequences that
    both have (Jaccard), estimated by MinHash. Default: equal conversations alone, which are always left out."""
    min_trained_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Smallest share of a conversation's tokens that is trained, after it was cut to `data.sequence_length`; asked by
    the stage `tokens`. Default: no bound."""


class HiddenStates(Section):
    """Where training reads the verifier's hidden states from; it has no effect on the result."""

    from_: Annotated[Literal["disk", "stream"], Field(alias="from")] = "disk"
    """`disk` computes all of them before training and keeps them as an artifact; `stream` computes them while the draft
    trains, and drops those of a window when training is done with it."""
    keep: bool = False
    """Whether a stream keeps what the first epoch has computed for the later ones, which else compute it again."""
    ahead: Annotated[int, Field(ge=1)] | None = None
    """Number of shards that a stream computes ahead of the window that is trained on. Default: as many as a window
    has, `shuffle_window`."""


def _hidden_states(value: Any) -> Any:
    return {"from": value} if isinstance(value, str) else value


class Data(Section):
    """What the draft learns from."""

    sources: Sources
    """Where the conversations are from."""
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """System message put before every conversation that has none. Default: none."""
    responses: Responses = Responses.model_construct()
    """Where the assistant's answers come from."""
    sequence_length: Annotated[int, Field(ge=8)] | None = None
    """Number of tokens at which a conversation is cut. Default: 2048, or the verifier's context if shorter."""
    validation: Annotated[
        Validation,
        BeforeValidator(_validation, json_schema_input_type=Share | Sources),
        Field(json_schema_extra={"default": 0.05}),
    ] = Validation.model_construct(share=0.05, sources=[])
    """Share of the conversations that is held out of training, or a list of sources of its own."""
    filters: Filters | None = None
    """Which conversations are kept. Default: all but equal ones."""
    bad_rows: Allowance | None = None
    """Rows that cannot be used and that are left out and listed before the build fails: a share of all if below 1,
    otherwise a number. Default: 0."""
    shuffle: bool = True
    """Whether each epoch has an order of its own, drawn from `train.seed`."""
    shuffle_window: Annotated[int, Field(ge=1)] = 32
    """Number of shards whose conversations are mixed with one another. An epoch is trained window by window, so that
    only their hidden states are needed at a time; more shards mix better."""
    hidden_states: Annotated[
        HiddenStates | None,
        BeforeValidator(_hidden_states, json_schema_input_type=Literal["disk", "stream"] | HiddenStates),
    ] = None
    """Where training reads the verifier's hidden states from: `disk`, or a `stream` that needs no room for all of them.
    Default: disk."""
    shard_rows: Annotated[int, Field(ge=1, le=65536)] = 256
    """Number of conversations in a shard, the unit of work that survives an interruption."""

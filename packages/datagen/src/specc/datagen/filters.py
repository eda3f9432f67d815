"""Which conversations are kept: by their length, their language, and their likeness to those before them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage
from specc.datagen.minhash import NearDuplicates
from specc.datagen.rows import Message

WORDS: Final = {
    "length": "of another length",
    "language": "in another language",
    "near_duplicates": "nearly equal to an earlier one",
}
"""What of a conversation each filter says, in the order in which they are asked."""
SAMPLE: Final = 4000
"""Characters of a conversation that its language is told from."""

Test = Callable[[list[Message]], bool]


@contextmanager
def filters_of(stage: Stage) -> Generator[Callable[[list[Message]], str | None]]:
    """Give the function that says which filter removes a conversation, None if it is kept.

    Near duplicates are asked last, since what they keep they remember.
    """
    given: Mapping[str, Any] = stage.params["data"].get("filters", {})
    tests: dict[str, Test] = {}
    if {"min_characters", "max_characters", "min_turns", "max_turns"} & given.keys():
        tests["length"] = lambda messages: _fits(messages, given)
    if "languages" in given:
        tests["language"] = _language(given["languages"], given["language_model"])

    def removed(messages: list[Message]) -> str | None:
        return next((name for name, test in tests.items() if not test(messages)), None)

    if "near_duplicates" not in given:
        yield removed
        return
    with NearDuplicates(stage.work / "near-duplicates.sqlite", given["near_duplicates"]) as kept:
        tests["near_duplicates"] = lambda messages: kept.add(spoken(messages), shown(messages))
        yield removed


def spoken(messages: Sequence[Message]) -> str:
    """Return what is said in a conversation, the system's message left out: many share it."""
    return "\n".join(message["content"] for message in messages if message["role"] != "system")


def shown(messages: Sequence[Message]) -> str:
    """Return what is shown in a conversation: the sha256 of each image, in order."""
    return " ".join(image["sha256"] for message in messages for image in message.get("images", ()))


def _fits(messages: list[Message], bounds: Mapping[str, int]) -> bool:
    counts = {
        "characters": sum(len(message["content"]) for message in messages),
        "turns": sum(message["role"] != "system" for message in messages),
    }
    return all(bounds.get(f"min_{name}", 0) <= count <= bounds.get(f"max_{name}", count)
               for name, count in counts.items())  # fmt: skip


def _language(wanted: Sequence[str], model: str) -> Test:
    """Return the test for languages, by the model that the key names; raises `SpeccError` if that is not here."""
    name, version = model.split()
    try:
        here = metadata.version(name)
    except metadata.PackageNotFoundError:
        here = None
    if here != version:
        raise SpeccError(
            f"`data.filters.languages` needs {model}, and {here or 'none'} is installed",
            hint="`pip install 'specc[data]'` brings it: another version may tell a language otherwise",
            code=Exit.STAGE,
        )
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = sorted(set(identifier.nb_classes))
    if unknown := next((language for language in wanted if language not in known), None):
        raise SpeccError(f"`{unknown}` is no language that {name} tells", hint=f"it tells {', '.join(known)}",
                         code=Exit.INPUT)  # fmt: skip
    return lambda messages: identifier.classify(spoken(messages)[:SAMPLE])[0] in wanted

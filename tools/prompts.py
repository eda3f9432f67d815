"""Keep held-out prompts apart from training prompts: `python tools/prompts.py check TRAINING… HELD_OUT`.

The last file is held out, all others train. A line of a file is `{"messages": [{"role": …, "content": …}, …]}`.
All comparisons are made on the words of a text: case-folded, punctuation dropped, `don't` one word.

An error, with both lines named, is

- a *duplicate*: two conversations of any files with the same words, or one user message in training and held out;
- a shared *8-gram*: eight words in a row that stand in a training message and in a held-out one;
- a shared *opening*: two user messages, one on either side, that begin with the same five words;
- a shared *template*: two such messages with the same skeleton of at least six parts. A skeleton keeps the function
  words (articles, pronouns, prepositions, conjunctions, auxiliaries, question words) and puts one slot, `_`, for each
  run of other words:

      What is the best way to learn the piano in a year?   what is the _ to _ the _ in a _
      What is the quickest road to reach the sea in a car? what is the _ to _ the _ in a _

A shared 5-gram inside a message is a hint that a wording is common to both, and may also be plain English
(`what is the name of`): it is listed as a note and is no error.

Exit code: 0 apart, 1 not apart, 2 a file that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

NGRAM = 8
"""Words in a row that training and held-out prompts may not share."""
HINT = 5
"""Words in a row whose sharing is noted, and the length of an opening."""
SKELETON = 6
"""Parts from which on an equal skeleton is a shared template."""

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those such some any each every all both either neither no not
    i you he she it we they me him her us them my your his its our their mine yours myself yourself itself themselves
    i'm i've i'd i'll you're it's we're they're what's that's don't doesn't didn't isn't aren't can't won't
    someone somebody something anyone anybody anything nobody nothing everyone everybody everything one there here
    who whom whose which what when where why how whether if because although though while since until unless
    and or but nor so than then as yet
    of in on at to from by with without for about into onto over under between through during before after above below
    against along among around behind beyond near off out per up down like
    am is are was were be been being do does did done have has had having
    can could will would shall should may might must ought let please
    very too also just only more most less least much many few several other another same own
    """.split()  # noqa: SIM905 (a list of quoted words hides its classes)
)
"""Closed-class words of English: they carry a sentence's frame and not its topic."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")

Words = tuple[str, ...]


class UnreadableError(Exception):
    """A file is not what the check reads; the message names file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One conversation of a file: `path:line`, its messages' words in order, and which of them the user wrote."""

    where: str
    messages: tuple[Words, ...]
    user: tuple[Words, ...]


def words(text: str) -> Words:
    """Return the words of a text, case-folded and without punctuation."""
    return tuple(_WORD.findall(text.casefold().replace("’", "'")))


def ngrams(text: Words, n: int) -> set[Words]:
    """Return every run of `n` words."""
    return {text[i : i + n] for i in range(len(text) - n + 1)}


def opening(text: Words) -> Words | None:
    """Return the first five words, or None when there are fewer."""
    return text[:HINT] if len(text) >= HINT else None


def skeleton(text: Words) -> Words:
    """Return the function words in order, with `_` for each run of other words."""
    parts: list[str] = []
    for word in text:
        part = word if word in FUNCTION_WORDS else "_"
        if part != "_" or parts[-1:] != ["_"]:
            parts.append(part)
    return tuple(parts)


def template(text: Words) -> Words | None:
    """Return the skeleton, or None when it is too short to tell a frame by."""
    parts = skeleton(text)
    return parts if len(parts) >= SKELETON else None


def read(path: Path) -> list[Prompt]:
    """Read a file of prompts; raise `UnreadableError` for a line that is no conversation."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: {error}") from error
    return [_prompt(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def _prompt(where: str, line: str) -> Prompt:
    try:
        messages = [(message["role"], words(message["content"])) for message in json.loads(line)["messages"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnreadableError(f'{where}: not a line of the form {{"messages": [{{"role", "content"}}, …]}}') from error
    roles = [role for role, _ in messages]
    if roles != ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))] or len(roles) % 2 == 0:
        raise UnreadableError(f"{where}: user and assistant must take turns, the user first and last")
    return Prompt(
        where=where,
        messages=tuple(text for _, text in messages),
        user=tuple(text for role, text in messages if role == "user"),
    )


def duplicates(prompts: Iterable[Prompt]) -> Iterator[str]:
    """Name each conversation that has the words of an earlier one."""
    seen: dict[tuple[Words, ...], str] = {}
    for prompt in prompts:
        first = seen.setdefault(prompt.messages, prompt.where)
        if first != prompt.where:
            yield f"duplicate: {first} and {prompt.where}"


def shared(
    training: list[Prompt], held: list[Prompt], what: str, marks: Callable[[Prompt], Iterable[Words]]
) -> Iterator[str]:
    """Name each pair, a training and a held-out prompt, that has one of its `marks` in common, once with its first."""
    owners: dict[Words, list[str]] = {}
    for prompt in training:
        for mark in dict.fromkeys(marks(prompt)):
            owners.setdefault(mark, []).append(prompt.where)
    for prompt in held:
        named: set[str] = set()
        for mark in dict.fromkeys(marks(prompt)):
            for owner in owners.get(mark, []):
                if owner not in named:
                    named.add(owner)
                    yield f"{what}: {owner} and {prompt.where}: {' '.join(mark)}"


def compare(training: list[Prompt], held: list[Prompt]) -> tuple[list[str], list[str]]:
    """Return the errors and the notes of a training set and a held-out set."""

    def runs(n: int) -> Callable[[Prompt], Iterable[Words]]:
        return lambda prompt: sorted(gram for text in prompt.messages for gram in ngrams(text, n))

    def each(of: Callable[[Words], Words | None]) -> Callable[[Prompt], Iterable[Words]]:
        return lambda prompt: [mark for text in prompt.user if (mark := of(text))]

    errors = [
        *duplicates(training),
        *duplicates(held),
        *shared(training, held, "duplicate", lambda prompt: prompt.user),
        *shared(training, held, f"shared {NGRAM}-gram", runs(NGRAM)),
        *shared(training, held, "shared opening", each(opening)),
        *shared(training, held, "shared template", each(template)),
    ]
    return errors, list(shared(training, held, f"shared {HINT}-gram", runs(HINT)))


def summary(path: Path, prompts: list[Prompt]) -> str:
    """Return a line on the size and the variety of a file."""
    texts = [text for prompt in prompts for text in prompt.user]
    openings = Counter(mark for text in texts if (mark := opening(text)))
    turns = sum(len(prompt.user) > 1 for prompt in prompts)
    mean = sum(map(len, texts)) / max(len(texts), 1)
    most, times = openings.most_common(1)[0] if openings else ((), 0)
    return (
        f"{path}: {len(prompts)} prompts, {turns} of several turns, {mean:.1f} words a message, "
        f"{len(openings)} openings, the commonest {times} times: {' '.join(most)}"
    )


def check(paths: list[Path]) -> int:
    """Print what the files are and where they are not apart; return the exit code."""
    try:
        files = [read(path) for path in paths]
    except UnreadableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, prompts in zip(paths, files, strict=True):
        print(summary(path, prompts))
    training = [prompt for prompts in files[:-1] for prompt in prompts]
    errors, notes = compare(training, files[-1])
    for note in notes:
        print(f"note: {note}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(f"{len(errors)} errors, {len(notes)} notes")
    return 1 if errors else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="prompts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command = parser.add_subparsers(required=True).add_parser("check", help="are training and held-out prompts apart?")
    command.add_argument("training", type=Path, nargs="+", help="prompts that a draft model trains on")
    command.add_argument("held_out", type=Path, help="prompts that it is measured on")
    args = parser.parse_args()
    return check([*args.training, args.held_out])


if __name__ == "__main__":
    raise SystemExit(main())

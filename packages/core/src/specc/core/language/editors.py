"""What editors show of a field that a schema's own words do not say: its default, and a spec to start from.

The keywords are those of the language servers of VS Code, Neovim, Helix, Emacs and others; validators ignore them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from specc.core.language.words import words

if TYPE_CHECKING:
    from specc.core.language.schema import Schema

SNIPPETS: Final[list[dict[str, Any]]] = [
    {
        "label": "speculator",
        "description": "A spec with what every spec has; everything else has a default or is derived.",
        "suggestionKind": 15,
        "body": {
            "version": 1,
            "name": "${1:my-speculator}",
            "verifier": {"model": "${2:org/model}"},
            "draft": {"algorithm": "${3:eagle3}"},
            "data": {"sources": [{"file": "${4:prompts/train.jsonl}"}]},
        },
    }
]
"""Offered in an empty file: `${1:…}` is the first place to type in, and what stands there until then; 15 is a snippet
(https://microsoft.github.io/language-server-protocol/specifications/lsp/3.17/specification/#completionItemKind)."""


def for_editors(schema: Schema) -> Schema:
    """Return the language's schema with what editors show: `markdownDescription` of each field, and snippets.

    A title is left out at the root: the YAML language server puts it above what it says of every field. What `else`
    says of a section is that its fields are required, and it is no proposal of its own.
    """
    told = _told(schema)
    for section in told["else"]["properties"].values():
        section["doNotSuggest"] = True
    return {**told, "defaultSnippets": SNIPPETS}


def _told(node: Any) -> Any:
    """Return a schema whose described parts tell in Markdown what they are, their defaults too."""
    if isinstance(node, list):
        return [_told(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    plain = cast("Schema", node)
    told: Schema = {key: value if key == "default" else _told(value) for key, value in plain.items()}
    description = plain.get("description")
    if not isinstance(description, str):
        return told
    shown = {"description": description, "markdownDescription": description + _default(plain)}
    # Of a field with several options the server shows the words of the one that fits; and a list of them if all say the
    # same, which is what it takes those for that say nothing. So each says what it takes, and shows the field's words.
    for option, rule in zip(told.get("anyOf", ()), plain.get("anyOf", ()), strict=True):
        option |= {**shown, "description": words(rule)}
    return {**shown, **{key: value for key, value in told.items() if key != "description"}}


def _default(rule: Schema) -> str:
    if "default" not in rule:
        return ""
    value = rule["default"]
    return f" Default: `{value if isinstance(value, str) else json.dumps(value)}`."

"""Settings from the command line: `NAME=VALUE`, held to what a target's row says of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from specc.core.errors import Exit, SpeccError, SpeccErrors
from specc.core.language.text import printable
from specc.core.language.words import listed
from specc.core.targets.base import Target


def read_settings(target: Target, given: Iterable[str]) -> dict[str, str | None]:
    """Return the value of every setting of a target, None where nobody gives one.

    Raises `SpeccErrors` (exit code 2) with all that is wrong: a setting that the target does not have, is given twice
    or cannot have this value, and those that are required and missing.
    """
    rows = {row.name: row for row in target.settings}
    found: dict[str, str] = {}
    errors: list[SpeccError] = []
    for item in given:
        name, equals, value = item.partition("=")
        row = rows.get(name)
        if not equals:
            errors.append(_error(f"`--set {printable(item)}` has no value", f"write `--set {printable(item)}=VALUE`"))
        elif row is None:
            errors.append(_error(f"the target `{target.name}` has no setting `{printable(name)}`", _near(name, rows)))
        elif name in found:
            errors.append(_error(f"`{name}` is set twice", "set it once"))
        elif not row.takes(value):
            errors.append(_error(f"`{name}` cannot be `{printable(value)}`", f"expected {row.expected}"))
        found.setdefault(name, value)
    for row in target.settings:
        if row.required and row.name not in found:
            errors.append(_error(f"the target `{target.name}` needs `{row.name}`: {row.about}",
                                 f"`--set {row.name}=VALUE` sets it: {row.expected}"))  # fmt: skip
    if errors:
        raise SpeccErrors(errors)
    return {name: found.get(name, row.default) for name, row in rows.items()}


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known here: {listed(list(known))}"


def _error(message: str, hint: str) -> SpeccError:
    return SpeccError(message, hint=hint, code=Exit.USAGE)

"""From a target's templates to the files that it writes: text alone, the same for the same spec, lock and settings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml

from specc.core.errors import SpeccErrors
from specc.core.files import digest_of
from specc.core.language.text import printable
from specc.core.targets.base import Target
from specc.core.targets.jobs import Job
from specc.core.targets.project import FOLDER, Project

TEMPLATES: Final = Path(__file__).with_name("templates")
CHECKSUMS: Final = "files.sha256"
_NOT_IN_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def render(
    target: Target, project: Project, jobs: Sequence[Job], settings: Mapping[str, str | None], *, machine: str
) -> dict[str, bytes]:
    """Return the files of a target by their posix paths: scripts, the project's texts, checksums of what it names.

    `settings` has a value or None for each of the target's settings; `machine` is the class that is planned for. Raises
    `SpeccErrors` if the target cannot take the project.
    """
    if errors := target.refuse(project):
        raise SpeccErrors(errors)
    context: dict[str, Any] = {
        "version": metadata.version("specc"),
        "target": target,
        "project": project,
        "folder": FOLDER,
        "checksums": checksums(project.files),
        "machine": machine,
        "jobs": jobs,
        "settings": settings,
    }
    context["id"] = digest_of([project.digest(project.lock), target.name, settings, project.build, project.spec])[:8]
    environment = make_environment(TEMPLATES)
    every = {path: (template, {}) for path, template in target.files.items()}
    every |= {
        path.format(name=job.name): (template, {"job": job})
        for path, template in target.per_stage.items()
        for job in jobs
    }
    texts = {
        path: environment.get_template(f"{target.name}/{template}.jinja").render(context, **more)
        for path, (template, more) in every.items()
    }
    if project.files:
        texts[CHECKSUMS] = context["checksums"]
    written = {path: text.encode(errors="surrogateescape") for path, text in texts.items()}
    return written | {f"{FOLDER}/{path}": text for path, text in project.texts.items()}


def make_environment(folder: Path) -> jinja2.Environment:
    """Return the templates of a folder; a name that nothing stands for is an error (`jinja2.UndefinedError`).

    Filters: `sh` makes one word of a shell, `json` a value of JSON that YAML takes too, `block` a text of YAML that a
    person can read, `comment` what may stand behind a `#`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no HTML
    )
    filters: dict[str, Any] = environment.filters
    filters.update(sh=shlex.quote, json=as_json, block=block, comment=comment)
    return environment


def as_json(value: Any) -> str:
    """Return a value as JSON on one line, which is YAML 1.1 and 1.2 as well."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def block(text: str, indent: int) -> str:
    """Return a text as a block of YAML, or as JSON if no block can hold it.

    Its lines are indented by `indent` spaces, which are two more than its key has.
    """
    stripped = text.rstrip("\n")
    ends = {0: "-", 1: ""}.get(len(text) - len(stripped), "+")
    lines = text.removesuffix("\n").split("\n")
    try:
        same = yaml.safe_load(f"text: {_block(lines, ends, 2)}\n") == {"text": text}
    except yaml.YAMLError:
        same = False
    return _block(lines, ends, indent) if same else as_json(text)


def _block(lines: Sequence[str], ends: str, indent: int) -> str:
    return "\n".join([f"|2{ends}", *(f"{' ' * indent}{line}" if line else "" for line in lines)])


def comment(text: str) -> str:
    """Return a text as it may stand in a comment: on one line, whatever it holds."""
    return printable(text, 120)


def checksums(files: Mapping[str, str]) -> str:
    r"""Return the sha256 of files in the form that `sha256sum --check` reads (`\` before a line with escapes)."""
    return "".join(_checksum(path, digest) for path, digest in files.items())


def _checksum(path: str, digest: str) -> str:
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{digest}  {escaped}\n"

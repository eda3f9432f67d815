"""`specc env`: a class's engines as requirements, to make the environment again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click

from specc.core import lock as locks
from specc.core.cli.options import as_json, print_json, words
from specc.core.errors import Exit, SpeccError
from specc.core.execute.machine import machine_name
from specc.core.language.text import printable
from specc.core.lock import Lock, machine_class
from specc.core.lock.schema import DISTRIBUTION, VERSION

RESOLVE: Final = (
    "-P", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-input",
    "--disable-pip-version-check", "--only-binary", ":all:", "--report", "-",
)  # fmt: skip
"""Arguments of Python for which pip says what it would install: no source package, so that none is run, and with
`-P` no `pip` from the working directory."""
_SHOWS: Final = "`specc env > requirements.txt` and `python -m pip install --dry-run -r requirements.txt` show why"
_FAILURES: Final = (
    (r"No module named pip", "this interpreter has no pip to ask", "`python -m ensurepip` brings it"),
    (r"no such option: --(?:report|dry-run)", "this pip is too old to say what it would install",
     "`python -m pip install --upgrade pip` brings one that does (22.2 or later)"),
    (r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|connection broken",
     "pip cannot reach its package index", "without `--hashes` no network is needed; `PIP_NO_INDEX` and "
     "`PIP_FIND_LINKS` have it look into a folder of wheels"),
    (r"No matching distribution found for ([A-Za-z0-9._-]+(?:[=<>!~]=?[A-Za-z0-9.+!*]+)?)",
     "where pip looks there is no wheel of `{}` for this interpreter",
     "`PIP_EXTRA_INDEX_URL` and `PIP_FIND_LINKS` name more places; a wheel is for one version of Python"),
    (r"ResolutionImpossible", "the pinned versions do not go together where pip looks", _SHOWS),
)  # fmt: skip
"""What pip says when it fails, and our words for it: pip's own may name an index, and a password for it."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A distribution, its exact version, and the sha256 of its wheel if pip was asked for it."""

    name: str
    version: str
    sha256: str | None = None

    def __str__(self) -> str:
        """Return it as a line of a requirements file."""
        return f"{self.name}=={self.version}" + (f" --hash=sha256:{self.sha256}" if self.sha256 else "")


@click.command("env", short_help="a class's engines as requirements, to make the environment again")
@click.argument("spec", required=False, type=click.Path(path_type=Path))
@click.option("--class", "machine", metavar="CLASS", help="Class of machine (default: the lock's, or this machine's).")
@click.option("--hashes", is_flag=True, help="Ask pip for everything that the engines need, each with its sha256.")
@as_json
def command(spec: Path | None, machine: str | None, hashes: bool, json: bool) -> int:
    """Print the engines as SPEC's lock pins them, or as this release does.

    Without `--hashes` nothing is asked of anyone, and the engines alone are pinned. With it the running
    interpreter's pip resolves them, and the result is good for `pip install --require-hashes -r FILE` with this
    version of Python on this kind of machine.
    """
    lock = _lock(spec) if spec else None
    name = machine or (lock.locked.machine if lock else machine_name())
    pins = lock.locked.engines if lock else {}
    row = machine_class(name, pins)
    origin = locks.lock_path(spec).name if spec and name in pins else f"specc {metadata.version('specc')}"
    if spec and name not in pins:
        words(f"no lock of {spec} pins class `{name}`: these are this release's engines")
    found = _pinned(row.engines, origin)
    heading = [f"# engines of class {name}, from {origin}"]
    if hashes:
        words("asking pip for everything that the engines need")
        report = _resolved(found)
        found, heading = _closure(report), [*heading, _resolved_for(report)]
    if json:
        print_json({"class": name, "from": origin, "requirements": [asdict(item) for item in found]})
    else:
        click.echo("\n".join([*heading, *map(str, found)]))
    return Exit.OK


def _lock(spec: Path) -> Lock | None:
    builds = locks.read(locks.lock_path(spec))
    if builds is None and not spec.is_file():
        raise SpeccError("there is no such file", where=str(spec),
                         hint="`specc env` without a spec prints this release's engines")  # fmt: skip
    return next(iter(builds.values())) if builds else None  # all builds of a spec have the same engines


def _pinned(engines: Mapping[str, Any], origin: str) -> list[Requirement]:
    """Return pins as requirements; raises `SpeccError` for one that pip could take for an option or an address."""
    for name, version in engines.items():
        if not re.fullmatch(DISTRIBUTION, name) or not re.fullmatch(VERSION, str(version)):
            raise SpeccError(f"`{printable(name)}` cannot be pinned to `{printable(str(version))}`", where=origin,
                             hint="take the lock back from version control, or `specc lock --upgrade engines SPEC` "
                             "takes this release's engines")  # fmt: skip
    return [Requirement(name, str(version)) for name, version in sorted(engines.items())]


def _resolved(engines: list[Requirement]) -> Mapping[str, Any]:
    """Return pip's report on an installation (https://pip.pypa.io/en/stable/reference/installation-report).

    Raises `SpeccError` without a word of pip's.
    """
    done = subprocess.run(
        [sys.executable, *RESOLVE, *map(str, engines)],
        capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout)
    for pattern, message, hint in _FAILURES:
        if found := re.search(pattern, done.stderr):
            raise SpeccError(message.format(*found.groups()), hint=hint)
    raise SpeccError("pip cannot resolve the engines", hint=_SHOWS)


def _closure(report: Mapping[str, Any]) -> list[Requirement]:
    """Return what pip would install, by name; raises `SpeccError` if a wheel has no sha256."""
    found: list[Requirement] = []
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if sha256 is None:
            raise SpeccError(f"pip knows no sha256 of `{name}`", hint="ask an index or a folder that holds its wheel")
        found.append(Requirement(name, item["metadata"]["version"], sha256))
    return sorted(found, key=lambda item: item.name)


def _resolved_for(report: Mapping[str, Any]) -> str:
    here = report["environment"]
    python = f"{here['platform_python_implementation']} {here['python_version']}"
    machine = f"{here['sys_platform']} {here['platform_machine']}"
    return f"# resolved by pip {report['pip_version']} for {python} on {machine}"

"""Compiled projects: what a target writes for one, and what its scripts call."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from projects import Project

BASH: Final = shutil.which("bash") or "bash"
SPEC_FILE: Final = 'it\'s #1\n$(touch ran) `touch ran` "quoted" & {{ 7 * 7 }}.yaml'
"""Names that a shell, YAML or `sha256sum` could take for something else: of a spec, and of a data file."""
DATA_FILE: Final = "rows'\n\\$(touch ran)\u2028é😀.jsonl"
NEEDED: Final = {"shell": (), "slurm": (), "kubernetes": ("image=registry.example:5000/specc:0.1.0",),
          "ray": ("store=/mnt/shared store",)}  # fmt: skip
"""Every target, with the settings that it cannot do without."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles one project."""

    project: Project
    spec: str

    def __call__(self, target: str, *options: str, out: str = "out") -> Path:
        """Compile for a target with what it needs and `options`; return the folder."""
        given = [word for setting in NEEDED[target] for word in ("--set", setting)]
        self.project.run("compile", self.spec, "--target", target, "--out", out, *given, *options)
        return self.project.folder / out

    def fails(self, *arguments: str, expect: int = 1) -> str:
        """Compile to `out` with arguments that are wrong somehow; return what is said. Nothing is written."""
        before = sorted(self.project.folder.rglob("*"))
        said = self.project.run("compile", self.spec, "--out", "out", *arguments, expect=expect)[1]
        assert sorted(self.project.folder.rglob("*")) == before
        return said


RECORD: Final = 'printf "%s\\0" "$(basename "$0")" "$@" >> "$CALLS"; printf "\\n\\0" >> "$CALLS"\n'
"""A script that notes how it was called: words that end in NUL, calls that end in a newline and NUL."""


def calls(environment: dict[str, Any]) -> list[list[str]]:
    """Return the calls that `RECORD` noted, each with the program's name first."""
    path = Path(environment["CALLS"])
    text = path.read_bytes().decode() if path.exists() else ""
    return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

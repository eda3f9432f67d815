"""The target `shell`: one script that runs every stage on the machine that it is started on."""

from __future__ import annotations

from typing import Final

from specc.core.targets.base import Setting, Target

SETUP: Final = Setting(
    name="setup",
    about="file of shell commands that is read before `specc` is called, such as a virtual environment's `activate`",
    pattern=r"[^\n\r\0]+",
    expected="a path on the machine that builds",
)
SHELL: Final = Target(
    name="shell",
    about="a script that runs every stage, one after another",
    start="build.sh",
    files={"build.sh": "build.sh"},
    settings=(SETUP,),
)

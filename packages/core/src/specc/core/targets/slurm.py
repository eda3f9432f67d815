"""The target `slurm`: a batch script for each stage, and a script that submits them, each after what it needs."""

from __future__ import annotations

from typing import Final

from specc.core.targets.base import Setting, Target
from specc.core.targets.shell import SETUP

WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SIZE: Final = r"[1-9][0-9]*[KMGT]?"

SLURM: Final = Target(
    name="slurm",
    about="a batch script for each stage, submitted with `--dependency`",
    start="submit.sh",
    files={"submit.sh": "submit.sh"},
    per_stage={"jobs/{name}.sbatch": "stage.sbatch"},
    settings=(
        Setting(name="partition", about="partition of the stages that run a model",
                pattern=f"{WORD}(,{WORD})*", expected="a partition's name, or several with commas"),
        Setting(name="small_partition", about="partition of the other stages; by default the same",
                pattern=f"{WORD}(,{WORD})*", expected="a partition's name, or several with commas"),
        Setting(name="account", about="account that is charged", pattern=WORD, expected="an account's name"),
        Setting(name="qos", about="quality of service", pattern=WORD, expected="a name"),
        Setting(name="time", about="time limit of a job, after which it is queued again and goes on",
                pattern=r"([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}", expected="a time such as `24:00:00` or `2-00:00:00`"),
        Setting(name="warning", about="seconds between a stage's being told to stop and its time limit",
                pattern=r"[1-9][0-9]{0,3}", expected="a number of seconds below 10,000", default="300"),
        Setting(name="restarts", about="how often a job is queued again before it counts as failed",
                pattern=r"[0-9]{1,3}", expected="a whole number below 1,000", default="20"),
        Setting(name="memory", about="memory of the stages that run a model", pattern=SIZE,
                expected="a size such as `64G`"),
        Setting(name="small_memory", about="memory of the other stages", pattern=SIZE,
                expected="a size such as `8G`"),
        Setting(name="gpu", about="name of the generic resource that a GPU is", pattern=f"{WORD}(:{WORD})?",
                expected="a name such as `gpu` or `gpu:h100`", default="gpu"),
        SETUP,
    ),
)  # fmt: skip

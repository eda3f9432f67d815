"""The target `kubernetes`: a Job for each stage around one volume, and a script that applies them in order."""

from __future__ import annotations

from typing import Final

from specc.core.errors import SpeccError
from specc.core.language.text import printable
from specc.core.targets.base import Setting, Target
from specc.core.targets.project import Project

NAME: Final = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
QUANTITY: Final = r"[1-9][0-9]*(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?"
IMAGE: Final = (
    r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*"
    r"(:(?!latest(@|$))[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})"
)
MOST: Final = 1_000_000
"""Bytes of texts that a ConfigMap is given; the cluster's own limit is 1 MiB with all that belongs to it."""


def refuse(project: Project) -> list[SpeccError]:
    """Return what a cluster would refuse, before it does."""
    errors: list[SpeccError] = []
    if ":" in project.spec:
        errors.append(SpeccError(f"a volume cannot be mounted at a path with a colon: `{printable(project.spec)}`",
                                 hint="rename the spec and its lock"))  # fmt: skip
    size = sum(map(len, project.texts.values()))
    if size > MOST:
        errors.append(SpeccError(f"the spec and its lock have {size:,} bytes, and a ConfigMap holds {MOST:,}",
                                 hint="`--target shell` in a pod of your own builds any spec"))  # fmt: skip
    return errors


KUBERNETES: Final = Target(
    name="kubernetes",
    about="a Job for each stage, with a ConfigMap and a volume",
    start="run.sh",
    files={"run.sh": "run.sh", "project.yaml": "project.yaml"},
    per_stage={"jobs/{name}.yaml": "job.yaml"},
    settings=(
        Setting(name="image", about="container image with specc and its engines", required=True, pattern=IMAGE,
                expected="an image with a digest, or a tag other than `latest`"),
        Setting(name="namespace", about="namespace; by default that of the context", pattern=NAME,
                expected="a name in lower case"),
        Setting(name="storage_class", about="storage class of the volume; by default the cluster's", pattern=NAME,
                expected="a name in lower case"),
        Setting(name="storage", about="size of the volume", pattern=QUANTITY, expected="a size such as `200Gi`",
                default="100Gi"),
        Setting(name="access", about="access mode of the volume", pattern="ReadWriteOnce|ReadWriteMany",
                expected="`ReadWriteOnce` or `ReadWriteMany`", default="ReadWriteOnce"),
        Setting(name="memory", about="memory of the stages that run a model", pattern=QUANTITY,
                expected="a size such as `64Gi`"),
        Setting(name="small_memory", about="memory of the other stages", pattern=QUANTITY,
                expected="a size such as `8Gi`"),
        Setting(name="gpu", about="name of the resource that a GPU is", pattern=f"{NAME}/{NAME}",
                expected="a name such as `nvidia.com/gpu`", default="nvidia.com/gpu"),
        Setting(name="user", about="number of the user that runs in the containers, and of the volume's group",
                pattern=r"[1-9][0-9]{0,8}", expected="a number above 0", default="1000"),
        Setting(name="retries", about="how often a stage is started again after a failure that may pass",
                pattern=r"[0-9]{1,2}", expected="a whole number below 100", default="3"),
        Setting(name="hub_secret", about="Secret whose key `HF_TOKEN` the stage that asks a model hub gets",
                pattern=NAME, expected="a name in lower case"),
    ),
    refuse=refuse,
)  # fmt: skip

"""Several ranks: this process becomes DeepSpeed's launcher, which starts each of them as the stage's own process."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Final

from specc.core.contracts import StageJob
from specc.core.stage import die_with_parent
from specc.train.phases import phase_of

LAUNCHED: Final = "LOCAL_SIZE"
"""What the launcher sets for a rank, and nothing else does."""


def launch(arguments: list[str]) -> None:
    """Become the launcher if this process' phase has more than one rank and it is not one of them; else return.

    The ranks speak to the compiler through the launcher's own pipe. They die with the launcher, and it with the
    compiler.
    """
    if LAUNCHED in os.environ or len(arguments) != 1:
        return
    try:
        phase = phase_of(StageJob.load(Path(arguments[0])).facets.get("ranks", 1))
    except Exception:  # noqa: BLE001 - the stage reads the job again, and says what is wrong with it
        return
    if phase is None or phase.ranks == 1:
        return
    die_with_parent()
    events = os.dup(1)
    os.set_inheritable(events, True)
    os.dup2(2, 1)
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(phase.ranks))}).encode()).decode()
    port = os.environ["MASTER_PORT"]
    command = [
        sys.executable, "-P", "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--node_rank=0",
        "--master_addr=127.0.0.1", f"--master_port={port}", "--no_local_rank", "--log_level=warning", "--module",
        "specc.train", *arguments,
    ]  # fmt: skip
    own = {"SPECC_PARENT": str(os.getpid()), "SPECC_EVENTS": f"/proc/{os.getpid()}/fd/{events}", "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, command, os.environ | own)  # noqa: S606 - there is no shell to want

"""The stage `prompts`: the files of data sets that an evaluation asks, fetched from a hub at their pinned commits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from specc.core.errors import Exit, SpeccError
from specc.core.files import sha256_file
from specc.core.measure.prompts import name_of
from specc.core.stage import Stage


def prompts(stage: Stage) -> None:
    """Write each file under its data set's id, byte for byte.

    Raises `SpeccError` if one cannot be fetched, or has another sha256 than the lock says.
    """
    sources: list[dict[str, Any]] = stage.params["prompts"]
    commits: list[str] = stage.job.context["hub"]["commits"]
    for number, (source, commit) in enumerate(zip(sources, commits, strict=True)):
        stage.progress(number, len(sources), "files", name_of(source))
        found = _download(stage, source, commit)
        if sha256_file(found) != source["sha256"]:
            raise SpeccError("the hub sent another file than the lock pins", where=name_of(source),
                             hint="`specc lock --upgrade data SPEC` pins it as it is now", code=Exit.STAGE)  # fmt: skip
        target = stage.output / name_of(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)
    stage.progress(len(sources), len(sources), "files")


def _download(stage: Stage, source: dict[str, Any], commit: str) -> Path:
    """Fetch a file into the work folder; what a killed download left there is continued."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    folder = stage.work / "hub" / source["dataset"]
    try:
        return Path(
            hf_hub_download(source["dataset"], source["path"], repo_type="dataset", revision=commit, local_dir=folder)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpeccError(
            f"`{source['path']}` of the data set `{source['dataset']}` cannot be fetched: {first[:200]}",
            hint="check the network and `HF_TOKEN`, or download the file and name it as `file`",
            code=Exit.STAGE,
        ) from error

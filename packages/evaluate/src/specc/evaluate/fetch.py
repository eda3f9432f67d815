"""The stage `prompts`: the files of data sets that an evaluation asks, fetched from a hub at their pinned commits."""

from __future__ import annotations

import shutil
from typing import Any

from specc.core.errors import Exit, SpeccError
from specc.core.fetch import download
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
        dataset, path = source["dataset"], source["path"]
        found = download(dataset, path, commit, stage.work / "hub" / dataset, kind="dataset",
                         called=f"`{path}` of the data set `{dataset}`",
                         instead="download the file and name it as `file`")  # fmt: skip
        if sha256_file(found) != source["sha256"]:
            raise SpeccError("the hub sent another file than the lock pins", where=name_of(source),
                             hint="`specc lock --upgrade data SPEC` pins it as it is now", code=Exit.STAGE)  # fmt: skip
        target = stage.output / name_of(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)
    stage.progress(len(sources), len(sources), "files")

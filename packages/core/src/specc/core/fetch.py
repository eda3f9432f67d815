"""Files of a hub, as a stage fetches them: at a pinned commit, through the hub's own client."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, Literal

from specc.core.errors import Exit, SpeccError

WAIT: Final = 0.5
"""Seconds before the second try; each further one waits twice as long."""


def download(
    repo: str,
    file: str,
    revision: str,
    folder: Path,
    *,
    kind: Literal["model", "dataset"] = "model",
    called: str,
    instead: str,
    tries: int = 1,
) -> Path:
    """Fetch a file of a repository at a commit into a folder; what a killed download left there is continued.

    What is refused is not tried again. Raises `SpeccError` that names the file as it is `called` and says what a user
    can do `instead`. Nothing is checked here.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ImportError as error:
        raise SpeccError("what is on a hub needs huggingface_hub, which is not installed",
                         hint="`pip install 'specc[hub]'` brings it", code=Exit.STAGE) from error  # fmt: skip
    for attempt in range(tries):
        try:
            return Path(hf_hub_download(repo, file, repo_type=kind, revision=revision, local_dir=folder))
        except Exception as error:
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if attempt + 1 == tries or refused or isinstance(error, OfflineModeIsEnabled):
                first = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise SpeccError(
                    f"{called} cannot be fetched: {first[:200]}",
                    hint=f"check the network and `HF_TOKEN`, or {instead}",
                    code=Exit.STAGE,
                ) from error
        time.sleep(WAIT * 2**attempt)
    raise AssertionError

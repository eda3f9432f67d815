"""Files of a hub, as a stage fetches them: at a pinned commit, through the hub's own client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage


def download(stage: Stage, hub: Mapping[str, str], name: str, field: str) -> Path:
    """Fetch a file at the pinned commit into the work folder; what a killed download left there is continued.

    `hub` is `{"repo", "revision"}`; `field` says where a folder could be named in its place. Nothing is checked here.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(hub["repo"], name, revision=hub["revision"], local_dir=stage.work / "hub"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpeccError(
            f"`{name}` of `{hub['repo']}` cannot be fetched: {first[:200]}",
            hint=f"check the network and `HF_TOKEN`, or download the model and name its folder in {field}",
            code=Exit.STAGE,
        ) from error

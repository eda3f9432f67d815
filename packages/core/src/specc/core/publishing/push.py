"""A directory on a model hub, in one commit, by huggingface_hub."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.files import walk
from specc.core.resolve.hub import offline

AGAIN: Final = "the same command goes on: what has arrived is not sent again"


def push(folder: Path, repo: str, *, private: bool, revision: str | None, message: str) -> str:
    """Upload a directory's files to a repository, which is made if need be; return the commit's address.

    `revision` is a branch, made from the main one if need be. Large files go first, each by its sha256, so that after a
    cut connection the hub has those that arrived whole; then all files become one commit. The token is `HF_TOKEN` or
    that of the hub's own login, and is said nowhere. Raises `SpeccError` if the hub refuses or is not reached.
    """
    if offline():
        raise SpeccError("`HF_HUB_OFFLINE` forbids to reach the hub", hint="unset it for this command", code=Exit.USAGE)
    hub = _library()
    api = hub.HfApi(library_name="specc")
    with _in_words(repo, api.endpoint):
        repo = str(api.create_repo(repo, private=private, exist_ok=True).repo_id)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=path)
            for path in walk(folder)
        ]
        return str(api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url)


@contextmanager
def _in_words(repo: str, endpoint: str) -> Generator[None]:
    """Turn what the library raises into an error in words, without its requests' headers."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise SpeccError(f"`{repo}` is not the name of a repository", hint="it is `OWNER/NAME`",
                         code=Exit.USAGE) from error  # fmt: skip
    except SpeccError:
        raise
    except Exception as error:
        status, said = _answer(error)
        if status in (401, 403):
            raise SpeccError(
                f"the hub does not let us write to `{repo}`",
                note=said,
                hint="set `HF_TOKEN` to a token that may write there, or `hf auth login`",
                code=Exit.STAGE,
            ) from error
        if status:
            raise SpeccError(f"the hub answered {status} for `{repo}`", note=said, hint=f"try again later: {AGAIN}",
                             code=Exit.STAGE) from error  # fmt: skip
        if not _is_the_networks(error):
            first = next(iter(str(error).splitlines()), "")
            raise SpeccError(f"huggingface_hub raised {type(error).__name__}: {first[:300]}",
                             code=Exit.STAGE) from error  # fmt: skip
        raise SpeccError(f"the hub at {endpoint} was not reached, or the connection was cut",
                         hint=f"try again: {AGAIN}", code=Exit.STAGE) from error  # fmt: skip


def _answer(error: BaseException) -> tuple[int | None, str | None]:
    """Return the hub's answer that an error stems from: its status, and its own words."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code), getattr(cause, "server_message", None) or None
        cause = cause.__cause__
    return None, None


def _is_the_networks(error: BaseException) -> bool:
    """Tell whether a connection failed: in the system, or in one of the clients that the library has had."""
    cause: BaseException | None = error
    while cause is not None:
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        if kinds & {"OSError", "TransportError"} or type(cause).__module__.startswith("hf_xet"):
            return True
        cause = cause.__cause__
    return False


def _library() -> Any:
    """Import the optional library; its bars are for a terminal."""
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise SpeccError("`huggingface_hub` is not installed", hint="`pip install 'specc[hub]'` brings it",
                         code=Exit.STAGE) from error  # fmt: skip
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub

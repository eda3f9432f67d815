"""What a checkpoint says of its own making: `specc.json` and `provenance.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

from specc.core.algorithms.base import Tree
from specc.core.datafiles import files_of
from specc.core.files import FileEntry

PLACES: Final = ("model", "file", "from", "convert")
"""Fields of a spec that may hold a path of the user's machine."""
RESOLVED: Final = ("version", "date", "verifier", "draft", "data", "train", "export")
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"


def portable(value: Any) -> Any:
    """Return resolved values with every absolute path cut down to its last part.

    The sha256 beside it says which file it was; where it lay is nobody else's business.
    """
    if isinstance(value, Mapping):
        items: Mapping[str, Any] = value
        return {key: _last(item) if key in PLACES else portable(item) for key, item in items.items()}
    if isinstance(value, list):
        members: list[Any] = value
        return [portable(item) for item in members]
    return value


def _last(value: Any) -> Any:
    if not isinstance(value, str):
        return portable(value)
    if value.startswith(("/", "~")):
        return PurePosixPath(value).name
    windows = PureWindowsPath(value)
    return windows.name if windows.drive else value


def specc_json(params: Tree) -> dict[str, Any]:
    """Return `specc.json`: the resolved values of the checkpoint's ancestors, their keys and input digests.

    `specc` is the version of this file's form. The release of specc that wrote it is not in here: it decides
    none of the bytes, and stage versions say what does.
    """
    return {
        "specc": 1,
        "name": params["name"],
        "resolved": portable({key: params[key] for key in RESOLVED if key in params}),
        "stages": params["stages"],
    }


def provenance(params: Tree, files: Iterable[FileEntry]) -> dict[str, Any]:
    """Return the statement over a trained checkpoint.

    Its materials are the verifier's files, the data's and those of `draft.init`, each with its sha256.
    """
    return statement("urn:specc:checkpoint:1", params["name"], params["stages"], materials(params), files)


def statement(
    kind: str, name: str, stages: Tree, materials: list[dict[str, Any]], files: Iterable[FileEntry]
) -> dict[str, Any]:
    """Return an in-toto statement with a SLSA provenance predicate over an artifact's files.

    Subjects are `files` (all but the statement itself), `materials` what they were made of (`resolvedDependencies`
    there; https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance).
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in files],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": kind,
                "externalParameters": {"name": name},
                "internalParameters": {"stages": stages},
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": "urn:specc"}},
        },
    }


def _files(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a source with their sha256; those of a data set begin with its id."""
    prefix = f"{source['dataset']}/" if "dataset" in source else ""
    return {f"{prefix}{name}": digest for name, digest in files_of(source).items()}


def materials(params: Tree) -> list[dict[str, Any]]:
    """Return every file from outside that the checkpoint was made of, sorted by name."""
    plain = portable({key: params[key] for key in ("verifier", "draft", "data")})
    found = {f"verifier/{name}": digest for name, digest in plain["verifier"]["files"].items()}
    for source in [*plain["data"]["sources"], *plain["data"]["validation"]["sources"]]:
        found |= {f"data/{name}": digest for name, digest in _files(source).items()}
    for name, digest in ((plain["draft"].get("init") or {}).get("files") or {}).items():
        found[f"init/{name}"] = digest
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(found.items())]

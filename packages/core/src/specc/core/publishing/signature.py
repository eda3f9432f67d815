"""Signatures of directories by OpenSSF's model signing (https://github.com/sigstore/model-transparency).

A signature is a Sigstore bundle around an in-toto statement that has the sha256 of every file. Keys and certificates
are the user's own; signing without keys, by an identity, needs a network and is left to `model_signing` itself.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Exit, SpeccError

NAME: Final = "model.sig"
"""The file in a directory that has its signature."""
PASSWORD: Final = "SPECC_SIGN_PASSWORD"  # noqa: S105 - the name of a variable
MADE: Final = "`openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem` makes a key, and"\
    " `openssl ec -in KEY.pem -pubout -out PUB.pem` its public half"  # fmt: skip


def sign(folder: Path, key: Path, *, certificate: Path | None = None, chain: Sequence[Path] = ()) -> None:
    """Write the signature of all files of a directory into it.

    `key` is a private key in PEM on the curve P-256, P-384 or P-521, its password, if it has one, in the variable
    `SPECC_SIGN_PASSWORD`. With a `certificate` of that key the signature carries it and its `chain`. Raises
    `SpeccError` if they cannot be read or do not belong together.
    """
    signing, hashing = _library("signing"), _library("hashing")
    _require(key, *filter(None, [certificate]), *chain)
    config = signing.Config()
    try:
        if certificate:
            config.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=chain)
        else:
            password = os.environ.get(PASSWORD)
            config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
    except (ValueError, TypeError, AttributeError) as error:
        raise SpeccError(f"no private key of an elliptic curve can be read: {_first(error)}", where=str(key),
                         hint=f"{MADE}; a password goes into `{PASSWORD}`", code=Exit.USAGE) from error  # fmt: skip
    config.set_hashing_config(_hashing(hashing, folder)).sign(folder, folder / NAME)


def differences(folder: Path, *, key: Path | None = None, chain: Sequence[Path] = ()) -> list[str]:
    """Return in words how a directory differs from what was signed; none if nothing does.

    `key` is the public half of the key that signed, in PEM; or `chain` the certificates that vouch for it.
    That the signature was made by another key, or is none, is a difference too. Raises `SpeccError` if there is no
    signature, or if the key cannot be read.
    """
    verifying, hashing = _library("verifying"), _library("hashing")
    signature = folder / NAME
    if not signature.is_file():
        raise SpeccError(f"the directory has no `{NAME}`", where=str(folder),
                         hint="`specc export --sign KEY` writes one")  # fmt: skip
    config = verifying.Config()
    _require(*filter(None, [key]), *chain)
    try:
        if key:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=chain)
    except (ValueError, TypeError, AttributeError) as error:
        raise SpeccError(f"no public key of an elliptic curve can be read: {_first(error)}",
                         where=str(key or chain[0]), hint=MADE, code=Exit.USAGE) from error  # fmt: skip
    config.set_hashing_config(_hashing(hashing, folder))
    try:
        config.verify(folder, signature)
    except Exception as error:  # noqa: BLE001 - of the library, of cryptography, of what a changed file does to a parser
        return _words(error)
    return []


def _hashing(hashing: Any, folder: Path) -> Any:
    """Return what is hashed: all but the signature itself and what git keeps beside a clone's files."""
    return hashing.Config().set_ignored_paths(paths=[folder / NAME], ignore_git_paths=True)


def _words(error: Exception) -> list[str]:
    """Return what the library found; of files, a line each."""
    text = str(error)
    _, mismatch, lines = text.partition("Signature mismatch: ")
    if mismatch:
        try:
            return [str(line) for line in ast.literal_eval(lines)]
        except (ValueError, SyntaxError):
            return [lines]
    return [f"the signature is not one by this key: {_first(error)}"]


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").strip() or type(error).__name__


def _require(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise SpeccError("no such file", where=str(path), hint=MADE, code=Exit.USAGE)


def _library(name: str) -> Any:
    """Import a module of the optional library."""
    try:
        import importlib

        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise SpeccError("`model-signing` is not installed", hint="`pip install 'specc[sign]'` brings it",
                         code=Exit.STAGE) from error  # fmt: skip

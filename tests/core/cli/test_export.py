"""`specc export`: a directory of its own, with the evaluation in its card, signed and checked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from safetensor import one_tensor
from serving import seal
from specc.core.cli import main
from specc.core.contracts import Manifest
from specc.core.files import entries, pretty, sha256_file
from specc.core.store import Store

NAME = "tiny-speculator"
CARD = "---\ntags: [vllm]\n---\n\n# tiny\n\n## Training\n\nShort.\n\n## Licence\n\nNot stated.\n"
EVALUATION: dict[str, Any] = {
    "runtime": "vllm", "speculative_tokens": 3, "prompts": 64,
    "served": {"drafts": 2000, "draft_tokens": 6000, "accepted": 1200, "accepted_per_position": [800, 300, 100],
               "mean_acceptance_length": 1.6, "output_tokens": 3200},
    "untrained": {"drafts": 3000, "draft_tokens": 9000, "accepted": 3, "accepted_per_position": [3, 0, 0],
                  "mean_acceptance_length": 1.001, "output_tokens": 3200},
    "simulated": {"drafts": 1990, "accepted": 1194, "accepted_per_position": [796, 298, 100],
                  "mean_acceptance_length": 1.6},
    "lossless": {"fp32": {"prompts": 16, "identical": 16, "first_differences": []}},
}  # fmt: skip
SECTION = """\
## Evaluation

Counted in vLLM over 64 prompts that it was not trained on, decoded greedily with 3 speculative tokens (the artifact \
`sha256:{digest}`). *Mean acceptance length* is accepted tokens per draft + 1.

| | drafts | accepted tokens | mean acceptance length | accepted at each position |
|---|---|---|---|---|
| this draft | 2,000 | 1,200 | 1.600 | 0.40 0.15 0.05 |
| before training | 3,000 | 3 | 1.001 | 0.00 0.00 0.00 |
| this draft, replayed by specc | 1,990 | 1,194 | 1.600 | 0.40 0.15 0.05 |

Greedy output in fp32 with and without it: 16 of 16 prompts the same, token for token.
"""


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Write files of bytes, text or JSON."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else
                                    (content if isinstance(content, str) else pretty(content)).encode())  # fmt: skip
    return folder


def statement(folder: Path) -> dict[str, Any]:
    return {"subject": [{"name": one.path, "digest": {"sha256": one.sha256}} for one in entries(folder)]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store")


def build(store: Store, folder: Path, algorithm: str = "eagle3") -> Manifest:
    """Put a verifier and a checkpoint into the store."""
    model = write(folder / "verifier", {"config.json": {}, "README.md": "# V\n", "model.safetensors": one_tensor()})
    verifier = seal(store, "verifier", NAME, model, {})
    files = {
        "README.md": CARD, "model.safetensors": one_tensor(), "specc.json": {"specc": 1},
        "config.json": {"speculators_config": {"verifier": {"name_or_path": "tiny", "architectures": []}}},
    }  # fmt: skip
    source = write(folder / "checkpoint", files)
    (source / "provenance.json").write_text(pretty(statement(source)))
    params = {"name": NAME, "draft": {"algorithm": algorithm}, "export": {"speculative_tokens": 3}}
    return seal(store, "checkpoint", NAME, source, params, verifier=verifier.digest)


@pytest.fixture
def checkpoint(store: Store, tmp_path: Path) -> Manifest:
    return build(store, tmp_path / "sources")


def evaluate(store: Store, folder: Path, checkpoint: Manifest) -> Manifest:
    return seal(store, "evaluation", NAME, write(folder, {"evaluation.json": EVALUATION}), {},
                checkpoint=checkpoint.digest)  # fmt: skip


def test_the_copy_is_the_checkpoint_with_its_evaluation_and_its_owner_may_write(
    store: Store, checkpoint: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate(store, tmp_path / "evaluation", checkpoint)
    assert main(["export", checkpoint.digest[:12], "--to", "out"]) == 0
    out, source = tmp_path / "out", store.path(checkpoint.digest)
    assert capsys.readouterr() == ("out\n", "")
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in source.iterdir())
    card = (out / "README.md").read_text()
    section = SECTION.format(digest=evaluation.digest[:12])
    assert card == CARD.replace("## Licence", section + "\n## Licence")
    same = ("config.json", "model.safetensors", "specc.json")
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in same)
    assert all(path.stat().st_mode & 0o200 and path.stat().st_nlink == 1 for path in out.iterdir())
    said = json.loads((out / "provenance.json").read_text())["subject"]
    assert {one["name"]: one["digest"]["sha256"] for one in said} == {
        path.name: sha256_file(path) for path in out.iterdir() if path.name != "provenance.json"
    }


@pytest.mark.usefixtures("checkpoint")
def test_without_an_evaluation_the_card_is_the_checkpoints(
    tmp_path: Path, checkpoint: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert main(["export", checkpoint.digest[:12], "--to", "out", "--json", "--verifier", "org/tiny"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "no evaluation of it is in the store" in said.err
    assert (found["evaluation"], found["signed"]) == (None, False)
    assert {one["path"]: one["sha256"] for one in found["files"]} == {
        path.name: sha256_file(path) for path in (tmp_path / "out").iterdir()
    }
    assert (tmp_path / "out/README.md").read_text() == CARD
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["speculators_config"]["verifier"] == {"name_or_path": "org/tiny", "architectures": []}


def test_nothing_is_written_over_and_nothing_is_left_half(
    store: Store, checkpoint: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "full", {"mine": "kept"})
    assert main(["export", checkpoint.digest[:12], "--to", "full"]) == 2
    assert "there is something already, and nothing is written over" in capsys.readouterr().err
    before = sorted(tmp_path.iterdir())
    assert main(["export", checkpoint.digest[:12], "--to", "out", "--sign", "no-such-key"]) == 2
    assert "no-such-key: no such file" in capsys.readouterr().err
    damaged = store.path(checkpoint.digest) / "specc.json"
    damaged.chmod(0o644)
    damaged.write_text("{}")
    assert main(["export", checkpoint.digest[:12], "--to", "out"]) == 4
    assert "is damaged" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_head_comes_inside_its_verifier_or_alone(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = build(store, tmp_path / "sources", "mtp")
    assert main(["export", head.digest[:12], "--to", "out"]) == 1
    assert f"the verifier that `{NAME}` is stitched into is not here" in capsys.readouterr().err
    folder = write(tmp_path / "stitched", {"config.json": {"v": 1}, "README.md": "# V\n", "stitched.json": {}})
    seal(store, "stitched", NAME, folder, {}, checkpoint=head.digest)
    assert main(["export", head.digest[:12], "--to", "out"]) == 0
    assert (tmp_path / "out/README.md").read_text() == "# V\n"
    assert (tmp_path / "out/SPECULATOR.md").read_text() == CARD
    assert not (tmp_path / "out/model.safetensors").exists()
    assert main(["export", head.digest[:12], "--to", "head", "--head"]) == 0
    assert (tmp_path / "head/model.safetensors").is_file()
    assert main(["export", head.digest[:12], "--to", "x", "--verifier", "org/tiny"]) == 2
    assert "the verifier itself" in capsys.readouterr().err


def test_a_whole_draft_has_no_head(checkpoint: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", checkpoint.digest[:12], "--to", "x", "--head"]) == 2
    assert "`--head` is for a draft that is stitched" in capsys.readouterr().err


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S607 - as a user would


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Two pairs of keys, and one with a certificate that a root of our own has signed."""
    pytest.importorskip("model_signing")
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("ours", "other", "root"):
        key = str(folder / f"{name}.pem")
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        openssl("ec", "-in", key, "-pubout", "-out", str(folder / f"{name}.pub"))
    openssl("req", "-x509", "-new", "-key", str(folder / "root.pem"), "-subj", "/CN=root", "-days", "2",
            "-addext", "keyUsage=critical,keyCertSign", "-out", str(folder / "root.crt"))  # fmt: skip
    (folder / "ext").write_text("keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n")
    openssl("req", "-new", "-key", str(folder / "ours.pem"), "-subj", "/CN=ours", "-out", str(folder / "ours.csr"))
    openssl("x509", "-req", "-in", str(folder / "ours.csr"), "-CA", str(folder / "root.crt"), "-CAkey",
            str(folder / "root.pem"), "-CAcreateserial", "-days", "2", "-extfile", str(folder / "ext"), "-out",
            str(folder / "ours.crt"))  # fmt: skip
    return folder


def test_a_signature_holds_for_the_bytes_that_were_signed_and_for_no_others(
    checkpoint: Manifest, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", checkpoint.digest[:12], "--to", "out", "--sign", "keys/ours.pem"]) == 0
    signed = tmp_path / "out/model.sig"
    assert str(tmp_path) not in signed.read_text()
    check = ["verify", "--signature", "out", "--key", "keys/ours.pub"]
    capsys.readouterr()
    assert main(check) == 0
    assert capsys.readouterr().err == "every file of out is the one that was signed\n"

    weights = tmp_path / "out/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(check) == 4
    assert capsys.readouterr().out.startswith("Hash mismatch for 'model.safetensors'")
    weights.write_bytes(whole)
    (tmp_path / "out/added.py").write_text("import os\n")
    assert main([*check, "--json"]) == 4
    (line,) = json.loads(capsys.readouterr().out)["differences"]
    assert "added.py" in line
    (tmp_path / "out/added.py").unlink()
    (tmp_path / "out/specc.json").rename(tmp_path / "specc.json")
    assert main(check) == 4
    assert "specc.json" in capsys.readouterr().out
    (tmp_path / "specc.json").rename(tmp_path / "out/specc.json")

    assert main(["verify", "--signature", "out", "--key", "keys/other.pub"]) == 4
    assert "the signature is not one by this key" in capsys.readouterr().out
    text = signed.read_text()
    signed.write_text(text[:200])
    assert main(check) == 4
    signed.write_text(text)
    assert main(check) == 0
    signed.unlink()
    assert main(check) == 1
    assert "the directory has no `model.sig`" in capsys.readouterr().err


def test_a_signature_by_certificate_is_trusted_by_its_root(
    checkpoint: Manifest, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign = [
        "--sign",
        str(keys / "ours.pem"),
        "--certificate",
        str(keys / "ours.crt"),
        "--chain",
        str(keys / "root.crt"),
    ]
    assert main(["export", checkpoint.digest[:12], "--to", "out", *sign]) == 0
    assert main(["verify", "--signature", "out", "--chain", "keys/root.crt"]) == 0
    openssl(
        "req", "-x509", "-new", "-key", "keys/other.pem", "-subj", "/CN=else", "-days", "2", "-out", "keys/else.crt"
    )
    assert main(["verify", "--signature", "out", "--chain", "keys/else.crt"]) == 4
    (tmp_path / "out/README.md").write_text("other words")
    assert main(["verify", "--signature", "out", "--chain", "keys/root.crt"]) == 4
    assert "README.md" in capsys.readouterr().out


@pytest.mark.usefixtures("keys")
def test_keys_that_are_none_are_refused_in_words(
    checkpoint: Manifest,
    keys: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = checkpoint.digest[:12]
    openssl("genrsa", "-out", "keys/rsa.pem", "2048")
    openssl("ec", "-in", "keys/ours.pem", "-aes256", "-passout", "pass:word", "-out", "keys/locked.pem")
    for key in ("rsa.pem", "ours.pub", "locked.pem"):
        assert main(["export", target, "--to", "out", "--sign", f"keys/{key}"]) == 2
        assert f"error: keys/{key}: no private key of an elliptic curve can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("SPECC_SIGN_PASSWORD", "word")
    assert main(["export", target, "--to", "out", "--sign", "keys/locked.pem"]) == 0
    for wrong in ([], ["--key", "keys/ours.pub", "--chain", "keys/root.crt"]):
        assert main(["verify", "--signature", "out", *wrong]) == 2
        assert "name one of `--key PUB` and `--chain CERTIFICATE`" in capsys.readouterr().err
    assert main(["verify", "--signature", "out", "--key", "keys/ours.csr"]) == 2
    assert main(["verify", target, "--key", "keys/ours.pub"]) == 2
    assert main(["export", target, "--to", "o", "--certificate", "keys/ours.crt"]) == 2
    assert "a certificate signs nothing by itself" in capsys.readouterr().err

"""The `speculators` library of the release whose format this is reads what `specc export` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import drafts  # noqa: E402
import mtp_heads  # noqa: E402
from export.test_dflash import DRAFT as DFLASH  # noqa: E402
from export.test_dflash2 import DRAFT as DFLASH2  # noqa: E402
from export.test_dspark import SECTION as DSPARK  # noqa: E402
from export.test_peagle import SECTION as PEAGLE  # noqa: E402
from export.test_xpress import DRAFT as XPRESS  # noqa: E402
from serving import seal  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.cli import main  # noqa: E402
from specc.core.store import Store  # noqa: E402
from specc.evaluate.replay import load_draft  # noqa: E402
from specc.export.config import SPECULATORS_VERSION  # noqa: E402
from specc.train.models.base import Reading  # noqa: E402

pytestmark = [pytest.mark.install, pytest.mark.engine, pytest.mark.full]

STEPS = 4
EAGLE3: dict[str, Any] = {**drafts.EAGLE3, "hidden_state_layers": [2, 4, 5]}
SECTIONS = {"eagle3": EAGLE3, "peagle": PEAGLE, "dflash": DFLASH, "dflash2": DFLASH2, "dspark": DSPARK,
            "xpress": XPRESS}  # fmt: skip
VERIFIERS = ["embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight", "verifier_norm.weight"]
"""What the library's modules have beside a checkpoint's tensors; it reads them from the verifier."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each algorithm, as `specc export` writes it, and inputs of a draft."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("exported")
    store, out = Store(root / "store"), root / "out"
    verifier = make_verifier(root / "verifier", layers=8, dtype="float32")
    made: dict[str, tuple[dict[str, Any], Path, Path]] = {}
    for name, section in SECTIONS.items():
        values = drafts.resolved(verifier, **section)
        values["export"] = {"speculative_tokens": algorithm(name).drafted(section)[0], "dtype": "float32"}
        made[name] = values, drafts.assemble(root / name, values, verifier), verifier
    headed = mtp_heads.make(root / "headed", "qwen3_next")
    made["mtp"] = (
        mtp_heads.resolved("qwen3_next", headed),
        mtp_heads.checkpoint(root / "mtp", "qwen3_next", headed),
        headed,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECC_STORE", str(store.root))
        for name, (values, folder, verifier) in made.items():
            own = seal(store, "verifier", name, verifier, {})
            params = {key: value for key, value in values.items() if key != "evaluate"}
            checkpoint = seal(store, "checkpoint", name, folder, params, verifier=own.digest)
            command = ["export", checkpoint.digest, "--to", str(out / name), "--verifier", str(verifier)]
            assert main([*command, *(["--head"] if name == "mtp" else [])]) == 0
    random = torch.Generator().manual_seed(3)
    count = 1 + 128  # the library pads its masks to blocks of 128 rows, and does not cut them
    ids, aux = torch.randint(384, (count,), generator=random), torch.randn(count, 3, 64, generator=random)
    save_file({"ids": ids, "aux": aux}, out / "inputs.safetensors")
    return out


@pytest.fixture(scope="module")
def read(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the library makes of them: it comes from a registry, beside the engines that are installed."""
    site = tmp_path_factory.mktemp("library")
    wheels = [f"{name}=={SPECULATORS_VERSION}" for name in ("speculators", "hs-connectors")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]
    subprocess.run([*pip, str(site), *wheels], check=True, capture_output=True)
    script = Path(__file__).with_name("library.py")
    done = subprocess.run([sys.executable, str(script), str(exported), str(STEPS)], capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_library_loads_every_algorithm_with_every_tensor_as_it_is(read: dict[str, Any]) -> None:
    assert {name: one["class"] for name, one in read.items()} == {
        "dflash": "DFlashDraftModel", "dflash2": "DFlash2DraftModel", "dspark": "DSparkDraftModel",
        "eagle3": "Eagle3DraftModel", "mtp": "MTPDraftModel", "peagle": "PEagleDraftModel",
        "xpress": "XPressDraftModel",
    }  # fmt: skip
    for name, one in read.items():
        assert (one["differ"], one["unset"]) == ([], []), name
        assert set(one["added"]) <= set(VERIFIERS), name


def test_its_eagle3_proposes_what_ours_does(read: dict[str, Any], exported: Path) -> None:
    from safetensors.torch import load_file

    inputs, verifier = load_file(exported / "inputs.safetensors"), exported.parent / "verifier"
    config = drafts.verifier_config(verifier)
    model = load_draft(exported / "eagle3", verifier, EAGLE3, config, "float32")
    with torch.no_grad():
        ours = model.guesses(Reading(ids=inputs["ids"], aux=inputs["aux"], last=inputs["aux"][:, 0]), STEPS)
    theirs = torch.tensor(read["eagle3"]["drafted"])
    rows = [(row, step) for step in range(STEPS) for row in range(len(theirs) - step)]  # the library pads the others
    assert len({int(theirs[row, step]) for row, step in rows}) > 10
    assert all(ours[row, step] == theirs[row, step] for row, step in rows)

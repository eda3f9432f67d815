"""vLLM drafts with converted folders, and accepts just what the sources' own forward passes have right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import drafts  # noqa: E402
from export.convert import sources  # noqa: E402
from export.convert.serve_converted import PROMPTS  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.algorithms import ALGORITHMS  # noqa: E402

pytestmark = pytest.mark.engine
LAYOUTS = {"eagle3": "eagle3", "peagle": "peagle", "dflash": "dflash", "eagle": "eagle", "eagle, biased": "eagle"}
"""Sources, and the layout of each."""


def likely(layout: str, verifier: Path) -> sources.Written:
    """Return a source that is right at times: few tokens to propose, or what it reads handed on almost as it is.

    The verifier repeats itself, and a mask that is handed on proposes itself.
    """
    known = drafts.habits(verifier, PROMPTS, 4)
    written = {"eagle3": lambda: sources.safeailab(4), "peagle": lambda: sources.peagle(4), "dflash": one_layer,
               "eagle": sources.eagle, "eagle, biased": sources.eagle_biased}[layout]()  # fmt: skip
    if "d2t" in written.tensors:
        tokens = torch.tensor(sorted(known))
        marked = torch.zeros(384, dtype=torch.bool)
        marked[tokens] = True
        written.tensors.update({"d2t": tokens - torch.arange(4), "t2d": marked})
    else:
        quiet = [name for name in written.tensors if name.endswith(("o_proj.weight", "down_proj.weight"))]
        written.tensors.update({name: written.tensors[name] * 0.05 for name in quiet})
    if layout == "dflash":
        written.config["dflash_config"] = {**written.config["dflash_config"], "mask_token_id": known[0]}
    if LAYOUTS[layout] == "eagle":
        del written.tensors["embed_tokens.weight"]
        written.tensors["fc.weight"] = torch.cat((written.tensors["fc.weight"][:, :64] * 0.05, torch.eye(64)), 1)
        biases = [name for name in written.tensors if name.endswith(".bias")]
        written.tensors.update({name: written.tensors[name] * 0.3 for name in biases})
    return written


def one_layer() -> sources.Written:
    """On a CPU vLLM norms the context's keys of all layers by the first one's weights."""
    written = sources.dflash()
    config = {**written.config, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    kept = {name: tensor for name, tensor in written.tensors.items() if not name.startswith("layers.1.")}
    return sources.Written(config, kept)


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Serve all of them in one process: starting vLLM is dear."""
    folder = tmp_path_factory.mktemp("serving")
    verifier = drafts.calm(make_verifier(folder / "verifier", layers=8, dtype="float32"))
    config = drafts.verifier_config(verifier)
    job: dict[str, Any] = {"verifier": str(verifier), "config": config, "drafts": []}
    for name, layout in LAYOUTS.items():
        where = likely(name, verifier).into(folder / name / "source")
        made = sources.convert(folder / name / "stage", where, verifier, config)
        said = json.loads((made / "specc.json").read_text())["resolved"]["draft"]
        serving = ALGORITHMS[layout].serving if layout in ALGORITHMS else {"method": layout}
        job["drafts"].append({
            "layout": layout, "source": str(where), "folder": str(made), "serving": dict(serving),
            "layers": said.get("hidden_state_layers", [0]), "epsilon": config["rms_norm_eps"],
        })  # fmt: skip
    found = drafts.run_script(Path(__file__).with_name("serve_converted.py"), job, folder)
    return dict(zip(LAYOUTS, found, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vllm_accepts_what_the_source_has_right(layout: str, counts: dict[str, dict[str, Any]]) -> None:
    one = counts[layout]
    assert one["identical"]
    assert one["served"][0] > 0
    assert one["served"] == one["reference"]


def test_some_drafts_are_right_so_that_the_counts_say_something(counts: dict[str, dict[str, Any]]) -> None:
    assert all(one["served"][1] > 0 for one in counts.values()), counts

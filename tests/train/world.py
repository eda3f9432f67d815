"""Small artifacts for training, written as `docs/reference/artifacts.md` says, without running a verifier."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from specc.core.algorithms import vocabulary_of
from specc.core.contracts import Input, Progress, StageJob, StageResult, load_event
from specc.core.files import digest_of, directory_digest, entries, pretty, sha256_file
from specc.datagen.encoding import ENCODING, StatesFile
from specc.datagen.hidden_states import read_by_training
from specc.train.data import Corpus
from specc.train.states import OnDisk

HIDDEN, VOCABULARY, SMALL, LAYERS = 64, 96, 48, 6

VERIFIER: dict[str, Any] = {
    "architecture": "LlamaForCausalLM", "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
    "vocab_size": VOCABULARY, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_ids": [2],
}  # fmt: skip

DRAFT: dict[str, Any] = {
    "algorithm": "eagle3", "layers": 1, "decoder": "llama", "vocabulary": SMALL, "hidden_state_layers": [2, 3, 4],
    "norm_before_residual": True, "norm_before_fc": True, "fc_norm": False, "norm_output": True,
    "sliding_window": None, "intermediate_size": 96, "ttt": {"steps": 3, "decay": 1.0}, "init": None,
}  # fmt: skip

PEAGLE: dict[str, Any] = {
    **DRAFT, "algorithm": "peagle", "mask_token": 2, "depths": 3,
    "sampling": {"ratio": 0.7, "floor": 0.2, "anchors": 12},
}  # fmt: skip
"""A draft of whose places every step draws some."""

TRAIN: dict[str, Any] = {
    "epochs": 2, "steps": None, "batch_tokens": 128,
    "optimizer": {"name": "adamw", "learning_rate": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
    "schedule": {"name": "linear", "warmup": 0.05}, "loss": {"kl": 1.0}, "precision": "fp32",
    "gradient_clipping": 1.0, "zero": {"stage": 1, "offload": "none"}, "seed": 42,
}  # fmt: skip


MUON: dict[str, Any] = TRAIN["optimizer"] | {"name": "muon", "momentum": 0.9}


def stream(seed: int) -> torch.Generator:
    """A random stream of its own."""
    return torch.Generator().manual_seed(seed)


@dataclass
class World:
    """Artifacts of a made-up verifier whose next tokens can be read off its hidden states.

    Token t is followed by `follow[t]`; the last hidden state at t points at the embedding of `follow[t]`, and
    so does, mixed by a fixed matrix, each auxiliary state.
    """

    folder: Path
    rows: int = 40
    validation: int = 4
    seed: int = 0
    dtype: torch.dtype = torch.bfloat16
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = stream(self.seed)
        embed = torch.randn(VOCABULARY, HIDDEN, generator=draw)
        norm = torch.rand(HIDDEN, generator=draw) + 0.5
        # A cycle over the draft's vocabulary: every token that is proposed can be proposed.
        known = torch.randperm(VOCABULARY, generator=draw)[:SMALL].sort().values
        follow = torch.arange(VOCABULARY)
        order = known[torch.randperm(SMALL, generator=draw)]
        follow[order] = order.roll(-1)
        mixers = torch.randn(LAYERS, HIDDEN, HIDDEN, generator=draw) / HIDDEN**0.5
        self._verifier(embed, norm)
        self._vocabulary(known)
        ids, masks, offsets, split = [], [], [0], []
        for row in range(self.rows):
            length = int(torch.randint(12, 40, (1,), generator=draw))
            prompt = int(torch.randint(2, 6, (1,), generator=draw))
            token = int(order[int(torch.randint(SMALL, (1,), generator=draw))])
            for place in range(length):
                ids.append(token)
                masks.append(int(place >= prompt))
                token = int(follow[token])
            offsets.append(len(ids))
            split.append(int(row < self.validation))
        tokens = torch.tensor(ids)
        states = embed[follow[tokens]]
        hidden = torch.stack([*(states @ mixers[layer] for layer in DRAFT["hidden_state_layers"]), states / norm], 1)
        hidden += 0.05 * torch.randn(hidden.shape, generator=draw)
        self._shards(tokens, masks, offsets, split, hidden)

    def _verifier(self, embed: torch.Tensor, norm: torch.Tensor) -> None:
        folder = self.folder / "verifier"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        save_file({"model.embed_tokens.weight": embed.to(self.dtype), "model.norm.weight": norm.to(self.dtype)},
                  folder / "model.safetensors")  # fmt: skip

    def _vocabulary(self, known: torch.Tensor) -> None:
        folder = self.folder / "vocabulary"
        folder.mkdir()
        t2d = torch.zeros(VOCABULARY, dtype=torch.bool)
        t2d[known] = True
        save_file({"d2t": known - torch.arange(SMALL), "t2d": t2d}, folder / "vocabulary.safetensors")

    def _shards(
        self, tokens: torch.Tensor, masks: list[int], offsets: list[int], split: list[int], hidden: torch.Tensor
    ) -> None:
        """Two shards, the second with the later half of the rows."""
        middle, index, states = len(split) // 2, [], []
        for shard, (a, b) in enumerate(((0, middle), (middle, len(split)))):
            name, begin, end = f"shards/{shard:05d}.safetensors", offsets[a], offsets[b]
            one, two = self.folder / "tokens" / name, self.folder / "hidden_states" / name
            one.parent.mkdir(parents=True, exist_ok=True)
            two.parent.mkdir(parents=True, exist_ok=True)
            save_file({"input_ids": tokens[begin:end].to(torch.int32),
                       "loss_mask": torch.tensor(masks[begin:end], dtype=torch.uint8),
                       "offsets": torch.tensor(offsets[a : b + 1]) - begin, "row": torch.arange(a, b),
                       "split": torch.tensor(split[a:b], dtype=torch.uint8)}, one)  # fmt: skip
            with StatesFile(two, b - a, hidden.shape[1]) as file:
                for row in range(a, b):
                    mask = torch.tensor(masks[offsets[row] : offsets[row + 1]], dtype=torch.bool)
                    file.add(hidden[offsets[row] :][: read_by_training(mask)].to(self.dtype))
            sizes = {"file": name, "rows": b - a, "tokens": end - begin}
            index.append({**sizes, "sha256": sha256_file(one)})
            states.append({**sizes, "sha256": sha256_file(two), "tokens_sha256": sha256_file(one)})
        (self.folder / "tokens" / "index.json").write_text(pretty({"shards": index}))
        (self.folder / "hidden_states" / "index.json").write_text(
            pretty(
                {
                    "layers": [*DRAFT["hidden_state_layers"], LAYERS],
                    "hidden_size": HIDDEN,
                    "encoding": ENCODING,
                    "dtype": str(self.dtype).removeprefix("torch."),
                    "shards": states,
                }
            )
        )

    def job(
        self,
        name: str,
        *,
        draft: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        save_every: int = 0,
        ranks: int | str = 1,
        earlier: Path | None = None,
        loggers: tuple[str, ...] = (),
        verifier: dict[str, Any] | None = None,
    ) -> Path:
        """Write a job with changes to `DRAFT` and `TRAIN`, its output and work under `name`; return its path.

        It logs to `loggers` in `logs`. A `draft` that names its algorithm is the whole section; `verifier` is
        `verifier.config` if not `VERIFIER`.
        """
        section = draft if draft and "algorithm" in draft else DRAFT | (draft or {})
        params = {
            "draft": section,
            "train": TRAIN | (train or {}) | {"zero": TRAIN["zero"] | (train or {}).get("zero", {})},
            "verifier": {"dtype": "bfloat16", "config": verifier or VERIFIER},
            "data": {"sequence_length": 64, "shuffle": True, "shuffle_window": 32},
        }
        base = self.folder / name
        for folder in ("output", "work", "units"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        before: dict[str, Any] = {}
        if earlier is not None:
            before = {"earlier": {"key": StageJob.load(earlier).key, "work": str(earlier.parent / "work")}}
        logging = {"loggers": loggers, "project": "tiny", "label": "tiny", "log_folder": str(base / "logs")}
        names = ("tokens", "hidden_states", "verifier", "vocabulary")
        inputs = {
            one: Input(path=str(self.folder / one), digest="0" * 64)
            for one in names[: 4 if vocabulary_of(section, VERIFIER) < VOCABULARY else 3]
        }
        job = StageJob(
            stage="draft", version=1, key=digest_of([params, ranks]), params=params,
            facets={"device": "cpu", "threads": 1, "ranks": ranks}, inputs=inputs, files=self.files,
            output=str(base / "output"), work=str(base / "work"), units=str(base / "units"),
            context={"save_every": save_every, **before, **logging},
        )  # fmt: skip
        path = base / "job.json"
        path.write_text(job.dump())
        return path


def corpus(world: World) -> Corpus:
    """What the stage reads of a world."""
    tokens = world.folder / "tokens"
    layers = [*DRAFT["hidden_state_layers"], LAYERS]
    return Corpus(tokens, OnDisk(world.folder / "hidden_states", tokens, layers))


def environment(home: Path) -> dict[str, str]:
    """What the compiler gives a training stage, on one thread."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
    return {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "RANK": "0",
        "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number),
        "PYTHONHASHSEED": "0",
    }  # fmt: skip


def start(job: Path) -> subprocess.Popen[str]:
    """Start the stage as the compiler does: events on its standard output, a log on its standard error."""
    with (job.parent / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "specc.train", str(job)], stdout=subprocess.PIPE, stderr=log, text=True,
            env=environment(job.parent), cwd=job.parent / "work",
        )  # fmt: skip


def kill_after(job: Path, steps: int) -> list[int]:
    """Start the stage and kill it when it is past so many steps; return the processes that stood right below it."""
    process = start(job)
    assert process.stdout is not None
    for line in process.stdout:
        event = load_event(line)
        if isinstance(event, Progress) and event.unit == "steps" and event.done > steps:
            break
    below = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.communicate()
    return below


def finish(job: Path) -> list[Any]:
    """Run the stage to its end and return its events."""
    process = start(job)
    out, _ = process.communicate(timeout=180)
    return [load_event(line) for line in out.splitlines()]


def measured(job: Path) -> dict[str, Any]:
    """Run the stage to its end, which must be a good one, and return its metrics."""
    events = finish(job)
    assert isinstance(events[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    return json.loads((job.parent / "output/metrics.json").read_text())


def assert_learnt(metrics: dict[str, Any], tokens: int, *, chance: float = 0.05) -> dict[str, Any]:
    """Assert that an untrained draft is right by chance and a trained one nearly always; return the best epoch."""
    for place in metrics["initial"]["positions"]:
        assert place["right"] < chance * place["counted"]
    best: dict[str, Any] = metrics["epochs"][metrics["best_epoch"] - 1]
    assert len(best["positions"]) == tokens
    for place in best["positions"]:
        assert place["right_so_far"] > 0.9 * place["counted"] > 50
    assert best["simulated"]["mean_acceptance_length"] > tokens + 0.5
    return best


def digest(job: Path) -> str:
    """Digest of the stage's output."""
    return directory_digest(entries(job.parent / "output"))

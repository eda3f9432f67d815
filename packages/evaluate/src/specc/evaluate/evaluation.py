"""The stage `evaluation`: what a checkpoint does on held-out prompts, in vLLM wherever vLLM runs its algorithm.

The first start of vLLM is also the load check: a checkpoint that vLLM does not run is not built. An algorithm that vLLM
does not run on the device is decoded by `specc.evaluate.decoder`, prompt by prompt: its counts mean the same, its
speeds nothing, and it answers fewer prompts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from specc.core.algorithms import algorithm
from specc.core.errors import SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.stage import Stage
from specc.evaluate.decoder import Decoder
from specc.evaluate.engine import Run, Speculator, answer
from specc.evaluate.lossless import Difference, differences, report
from specc.evaluate.prompts import Asked, prompts_of
from specc.evaluate.reference import Reference
from specc.evaluate.replay import Logits, load_draft, pair, replay

if TYPE_CHECKING:
    from specc.train.models import WalkCounts

UNTRAINED_PROMPTS: Final = 16
"""The untrained draft answers one batch of prompts: it accepts next to nothing, and takes the longest for it."""
DECODED_TOKENS: Final = 1024
"""Tokens that the reference decoder may write with the draft: as many prompts as give no more, at least one.
SmolLM2-135M in bf16 with a draft like EAGLE-3's takes about 0.3 s of a core for a token alone and 0.7 s for a draft and
its verification."""
DECODED_UNTRAINED: Final = 2
"""Prompts of these that the untrained draft answers: it makes about as many drafts as tokens."""
AGREEMENT: Final = 0.05
"""Served and replayed mean acceptance lengths may differ by rounding; by more, something is wired differently."""
ENOUGH_DRAFTS: Final = 500
"""With fewer drafts a near tie or two in bf16 may move the mean acceptance length by as much."""


Runtime = Literal["vllm", "reference"]


def runtime_of(draft: Mapping[str, Any], device: str) -> Runtime:
    """Return what answers prompts with a resolved draft on a device: vLLM where it can."""
    return "vllm" if device in algorithm(draft["algorithm"]).vllm(draft) else "reference"


def room(max_tokens: int, steps: int) -> int:
    """Return the positions behind a prompt that vLLM needs to draft `steps` tokens up to an answer's end.

    It drafts for a whole batch at once, and for none of it if the longest sequence, a draft that is being verified
    included, has no place for a further draft; DFlash reads one token more.
    """
    return max_tokens + 2 * steps + 1


def trained_speculator(stage: Stage, tokens: int) -> Speculator:
    """Return a stage's checkpoint, or the copy of the verifier that it is stitched into, asked for `tokens`."""
    stitched = stage.input("stitched") if "stitched" in stage.job.inputs else None
    serving = algorithm(stage.params["draft"]["algorithm"]).serving
    folder = stitched or stage.input("checkpoint")
    return Speculator(folder=folder, serving=serving, tokens=tokens, verifier=stitched)


def evaluation(stage: Stage) -> None:
    """Write `evaluation.json`; vLLM's speeds go to the run's record.

    Raises `SpeccError` if vLLM cannot load the checkpoint, or if no prompt can be read or fits the verifier.
    """
    Evaluation(stage).run()


class Evaluation:
    """One evaluation: its prompts, its engines' settings, and how far it is."""

    def __init__(self, stage: Stage) -> None:
        params = stage.params
        self.stage = stage
        self.draft: Mapping[str, Any] = params["draft"]
        self.config: Mapping[str, Any] = params["verifier"]["config"]
        self.dtype: str = params["verifier"]["dtype"]
        self.tokens: int = params["export"]["speculative_tokens"]
        self.max_tokens: int = params["evaluate"]["max_tokens"]
        self.room = room(self.max_tokens, self.tokens)
        self.device = str(stage.facets.get("device", "cpu"))
        self.processes = int(stage.facets.get("tensor_parallel", 1))
        self.runtime = runtime_of(self.draft, self.device)
        self.verifier = stage.input("verifier")
        self.checkpoint = stage.input("checkpoint")
        self.plain = self._plain()
        self.seconds: dict[str, float] = {}
        self.done = 0
        self.prompts = self._prompts()
        self.first = self.prompts[: UNTRAINED_PROMPTS if self.runtime == "vllm" else DECODED_UNTRAINED]
        self.exact = self.prompts[: params["evaluate"]["lossless_prompts"]]
        self.length = max(len(prompt) for prompt in self.prompts) + self.room
        fp32 = 0 if self.dtype == "float32" else 2 * len(self.exact)
        self.total = 3 * len(self.prompts) + len(self.first) + fp32

    def run(self) -> None:
        """Measure everything, write the report, and say what looks wrong."""
        trained = trained_speculator(self.stage, self.tokens)
        served = self._answer("speculative", self.prompts, trained)
        plain = self._answer("plain", self.prompts)
        untrained = self._answer("untrained draft", self.first, self._untrained())
        found = differences(plain.answers, served.answers)
        walked, logits = self._replay(served, found)
        lossless = {
            self.dtype: report(len(self.prompts), found, self.dtype, lambda difference: logits[difference.prompt]),
            "fp32": self._fp32(trained, served, plain),
        }
        result = {
            "runtime": self.runtime,
            "speculative_tokens": self.tokens,
            "prompts": len(self.prompts),
            "served": {**served.counts.as_json(), "output_tokens": served.tokens},
            "untrained": {**untrained.counts.as_json(), "output_tokens": untrained.tokens},
            "simulated": {
                "drafts": walked.drafts,
                "accepted": walked.accepted,
                "accepted_per_position": list(walked.accepted_per_position),
                "mean_acceptance_length": walked.mean_acceptance_length,
            },
            "lossless": lossless,
        }
        write_atomic(self.stage.output / "evaluation.json", pretty(result))
        self.stage.record["phases"] = self.seconds
        if self.runtime == "vllm":
            self.stage.record |= {
                "tokens_per_second": {
                    "plain": round(plain.tokens_per_second, 1),
                    "speculative": round(served.tokens_per_second, 1),
                },
                "speed_up": round(served.tokens_per_second / plain.tokens_per_second, 3),
            }
        for doubt in doubts(result, self.draft):
            self.stage.warn(doubt)

    def _plain(self) -> Path:
        """Return the verifier's folder, or one in the work folder with the weights that it has quantised."""
        quantization = self.config.get("quantization")
        if quantization is None:
            return self.verifier
        import torch

        from specc.evaluate.dequantised import write_dequantised

        target = self.stage.work / "dequantised"
        shutil.rmtree(target, ignore_errors=True)
        return write_dequantised(self.verifier, target, quantization, getattr(torch, self.dtype))

    def _prompts(self) -> list[list[int]]:
        """Return the prompts as token ids, less those that do not fit the verifier with a whole answer."""
        limit = self.config["max_position_embeddings"]
        with self._phase("prompts"):
            _, rendered = prompts_of(self.stage, self.verifier)
        fitting = [tokens for tokens in rendered if len(tokens) + self.room <= limit]
        if not fitting:
            raise SpeccError(f"no prompt of `evaluate.prompts` fits the verifier's {limit} positions",
                             hint="shorten the prompts or `evaluate.max_tokens`")  # fmt: skip
        if left := len(rendered) - len(fitting):
            self.stage.warn(f"{left} of {len(rendered)} evaluation prompts are too long for the verifier and left out")
        if self.runtime == "vllm":
            return fitting
        decoded = fitting[: max(1, DECODED_TOKENS // self.max_tokens)]
        self.stage.note(
            f"vLLM does not run {algorithm(self.draft['algorithm']).title} on `{self.device}`: specc's own decoder "
            f"answers {len(decoded)} of {len(fitting)} prompts; it counts as vLLM does, and its speed says nothing"
        )
        return decoded

    def _answer(
        self,
        name: str,
        prompts: Sequence[Sequence[int]],
        speculator: Speculator | None = None,
        dtype: str | None = None,
    ) -> Run:
        """Start an engine, answer the prompts, stop it."""
        engine = "vLLM" if self.runtime == "vllm" else "the reference decoder"
        self.stage.progress(self.done, self.total, "prompts", f"{name}: starting {engine}")
        with self._phase(name):
            if self.runtime == "reference":
                return self._decode(name, prompts, speculator, dtype or self.dtype)
            return answer(
                self.plain if dtype else self.verifier,
                prompts,
                self.max_tokens,
                config=self.config,
                dtype=dtype or self.dtype,
                length=self.length,
                device=self.device,
                done=self._step(name),
                speculator=speculator,
                processes=self.processes,
            )

    def _decode(self, name: str, prompts: Sequence[Sequence[int]], speculator: Speculator | None, dtype: str) -> Run:
        """Answer the prompts with the reference decoder, greedily."""
        import torch

        reference = Reference(self.plain, dtype=dtype, device=self.device)
        decoder = Decoder(
            reference=reference,
            draft=speculator and load_draft(speculator.folder, self.verifier, self.draft, self.config, dtype),
            layers=algorithm(self.draft["algorithm"]).layers(self.draft) if speculator else (),
            steps=self.tokens,
            ends=reference.ends(),
        )
        return decoder.decode_all(prompts, self.max_tokens, torch.Generator(), self._step(name))

    def _step(self, name: str) -> Callable[[], None]:
        """Return what says that one more prompt is done."""

        def step() -> None:
            self.done += 1
            self.stage.progress(self.done, self.total, "prompts", name)

        return step

    def _untrained(self) -> Speculator:
        """Return the draft before its first training step: the verifier's own, or a copy of the checkpoint."""
        trained = trained_speculator(self.stage, self.tokens)
        if trained.verifier is not None:
            return replace(trained, folder=self.verifier, verifier=self.verifier)
        from safetensors.torch import load_file, save_file

        target = self.stage.work / "untrained"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.checkpoint / "config.json", target / "config.json")
        tensors = load_file(self.checkpoint / "model.safetensors")
        initial = load_file(self.stage.input("draft") / "initial.safetensors")
        tensors |= {name: tensor.to(tensors[name].dtype) for name, tensor in initial.items()}
        save_file(tensors, target / "model.safetensors")
        return replace(trained, folder=target)

    def _replay(self, served: Run, found: Sequence[Difference]) -> tuple[WalkCounts, dict[int, Logits | None]]:
        with self._phase("replay"):
            return replay(
                list(zip(self.prompts, served.answers, strict=True)),
                found,
                reference=Reference(self.plain, dtype=self.dtype, device=self.device),
                model=load_draft(self.checkpoint, self.verifier, self.draft, self.config, self.dtype),
                draft=self.draft,
                steps=self.tokens,
                done=self._step("replay"),
            )

    def _fp32(self, trained: Speculator, served: Run, plain: Run) -> dict[str, Any]:
        """Return the fp32 entry of the report; a verifier in fp32 has answered its prompts already."""
        count = len(self.exact)
        if self.exact and self.dtype != "float32":
            served = self._answer("speculative in fp32", self.exact, trained, "float32")
            plain = self._answer("plain in fp32", self.exact, None, "float32")
        found = differences(plain.answers[:count], served.answers[:count])
        logits: dict[int, Logits | None] = {}
        if found:
            reference = Reference(self.plain, dtype="float32", device=self.device)
            for one in found:
                prompt = self.exact[one.prompt]
                row = [*prompt, *plain.answers[one.prompt][: one.position]]
                images = prompt.images if isinstance(prompt, Asked) else ()
                logits[one.prompt] = pair(reference.logits(row, images), one)
        return report(count, found, "float32", lambda difference: logits[difference.prompt])

    @contextmanager
    def _phase(self, name: str) -> Generator[None]:
        """Keep the seconds that a phase took for the run's record."""
        started = monotonic()
        yield
        self.seconds[name] = round(monotonic() - started, 1)


def doubts(result: Mapping[str, Any], draft: Mapping[str, Any]) -> list[str]:
    """Return sentences on what the counts say is wired wrongly, or was not learnt."""
    served, simulated, untrained = (result[name] for name in ("served", "simulated", "untrained"))
    found: list[str] = []
    here, there = served["mean_acceptance_length"], simulated["mean_acceptance_length"]
    if min(served["drafts"], simulated["drafts"]) >= ENOUGH_DRAFTS and abs(here - there) > AGREEMENT:
        layers = ", ".join(str(layer) for layer in algorithm(draft["algorithm"]).layers(draft))
        found.append(
            f"the decoder's mean acceptance length is {here:.3f} and the replayed one {there:.3f}: specc computes this "
            "draft in two ways, and they differ; please report it"
            if result["runtime"] == "reference"
            else f"vLLM's mean acceptance length is {here:.3f} and the replayed one {there:.3f}: vLLM runs this draft "
            f"otherwise than it was trained; look at the hidden-state layers ({layers}), the norm flags "
            "in `config.json` and the verifier's chat template"
        )
    if served["drafts"] and here <= untrained["mean_acceptance_length"]:
        found.append(
            f"the trained draft's mean acceptance length, {here:.3f}, is no better than the untrained one's: "
            "train longer, or on prompts like those of `evaluate.prompts`"
        )
    return found

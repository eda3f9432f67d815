"""What vLLM draws on a CPU when it speculates, with the plugin that its processes load."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import drafts
from specc.evaluate.temperature import expand

pytestmark = pytest.mark.engine

LOGITS = [1.0, 0.3, -0.5, 0.8, 0.0, -1.0]
HEATS = [0.4, 1.0, 1.7]
ROWS = 20_000
SCRIPT = """
import json, sys
from types import SimpleNamespace
import torch
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
load_general_plugins()  # as a worker does
current_platform.register_triton_kernel_overrides()
from vllm.v1.sample.rejection_sampler import apply_sampling_constraints, rejection_sample
logits, heats, rows = json.loads(sys.argv[1])
torch.manual_seed(0)
found = []
for heat in heats:
    asked = SimpleNamespace(all_greedy=False, all_random=True, temperature=torch.full((rows,), heat), top_k=None,
                            top_p=None, generators={})
    ends = torch.arange(1, rows + 1, dtype=torch.int32)
    scaled = apply_sampling_constraints(torch.tensor(logits).repeat(rows, 1), ends, asked)
    drafted, behind = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, 1, dtype=torch.int64)
    drawn = rejection_sample(drafted, [1] * rows, 1, ends, None, scaled, behind, asked)
    found.append((torch.bincount(drawn[:, 0], minlength=len(logits)) / rows).tolist())
print(json.dumps(found))
"""


def test_a_value_a_request_becomes_one_a_token() -> None:
    import torch

    for dtype in (torch.float32, torch.int32):
        output = torch.full((6,), 9, dtype=dtype)
        values = torch.tensor([3, 0, 5], dtype=dtype) / (10 if dtype.is_floating_point else 1)
        expand(output, values.to(dtype), torch.tensor([2, 3, 6], dtype=torch.int32), 0, 1)
        assert output.tolist() == torch.stack([values[0], values[0], values[1] + 1, *[values[2]] * 3]).tolist()


def test_what_is_drawn_with_a_draft_is_what_the_verifier_would_draw(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([LOGITS, HEATS, ROWS])],
        env=drafts.environment(tmp_path), capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for heat, shares in zip(HEATS, json.loads(done.stdout), strict=True):
        weights = [math.exp(logit / heat) for logit in LOGITS]
        for weight, share in zip(weights, shares, strict=True):
            wanted = weight / sum(weights)
            assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / ROWS), (heat, wanted, share)

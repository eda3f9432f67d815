"""MTP heads of every family: packed against plain, against the verifiers' own layers, learnt as a whole stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.algorithms.mtp import pieces  # noqa: E402
from specc.core.contracts import Failure, StageResult  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.core.stage import Stage  # noqa: E402
from specc.train.initial import initial_weights  # noqa: E402
from specc.train.losses import Head, draft_losses  # noqa: E402
from specc.train.models import Batch, Frozen, Reading, accepted_lengths, build, native, trained  # noqa: E402
from specc.train.models.rows import Rows, even, whole  # noqa: E402
from stages import make_job  # noqa: E402
from train.plain_mtp import PlainHead  # noqa: E402
from train.world import HIDDEN, VERIFIER, VOCABULARY, World, finish, stream  # noqa: E402

pytestmark = pytest.mark.engine
F64 = torch.float64
DRAFT: dict[str, Any] = {"algorithm": "mtp", "steps": 3, "decay": 0.6, "init": None}
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
    "norm_topk_prob": True,
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "mimo": {"model_type": "mimo"},
    "qwen3_next": {"model_type": "qwen3_next", "partial_rotary_factor": 0.25, **EXPERTS},
    "unnormalised": {"model_type": "qwen3_5_moe_text", "partial_rotary_factor": 0.5, **EXPERTS,
                     "norm_topk_prob": False},
    "qwen3_5": {"model_type": "qwen3_5_text", "partial_rotary_factor": 0.25},
}  # fmt: skip
DENSE = ("mimo", "qwen3_5")


def facts(name: str) -> dict[str, Any]:
    """`verifier.config` of a small verifier with such a head."""
    return VERIFIER | {"num_nextn_predict_layers": 1} | HEADS[name]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=F64)


def make(name: str, dtype: torch.dtype = F64, draft: dict[str, Any] = DRAFT) -> tuple[Any, PlainHead]:
    """A random head and its twin."""
    verifier = facts(name)
    weights = {
        spec.name: random(*spec.shape, seed=index) * (0.1 if len(spec.shape) > 1 else 0.3)
        + (name == "mimo" and spec.name.endswith("norm.weight"))
        for index, spec in enumerate(trained(draft, verifier))
    }
    embed, head = random(VOCABULARY, HIDDEN, seed=90), random(VOCABULARY, HIDDEN, seed=91)
    norm = random(HIDDEN, seed=92) * 0.2 + 1
    frozen = Frozen(embed.to(dtype), norm, 1e-5, Head(head.to(dtype)), head.to(dtype))
    model = build(draft, verifier, weights, frozen, None)
    if dtype == F64:
        turning = int(16 * verifier.get("partial_rotary_factor", 1.0)) // 2
        model.rotary.frequencies = 10000.0 ** -(torch.arange(turning, dtype=F64) / turning)
    return model, PlainHead(weights, verifier, {"embed": embed, "head": head, "norm": norm})


def document(length: int, prompt: int, seed: int) -> tuple[Reading, Tensor]:
    """A random document, its last states before the norm, and what the assistant wrote of it."""
    ids = torch.randint(VOCABULARY, (length,), generator=stream(seed))
    return Reading(ids, torch.zeros(length, 0, HIDDEN), random(length, HIDDEN, seed=seed)), torch.arange(
        length
    ) >= prompt


def packed(model: Any, documents: list[tuple[Reading, Tensor]]) -> Any:
    return model.pack(
        [reading for reading, _ in documents], model.choose([mask for _, mask in documents], stream(0)), model.normed
    )


def equal(one: Tensor, two: Tensor) -> bool:
    """Equal but for rounding: a product over an expert's rows has as many as chose it."""
    return torch.allclose(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_keys_are_seen_as_drawn(name: str) -> None:
    model, _ = make(name)
    reading, _ = document(5, 0, seed=3)
    before = model.unroll(whole(model.states(reading.last), reading.ids, 2))
    seen: dict[tuple[int, int], str] = {}
    for key in range(4):
        last = reading.last.clone()
        last[key] += 1
        after = model.unroll(whole(model.states(last), reading.ids, 2))
        for step, row in ((0, 1), (0, 2), (1, 1), (1, 2)):
            same = equal(before[step][row], after[step][row])
            seen[step, row] = seen.get((step, row), "") + (". " if same else "x ")
    assert seen == {(0, 1): "x x . . ", (0, 2): "x x x . ", (1, 1): "x x . . ", (1, 2): "x x x . "}
    ids = reading.ids.clone()
    ids[3] = (ids[3] + 1) % VOCABULARY  # what row 2 reads at step 0, and row 1 at step 1: own keys are of its row alone
    after = model.unroll(whole(model.states(reading.last), ids, 2))
    assert [equal(before[0][row], after[0][row]) for row in range(4)] == [True, True, False, False]
    assert [equal(before[1][row], after[1][row]) for row in range(3)] == [True, False, False]


@pytest.mark.parametrize("name", HEADS)
def test_states_equal_serving_one_position_at_a_time(name: str) -> None:
    model, plain = make(name)
    reading, _ = document(9, 3, seed=5)
    states = model.unroll(whole(model.states(reading.last), reading.ids, 3))
    expected = plain.states(reading.ids.tolist(), reading.last, 3)
    assert len(expected) == 8 + 7 + 6
    for (step, row), state in expected.items():
        assert torch.allclose(states[step][row], state, atol=1e-9), (step, row)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_answers_of_two_tokens_is_learnt_from(name: str) -> None:
    model, _ = make(name)
    loss = model(Batch(packed(model, [document(9, 7, seed=3), document(6, 4, seed=4)])), {"kl": 1.0})
    assert torch.isfinite(loss)
    loss.backward()
    assert any(weights.grad.any() for weights in model.parameters() if weights.grad is not None)


@pytest.mark.parametrize("name", HEADS)
def test_training_step_equals_plain_torch(name: str) -> None:
    model, plain = make(name)
    documents = [document(8, 3, seed=20), document(7, 5, seed=30), document(5, 0, seed=40)]
    content = packed(model, documents)
    loss = model(Batch(content), {"ce": 1.0, "kl": 0.5})
    loss.backward()

    for one in plain.w:
        plain.w[one].requires_grad_()
    sums, counts = [0.0] * 3, [0] * 3
    for reading, mask in documents:
        tokens = reading.ids.tolist()
        for (step, row), state in plain.states(tokens, reading.last, 3).items():
            # Counted: the token that the draft starts from and all it proposes up to here are the assistant's.
            if row + 2 + step >= len(tokens) or not mask[row + 1 : row + 3 + step].all():
                continue
            target = plain.rms(reading.last[row + 1 + step]) * plain.final  # whatever the head itself reads
            log_p = (plain.head @ target).log_softmax(0)
            log_q = (plain.head @ state).log_softmax(0)
            sums[step] += 0.5 * (log_p.exp() * (log_p - log_q)).sum() - log_q[log_p.argmax()]
            counts[step] += 1
    assert counts == content[1].counted.sum(1).tolist() == [8, 5, 3]
    weights = [1 / 1.96, 0.6 / 1.96, 0.36 / 1.96]
    assert model.coefficients == pytest.approx(weights)
    expected = sum(weights[k] * sums[k] / counts[k] for k in range(3))
    assert torch.allclose(loss, expected, atol=1e-10)
    expected.backward()
    for one, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain.w[one].grad, atol=1e-9), one


@pytest.mark.parametrize("name", HEADS)
def test_documents_in_another_order_have_the_same_loss(name: str) -> None:
    model, _ = make(name)
    documents = [document(8, 3, seed=20), document(17, 5, seed=30), document(5, 0, seed=40)]
    losses = [
        float(model(Batch(packed(model, [documents[place] for place in order])), {"kl": 1.0}))
        for order in ((0, 1, 2), (2, 0, 1))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_another_document_and_a_later_token_change_nothing(name: str, dtype: torch.dtype) -> None:
    model, _ = make(name, dtype)
    one, two, three, other = document(20, 4, 1), document(31, 9, 2), document(13, 3, 3), document(31, 9, 4)

    def losses(documents: list[tuple[Reading, Tensor]]) -> Tensor:
        rows, targets = packed(model, documents)
        states = [state[where] for state, where in zip(model.unroll(rows), targets.places, strict=True)]
        found = draft_losses(torch.stack(states), targets.normed, model.head, {"kl": 1.0}).losses
        return found.where(targets.counted, 0)

    before, after = losses([one, two, three]), losses([one, other, three])
    assert before.shape[1] == even(15 + 21 + 9)
    same = torch.ones(before.shape[1], dtype=torch.bool)
    same[15 : 15 + 21] = False
    # Experts take as many rows as choose them, of any document: there alone the bits may be others.
    exact, rounding = name in DENSE, 1e-4 if dtype == torch.float32 else 0.1
    if exact:
        assert torch.equal(before[:, same], after[:, same])
    assert torch.allclose(before[:, same], after[:, same], atol=rounding)
    assert (before[:, ~same] != after[:, ~same]).any()

    reading, _ = two
    changed = reading.ids.clone()
    changed[25:] = 7
    later = [whole(model.states(reading.last), ids, 3) for ids in (reading.ids, changed)]
    early, late = (model.unroll(rows) for rows in later)
    for step in range(3):
        assert torch.allclose(early[step][: 24 - step], late[step][: 24 - step], atol=rounding)
        assert not torch.equal(early[step][24 - step], late[step][24 - step])


@pytest.mark.parametrize("name", HEADS)
def test_guesses_and_logits_equal_drafting_with_own_tokens(name: str) -> None:
    model, plain = make(name)
    last, tokens = random(14, HIDDEN, seed=7), [3, 5]
    # A row that goes on as the draft proposes, now and then: each token is the draft's choice after the one before.
    for row in range(12):
        state = plain.states([*tokens, 0], last, 1)[0, row]
        tokens.append(int((plain.head @ state).argmax()) if row % 5 else 7)
    expected = plain.accepted(tokens, last, 3)
    reading = Reading(torch.tensor(tokens), torch.zeros(14, 0, HIDDEN), last)
    guesses = model.guesses(reading, 3)
    assert accepted_lengths(guesses, reading.ids).tolist() == expected
    assert set(expected) >= {0, 1}
    for start in range(13):  # following the logits gives the same proposals, as far as they are right
        drafted = torch.zeros(0, dtype=torch.int64)
        before = Reading(reading.ids[: start + 2], reading.aux[: start + 2], last[: start + 2])
        for _ in range(min(3, expected[start] + 1, 12 - start)):
            drafted = torch.cat((drafted, model.logits(before, drafted).argmax()[None]))
        assert drafted.tolist() == guesses[start, : len(drafted)].tolist(), start

    reading, _ = document(9, 3, seed=5)
    drafted = torch.tensor([8, 3])
    states = plain.states([*reading.ids.tolist(), 8, 3], torch.cat((reading.last, reading.last[:2])), 3)
    for count in range(3):
        found = model.logits(reading, drafted[:count])
        assert torch.allclose(found, plain.head @ states[count, 7], atol=1e-9), count


def test_a_head_equals_the_verifiers_own_layers() -> None:
    """Attention, experts and dense parts against transformers' layers of the families, fp32."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding
    from transformers.models.qwen3_5.modeling_qwen3_5 import (
        Qwen3_5DecoderLayer,
        Qwen3_5TextConfig,
        Qwen3_5TextRotaryEmbedding,
    )
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        Qwen3NextConfig,
        Qwen3NextDecoderLayer,
        Qwen3NextRotaryEmbedding,
    )

    families: dict[str, tuple[Any, Any, Any]] = {
        "mimo": (Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding),
        "qwen3_next": (Qwen3NextConfig, Qwen3NextDecoderLayer, Qwen3NextRotaryEmbedding),
        "qwen3_5": (Qwen3_5TextConfig, Qwen3_5DecoderLayer, Qwen3_5TextRotaryEmbedding),
    }
    for name, (config_of, layer_of, rotary_of) in families.items():
        model, _ = make(name, torch.float32)
        head, verifier = model.mtp_layers[0], facts(name)
        raw = algorithm("mtp").decoder(DRAFT, verifier)
        config = config_of(**{key: value for key, value in raw.items() if key not in {"architectures", "model_type"}})
        config._attn_implementation = "eager"
        layer = layer_of(config, 0).float()
        missing = layer.load_state_dict(head.state_dict(), strict=False)
        assert not missing.missing_keys
        assert {key.split(".")[0] for key in missing.unexpected_keys} == {
            "token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj"
        }  # fmt: skip
        reading, _ = document(9, 3, seed=5)
        (mine,) = model.unroll(whole(model.states(reading.last.float()), reading.ids, 1))

        states, embeds = model.states(reading.last.float())[:8], model.embed_tokens[reading.ids[1:]]
        if name == "mimo":
            embeds[0] = 0
        token, hidden = head.token_layernorm(embeds), head.hidden_layernorm(states)
        x = head.input_proj(torch.cat((hidden, token) if name == "mimo" else (token, hidden), -1))[None]
        places = torch.arange(8)[None]
        causal = torch.full((1, 1, 8, 8), float("-inf")).triu(1)
        out = layer(x, position_embeddings=rotary_of(config)(x, places), attention_mask=causal, position_ids=places)
        out = out[0] if isinstance(out, tuple) else out
        assert torch.allclose(mine, head.final_layernorm(out.view(8, -1)), atol=2e-6), name


def put_head(world: World, name: str, *, seed: int = 4) -> dict[str, Tensor]:
    """Give a world's verifier a random head by its own names; return it by the format's."""
    path, draw = world.folder / "verifier/model.safetensors", stream(seed)
    made = {
        spec.name: torch.randn(spec.shape, generator=draw) * 0.02
        + (name == "mimo" and spec.name.endswith("norm.weight"))
        for spec in trained(DRAFT, facts(name))
    }
    tensors = load_file(path)
    for one, parts in pieces(facts(name), ()).items():
        for piece in parts:
            found = made[one] if piece.expert is None else made[one][piece.expert]
            tensors[piece.name] = (found[slice(*piece.rows)] if piece.rows else found).contiguous()
    save_file(tensors, path)
    return made


@pytest.mark.parametrize("name", HEADS)
def test_the_verifiers_own_head_is_found_by_its_names(name: str, tmp_path: Path) -> None:
    world = World(tmp_path / "w", rows=4, validation=1)
    made = put_head(world, name)
    found = native(DRAFT, facts(name), world.folder / "verifier")
    assert found is not None
    assert found.keys() == made.keys()
    assert all(torch.equal(found[one], made[one]) for one in made)
    path = world.folder / "verifier/model.safetensors"
    place = "model.mtp_layers.0" if name == "mimo" else "mtp.layers.0"
    tensors = load_file(path)
    assert f"{place}.self_attn.q_proj.weight" in tensors
    assert ("mtp.fc.weight" in tensors) == (name != "mimo")
    assert (f"{place}.mlp.experts.3.up_proj.weight" in tensors) == (name not in DENSE)
    save_file(tensors | {f"{place}.self_attn.sinks": torch.ones(2)}, path)
    with pytest.raises(SpeccError, match=r"self_attn\.sinks` of the verifier's MTP head is not known"):
        native(DRAFT, facts(name), world.folder / "verifier")
    save_file({one: value for one, value in tensors.items() if not one.endswith("k_proj.weight")}, path)
    with pytest.raises(SpeccError, match=r"has no tensor `.*k_proj\.weight`"):
        native(DRAFT, facts(name), world.folder / "verifier")
    if name not in DENSE:  # the same experts, all in one tensor
        fused = {one: value for one, value in tensors.items() if ".experts." not in one}
        for part in ("gate_up_proj", "down_proj"):
            fused[f"{place}.mlp.experts.{part}"] = made[f"mtp_layers.0.mlp.experts.{part}"]
        save_file(fused, path)
        again = native(DRAFT, facts(name), world.folder / "verifier")
        assert again is not None
        assert all(torch.equal(again[one], made[one]) for one in made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "the MTP head of a verifier of the family `llama` is not known"),
        ({"num_nextn_predict_layers": 0}, "the verifier has no MTP layer, and `algorithm: mtp` trains one"),
        ({"num_nextn_predict_layers": 3}, "the verifier has 3 MTP layers, and `algorithm: mtp` trains one"),
        (
            {"model_type": "qwen3_next"},
            "`verifier.config.num_experts` is not known, and the verifier's MTP head may have experts",
        ),
    ],
)
def test_a_verifier_without_a_known_head_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpeccError) as caught:
        algorithm("mtp").derive(DRAFT, facts("mimo") | changes)
    assert caught.value.message == message
    assert caught.value.hint


@pytest.mark.parametrize(("name", "precision"), [("mimo", "fp32"), ("qwen3_next", "bf16")])
def test_it_learns_to_draft(name: str, precision: str, tmp_path: Path) -> None:
    world = World(tmp_path / "w", rows=160, validation=8)
    made = put_head(world, name)
    epochs = {"epochs": 4, "precision": precision, "loss": {"ce": 1.0}}
    job = world.job("whole", draft=DRAFT, train=epochs, verifier=facts(name))
    events = finish(job)
    assert isinstance(events[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    initial = load_file(job.parent / "output/initial.safetensors")
    exact = precision == "fp32"
    assert all(torch.equal(initial[one], made[one] if exact else made[one].bfloat16().float()) for one in made)
    metrics = json.loads((job.parent / "output/metrics.json").read_text())
    for step in metrics["initial"]["positions"]:
        assert step["right"] < 0.05 * step["counted"]
    best = metrics["epochs"][metrics["best_epoch"] - 1]
    for step in best["positions"]:
        assert step["right_so_far"] >= 0.9 * step["counted"]
    assert best["coverage"][0] == best["coverage"][1] == best["positions"][0]["counted"]


@pytest.mark.parametrize("name", HEADS)
def test_training_costs_what_the_module_computes(name: str) -> None:
    """Later steps have a few targets less than the first, and are reckoned as it."""
    from torch.utils.flop_counter import FlopCounterMode

    model, _ = make(name, torch.float32)
    content = packed(model, [document(18, 0, seed) for seed in range(64)])
    with FlopCounterMode(display=False) as counter:
        model(Batch(content), {"ce": 1.0}).backward()
    cost = algorithm("mtp").training(DRAFT, facts(name), 18)
    assert counter.get_total_flops() == pytest.approx(64 * 16 * (cost.row + cost.target), rel=0.05)


@pytest.mark.parametrize("name", DENSE)
def test_an_earlier_speculator_goes_before_the_verifiers_head(name: str, tmp_path: Path) -> None:
    world = World(tmp_path / "w", rows=4, validation=1)
    own = put_head(world, name)
    earlier = {one: tensor + 1 for one, tensor in own.items()}
    save_file(earlier, tmp_path / "model.safetensors")
    config = {"speculators_model_type": "mtp", "num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = ("config.json", "model.safetensors")
    for init, expected in ((None, own), ({"files": dict.fromkeys(names, "")}, earlier)):
        params = {"draft": DRAFT | {"init": init}, "verifier": {"config": facts(name)}, "train": {"seed": 0}}
        job = make_job("draft", tmp_path / "job", params, inputs={"verifier": world.folder / "verifier"},
                       files={f"init/{one}": tmp_path / one for one in names})  # fmt: skip
        found = initial_weights(Stage(job, lambda _: None))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[one], expected[one]) for one in found)


def test_a_verifier_that_lacks_its_head_is_reported_in_words(tmp_path: Path) -> None:
    world = World(tmp_path / "w", rows=12, validation=1)
    failure = finish(world.job("none", draft=DRAFT, verifier=facts("mimo")))[-1]
    assert isinstance(failure, Failure)
    assert failure.message.startswith("the verifier has no tensor `model.mtp_layers.0.")
    assert "`draft.init`" in (failure.hint or "")


def test_rounding_up_adds_nothing() -> None:
    model, _ = make("mimo")
    rows, targets = packed(model, [document(8, 3, seed=20)])
    assert (len(rows.positions), targets.counted.shape[1]) == (64, 64)
    assert targets.counted.sum(1).tolist() == [4, 3, 2]
    longer = Rows(
        torch.cat((rows.aux, torch.ones(64, HIDDEN))), torch.cat((rows.tokens, rows.tokens)),
        torch.cat((rows.positions, rows.positions)), rows.documents, rows.queries,
    )  # fmt: skip
    assert torch.equal(model.terms((longer, targets), {"kl": 1.0})[0], model.terms((rows, targets), {"kl": 1.0})[0])

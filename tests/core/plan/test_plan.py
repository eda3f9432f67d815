"""Keys, recipes and decisions: what a change of a value rebuilds, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shelf import ALL, Shelf
from specc.core.lock import machine_class
from specc.core.plan import Decision, PlannedStage, before, decide, lower, runtime_of
from specc.core.plan.stages import pick
from values import values

MACHINE = machine_class("cpu-amx")


def _actions(decisions: list[Decision]) -> dict[str, str]:
    return {item.stage.name: item.action for item in decisions}


def test_the_share_of_trained_tokens_is_asked_by_tokens_alone_and_is_in_no_key_without_it() -> None:
    def rows(filters: Mapping[str, object]) -> dict[str, object]:
        given = {"data.filters": filters} if filters else {}
        return {stage.name: stage.row.params for stage in lower(values(**given), MACHINE).stages}

    plain, length, share, both = rows({}), rows({"min_turns": 2}), rows({"min_trained_share": 0.1}), rows(
        {"min_turns": 2, "min_trained_share": 0.1})  # fmt: skip
    assert share["conversations"] == plain["conversations"]
    assert both["conversations"] == length["conversations"] != plain["conversations"]
    assert length["tokens"] == plain["tokens"]
    assert both["tokens"] == share["tokens"] != plain["tokens"]


def test_loggers_are_in_no_key_and_reach_the_training_alone() -> None:
    silent, told = values(), values()
    told["train"]["loggers"] = ["tensorboard", "wandb"]
    plan, logged = lower(silent, MACHINE), lower(told, MACHINE)
    assert [stage.recipe for stage in logged.stages] == [stage.recipe for stage in plan.stages]
    contexts = {stage.name: stage.row.context for stage in logged.stages if "loggers" in stage.row.context}
    assert contexts == {"draft": {"save_every": silent["train"]["save_every"], "loggers": ["tensorboard", "wandb"],
                                  "project": silent["name"]}}  # fmt: skip
    assert not any(stage.row.reads("train.loggers") for stage in logged.stages)
    assert "loggers" not in str([stage.row.context for stage in plan.stages])


def test_a_grid_is_a_stage_of_its_own_and_moves_no_other_key() -> None:
    grid = {"temperatures": [0.0], "speculative_tokens": [3], "batch_sizes": [1], "repeats": 3}
    plain, measured = lower(values(), MACHINE), lower(values(**{"evaluate.grid": grid}), MACHINE)
    assert {stage.name: stage.recipe for stage in measured.stages if stage.name != "benchmark"} == {
        stage.name: stage.recipe for stage in plain.stages
    }
    named = [{**values()["evaluate"]["prompts"][0], "subset": "mine"}]
    other = lower(values(**{"evaluate.grid": grid, "evaluate.prompts": named}), MACHINE)
    moved = [one.name for one, two in zip(measured.stages, other.stages, strict=True) if one.recipe != two.recipe]
    assert moved == ["benchmark"], "the name of a subset is none of the evaluation's business"


def test_a_first_plan_builds_everything_and_a_second_nothing() -> None:
    shelf, plan = Shelf(), lower(values(), MACHINE)
    assert _actions(decide(plan, shelf)) == dict.fromkeys(ALL, "build")
    assert shelf.build(plan) == ALL
    assert set(_actions(decide(plan, shelf)).values()) == {"hit"}


@pytest.mark.parametrize(
    ("path", "value", "rebuilt"),
    [
        ("train.optimizer.learning_rate", 2e-3, ["draft", "checkpoint", "evaluation"]),
        ("draft.ttt", {"steps": 2, "decay": 1.0}, ["draft", "checkpoint", "evaluation"]),
        ("draft.hidden_state_layers", [1, 3, 4], ["hidden_states", "draft", "checkpoint", "evaluation"]),
        ("draft.vocabulary", 64, ["vocabulary", "draft", "checkpoint", "evaluation"]),
        ("export.speculative_tokens", 2, ["checkpoint", "evaluation"]),
        ("evaluate.max_tokens", 8, ["evaluation"]),
        ("name", "other", ["checkpoint", "evaluation"]),
        ("data.responses", {**values()["data"]["responses"], "max_tokens": 8}, ALL[2:]),
        ("data.sequence_length", 64, ALL[2:]),
        ("checks", {"lossless": True}, []),
        ("train.save_every", 10, []),
        ("runtime.datagen", {"workers": 4}, []),
        ("verifier.model", "./moved-elsewhere", []),
    ],
)
def test_a_change_of_a_value_rebuilds_what_depends_on_it_and_nothing_else(
    path: str, value: object, rebuilt: list[str]
) -> None:
    shelf = Shelf()
    shelf.build(lower(values(), MACHINE))
    assert shelf.build(lower(values(**{path: value}), MACHINE)) == rebuilt


def test_threads_do_not_tokenise_again() -> None:
    shelf = Shelf()
    shelf.build(lower(values(), MACHINE))
    rebuilt = shelf.build(lower(values(**{"runtime.threads": 1}), MACHINE))
    assert "responses" in rebuilt
    assert not {"verifier", "conversations"} & set(rebuilt)


def test_equal_bytes_cut_a_rebuild_short() -> None:
    shelf, same = Shelf(), {"responses": "the same answers"}
    shelf.build(lower(values(), MACHINE), same)
    changed = lower(values(**{"data.responses.seed": 1}), MACHINE)
    assert _actions(decide(changed, shelf))["tokens"] == "build?"
    assert shelf.build(changed, same) == ["responses", "checkpoint", "evaluation"], "the card names the new seed"


def test_the_reason_names_the_value_and_both_of_its_values() -> None:
    shelf = Shelf()
    shelf.build(lower(values(), MACHINE))
    decisions = decide(lower(values(**{"train.optimizer.learning_rate": 2e-3}), MACHINE), shelf)
    (draft,) = [item for item in decisions if item.stage.name == "draft"]
    (change,) = draft.changes
    assert (change.path, change.before, change.after) == ("train.optimizer.learning_rate", 1e-3, 2e-3)


def test_a_full_vocabulary_and_own_answers_leave_their_stages_out() -> None:
    plan = lower(values(**{"draft.vocabulary": 384, "data.responses.from": "data", "evaluate": None}), MACHINE)
    names = [stage.name for stage in plan.stages]
    assert names == ["verifier", "conversations", "tokens", "hidden_states", "draft", "checkpoint"]
    (tokens,) = [stage for stage in plan.stages if stage.name == "tokens"]
    assert tokens.row.inputs["rows"] == "conversations"


def test_every_input_comes_before_its_user() -> None:
    seen: set[str] = set()
    for stage in lower(values(), MACHINE).stages:
        assert set(stage.row.inputs.values()) <= seen
        seen.add(stage.name)


def test_a_verifier_that_is_spread_is_of_another_class_and_one_that_is_not_of_none() -> None:
    """Sums over a layer's parts are in another order: what vLLM computes is another thing, and the draft's is not."""
    name = "runtime.datagen.tensor_parallel"
    plain, alone, spread = (lower(tree, MACHINE) for tree in (values(), values(**{name: 1}), values(**{name: 2})))
    assert (plain.numerics, spread.numerics) == ("cpu-amx-t2-r1", "cpu-amx-t2-r1-v2")
    assert [stage.recipe for stage in plain.stages] == [stage.recipe for stage in alone.stages]
    felt = [stage.name for stage in spread.stages if "tensor_parallel" in stage.facets]
    assert felt == ["responses", "hidden_states", "evaluation"]
    assert all(stage.row.reads(name) == (stage.name in felt) for stage in plain.stages)


@pytest.mark.parametrize("changes", [
    {}, {"runtime.train.ranks": 2, "runtime.datagen.tensor_parallel": 8},
    {"runtime.train.ranks": [{"ranks": 2, "until": 40}, {"ranks": 1, "until": None}],
     "runtime.datagen.tensor_parallel": 2},
])  # fmt: skip
def test_a_class_s_name_says_all_of_the_runtime_that_keys_name(changes: dict[str, object]) -> None:
    plan = lower(values(**changes), MACHINE)
    again = lower(values() | {"runtime": runtime_of(plan.numerics.rpartition("-t")[2])}, MACHINE)
    assert (again.numerics, [stage.recipe for stage in again.stages]) == (
        plan.numerics, [stage.recipe for stage in plan.stages],
    )  # fmt: skip


def test_pick_takes_sub_trees_and_leaves_out_what_it_is_told() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": 4}
    assert pick(tree, "a", without=("a.c.d",)) == {"a": {"b": 1, "c": {"e": 3}}}
    assert pick(tree, "a.c", "f") == {"a": {"c": {"d": 2, "e": 3}}, "f": 4}


def test_a_training_that_changes_its_ranks_takes_up_the_one_that_has_not_yet() -> None:
    """Its key without the last change is that of the plain training: by it a build finds what that has left."""

    def draft(ranks: object) -> PlannedStage:
        plan = lower(values(**{"runtime.train.ranks": ranks}), MACHINE)
        assert plan.numerics.endswith(f"-r{next(one for one in plan.stages if one.name == 'draft').facets['ranks']}")
        return next(stage for stage in plan.stages if stage.name == "draft")

    phases = [{"ranks": 4, "until": 40}, {"ranks": 2, "until": 90}, {"ranks": 1, "until": None}]
    two = [*phases[:1], {"ranks": 2, "until": None}]
    digests = dict.fromkeys(ALL, "0" * 64)
    three, once, plain = draft(phases), draft(two), draft(4)
    assert (three.facets["ranks"], once.facets["ranks"]) == ("4x40+2x90+1", "4x40+2")
    earlier = before(three)
    assert earlier is not None
    assert earlier.key(digests, {}) == once.key(digests, {}) != three.key(digests, {})
    first = before(earlier)
    assert first is not None
    assert first.key(digests, {}) == plain.key(digests, {})
    assert before(plain) is None

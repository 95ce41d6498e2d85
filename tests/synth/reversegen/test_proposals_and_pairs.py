"""ReverseGen's pure half: few-shot prompts, what becomes of proposals, pairs, and records for the target."""

from __future__ import annotations

from collections import Counter

import pytest
from finepref.synth.dedup import normalised
from finepref.synth.engines.protocol import Completion
from finepref.synth.reversegen.few_shots import FewShot, Seed, few_shots
from finepref.synth.reversegen.given_answers import majority
from finepref.synth.reversegen.improve import improvements
from finepref.synth.reversegen.pair import pairs
from finepref.synth.reversegen.propose import proposal
from finepref.synth.reversegen.templates import check_template
from finepref.synth.reversegen.warmup import warmup_row
from hypothesis import given
from hypothesis import strategies as st

SEEDS = [Seed(f"What is {i} + {i}?") for i in range(12)]
SHOWN = FewShot("3-0", "Like these:\n1. What is 1 + 1?", ("What is 1 + 1?",), "What is 2 + 2?")


def row(few_shot: str, text: str, label: bool) -> dict[str, object]:
    return {"few_shot": few_shot, "few_shot_prompt": f"Text of {few_shot}", "prompt": text, "label": label}


texts = st.text("ab ", min_size=1, max_size=2).filter(str.strip)
judged_rows = st.lists(st.builds(row, st.sampled_from(["x", "y", "z"]), texts, st.booleans()), max_size=40)


@given(judged_rows, st.integers(1, 6), st.integers(0, 3))
def test_both_instructions_of_a_pair_are_proposals_for_its_own_few_shot_prompt(rows, per_prompt, seed):
    made = pairs(["x", "y", "z", "none"], rows, per_prompt=per_prompt, seed=seed)
    for pair in made.pairs:
        few_shot = pair.prompt[0].content.removeprefix("Text of ")
        own = {
            label: {r["prompt"] for r in rows if (r["few_shot"], r["label"]) == (few_shot, label)} for label in (0, 1)
        }
        assert pair.chosen in own[False], "the better of the two made the target fail"
        assert pair.rejected in own[True], "the target solved the other"
        assert normalised(pair.chosen) not in map(normalised, own[True])
    assert len({pair.id for pair in made.pairs}) == len(made.pairs)


@given(judged_rows, st.integers(1, 6))
def test_every_few_shot_prompt_is_counted_once_and_has_pairs_if_it_has_both_kinds(rows, per_prompt):
    made = pairs(["x", "y", "z", "none"], rows, per_prompt=per_prompt, seed=0)
    assert made.prompts.total() == 4
    with_pairs = Counter(pair.prompt for pair in made.pairs)
    assert len(with_pairs) == made.prompts["both"]
    assert max(with_pairs.values(), default=0) <= per_prompt


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9))
def test_pairs_are_balanced_over_the_proposals_of_each_kind(failing, solved, per_prompt):
    rows = [row("x", f"f{i}", False) for i in range(failing)] + [row("x", f"s{i}", True) for i in range(solved)]
    made = pairs(["x"], rows, per_prompt=per_prompt, seed=1).pairs
    assert len(made) == min(per_prompt, max(failing, solved))
    for side, count in (("chosen", failing), ("rejected", solved)):
        used = Counter(getattr(pair, side) for pair in made)
        least = min(used.values()) if len(used) == count else 0
        assert max(used.values()) - least <= 1


@given(judged_rows)
def test_pairs_do_not_depend_on_the_order_of_the_prompts(rows):
    first, second = (
        {pair.id: pair for pair in pairs(order, rows, per_prompt=3, seed=5).pairs} for order in ("xyz", "zyx")
    )
    assert first == second


def test_a_text_that_was_judged_both_ways_is_in_no_pair_and_counted():
    rows = [row("x", "a", False), row("x", "A ", True), row("x", "b", True), row("x", "c", False)]
    made = pairs(["x"], rows, per_prompt=9, seed=0)
    assert [(pair.chosen, pair.rejected) for pair in made.pairs] == [("c", "b")]
    assert made.contradictory == 2


def test_equal_few_shot_prompts_keep_proposals_of_their_own():
    """Two groups of one seed more than the shots: of four prompts, two are the same text at the least."""
    made = few_shots(SEEDS[:2], 4, shots=1, seed=0)
    assert len({each.prompt for each in made}) < 4
    proposals = [proposal(each, k, Completion(f"{each.id}/{k}", "New?", "stop")) for each in made for k in range(3)]
    assert len({each.row["id"] for each in proposals}) == 12
    assert Counter(each.row["few_shot"] for each in proposals) == {f"0-{i}": 3 for i in range(4)}


@given(st.integers(1, 60), st.integers(1, 11), st.integers(0, 9))
def test_few_shot_prompts_show_different_seeds_and_never_the_next_one(n, shots, seed):
    for each in few_shots(SEEDS, n, shots=shots, seed=seed):
        assert len({*each.examples, each.next}) == shots + 1
        assert all(example in each.prompt for example in each.examples)
        assert f". {each.next}" not in each.prompt
    first = few_shots(SEEDS, n, shots=shots, seed=seed)
    assert few_shots(SEEDS, n + 5, shots=shots, seed=seed)[:n] == first, (
        "a prompt depends on its number and the seed only"
    )


def test_shots_of_one_prompt_are_of_one_group_and_the_template_can_name_it():
    seeds = [Seed(f"{group} {i}", group) for group in ("art", "law") for i in range(5)]
    made = few_shots(seeds, 20, shots=3, seed=0, template="{count} of {group}:\n{examples}")
    assert {each.group for each in made} == {"art", "law"}
    for each in made:
        assert each.prompt.startswith(f"3 of {each.group}:\n1. {each.group}")
        assert {text.split()[0] for text in (*each.examples, each.next)} == {each.group}


def test_too_few_seeds_are_refused_and_equal_ones_count_once():
    with pytest.raises(ValueError, match="there are 2 different seeds: more than 2 shots are needed"):
        few_shots([*SEEDS[:2], SEEDS[0]], 1, shots=2, seed=0)
    with pytest.raises(ValueError, match="the group 'law' has 1 different seeds"):
        few_shots([*SEEDS, Seed("q", "law")], 1, shots=1, seed=0)


def test_a_warm_up_record_answers_with_a_seed_that_is_not_shown():
    assert warmup_row(SHOWN) == {"id": "3-0", "prompt": SHOWN.prompt, "response": "What is 2 + 2?"}


@pytest.mark.parametrize(
    ("answer", "fate"),
    [
        (Completion("", " What is 3 + 3? \n", "stop"), ("", "")),
        (Completion("", "  ", "stop"), ("invalid", "empty")),
        (Completion("", "What is 3 +", "length"), ("invalid", "truncated")),
        (Completion("", "what is  1 + 1?", "stop"), ("invalid", "copy of an example")),
        (Completion("", error="timed out"), ("unproposed", "engine: timed out")),
    ],
)
def test_a_proposal_is_used_as_it_is_or_left_out_with_the_reason(answer, fate):
    made = proposal(SHOWN, 2, answer, group_field="subject")
    assert (made.kind, made.reason) == fate
    assert made.row["id"] == "3-0-2"
    assert made.row["prompt"] == answer.text.strip()
    assert (made.row["few_shot"], made.row["few_shot_prompt"], made.row["subject"]) == ("3-0", SHOWN.prompt, "")


def test_the_target_learns_good_answers_to_what_it_failed_at():
    judged = [
        {"id": "1", "prompt": "A", "label": False, "chosen": "own"},
        {"id": "2", "prompt": "B", "label": False, "chosen": "own"},
        {"id": "3", "prompt": "C", "label": True, "chosen": "own"},
        {"id": "4", "prompt": "D", "label": False},
        {"id": "5", "prompt": "a ", "label": False, "chosen": "own"},
        {"id": "6", "prompt": "Held out", "label": False, "chosen": "own"},
    ]
    made = [*improvements(judged, {"2": "teacher's"}, exclude=["held OUT"], ask="{prompt}!")]
    assert [record for reason, record in made if not reason] == [
        {"id": "1", "prompt": "A!", "response": "own"},
        {"id": "2", "prompt": "B!", "response": "teacher's"},
    ]
    reasons = [reason for reason, _ in made if reason]
    assert reasons == ["solved", "without a good answer", "proposed before", "excluded"]


def test_solved_instructions_and_the_majority_can_be_taught_too():
    judged = [
        {"id": "1", "prompt": "A", "label": False, "responses": ["x", "y", "Y"]},
        {"id": "2", "prompt": "B", "label": True, "responses": ["x", "x"]},
    ]
    made = [*improvements(judged, {}, template="{majority}, unsure", solved_template="{majority}, sure")]
    assert [record["response"] for _, record in made] == ["y, unsure", "x, sure"]


def test_the_majority_is_the_first_of_the_most_frequent_answers():
    assert majority(["b", "a", "A", "c"]) == "a"
    assert majority(["b", "a"]) == "b"
    assert majority([]) is None


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("no field", r"has no {prompt}"),
        ("{prompt} {other}", r"may have {prompt}"),
        ("{prompt} {0}", "no other braces"),
    ],
)
def test_a_template_with_other_fields_is_refused(template, told):
    with pytest.raises(ValueError, match=told):
        check_template(template, "prompt")

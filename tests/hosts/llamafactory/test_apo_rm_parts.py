"""The pieces of stage `apo_rm` without a run: pairs, metrics, pooling, and what is refused before a model loads."""

from __future__ import annotations

import random

import llamafactory.extras.packages  # noqa: F401 - before trl, which does not import beside transformers 5 without it
import pytest
import torch
from finepref.hosts import reward_metrics
from finepref.hosts.llamafactory import value_head


def test_rewards_and_scores_of_different_shapes_are_refused_not_broadcast():
    """[B, 1] - [B] would compare every record with every other one."""
    scores, present = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2)
    for rewards in (torch.zeros(2, 1), torch.zeros(2), torch.zeros(1, 2), torch.zeros(2, 2, 1)):
        with pytest.raises(ValueError, match=r"must be \[N, R\]"):
            reward_metrics.pairs_of(rewards, scores, present)


def test_every_pair_is_of_one_record_and_absent_responses_are_in_none():
    """Against loops over random lists with ties; absent places hold huge rewards and scores."""
    drawn = random.Random(0)
    rewards, scores = torch.full((20, 5), 1e6), torch.full((20, 5), 1e6)
    present = torch.zeros(20, 5)
    expected = []
    for record in range(20):
        size = drawn.randrange(1, 6)
        present[record, :size] = 1
        for place in range(size):
            rewards[record, place], scores[record, place] = drawn.gauss(0, 1), drawn.randrange(3)
        for i in range(size):
            for j in range(size):
                if scores[record, i] > scores[record, j]:
                    margin, gap = rewards[record, i] - rewards[record, j], scores[record, i] - scores[record, j]
                    expected.append((margin.item(), gap.item(), record))
    found = reward_metrics.pairs_of(rewards, scores, present)
    parts = (found.margin, found.gap, found.record)
    assert sorted(zip(*(part.tolist() for part in parts), strict=True)) == sorted(expected)


def test_metrics_of_two_records_by_hand():
    """Human 1 > 0 with margin 2, right; apo 3 > 1 > 0 with rewards 0, 1, 0: margins -1, 0, 1, of which one is right.

    Better responses have 2, 0, 0, 1: mean 3/4; worse ones 0, 1, 0, 0: 1/4.
    Accuracy 2/4, by gap: 1 -> {2, 1}: 2/2, 2 -> {-1}: 0, 3 -> {0}: 0. Mean reward (2 + 0 + 0 + 1 + 0) / 5.
    """
    rewards = torch.tensor([[2.0, 0.0, 9.0], [0.0, 1.0, 0.0]])
    scores = torch.tensor([[1.0, 0.0, 9.0], [3.0, 1.0, 0.0]])
    found = reward_metrics.metrics(rewards, scores, torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([0, 1]))
    assert found["rewards/mean"] == pytest.approx(0.6)
    accuracies = {name.removeprefix("rewards/"): value for name, value in found.items() if "accuracies" in name}
    assert accuracies == {
        "accuracies": 0.5,
        "accuracies/human": 1.0,
        "accuracies/apo": pytest.approx(1 / 3),
        "accuracies/gap_1": 1.0,
        "accuracies/gap_2": 0.0,
        "accuracies/gap_3": 0.0,
    }
    assert (found["rewards/chosen"], found["rewards/rejected"]) == (pytest.approx(0.75), pytest.approx(0.25))
    assert found["rewards/margins"] == pytest.approx(0.5)


def test_both_orders_of_a_pair_count_so_a_coin_toss_is_calibrated_and_a_sure_error_is_not():
    """All margins 0: probability 1/2, right in half of the orders. Margins of -20: sure of what is never right."""
    for margin, error in ((0.0, 0.0), (-20.0, 1.0), (20.0, 0.0)):
        rewards = torch.tensor([[margin, 0.0]] * 4)
        found = reward_metrics.metrics(rewards, torch.tensor([[1.0, 0.0]] * 4), torch.ones(4, 2), torch.zeros(4))
        assert found["calibration/ece"] == pytest.approx(error, abs=1e-6)


def test_many_score_gaps_are_put_into_four_groups_that_hold_each_pair_once():
    gap = torch.arange(1, 101, dtype=torch.float64)
    groups = reward_metrics.by_gap(gap)
    assert [int(members.sum()) for _, members in groups] == [25, 25, 25, 25]
    assert torch.equal(sum(members.int() for _, members in groups), torch.ones(100, dtype=torch.int32))
    assert [name for name, _ in groups] == ["q1_to_25.8", "q2_to_50.5", "q3_to_75.2", "q4_to_100"]


def test_gaps_that_differ_by_rounding_only_are_one():
    gap = torch.tensor([0.3 - 0.2, 0.2 - 0.1, 0.5], dtype=torch.float64)
    assert [(name, members.tolist()) for name, members in reward_metrics.by_gap(gap)] == [
        ("0.1", [True, True, False]),
        ("0.5", [False, False, True]),
    ]


@pytest.fixture
def reward_model(tiny_model):
    """The tiny model with a value head, as the host loads it."""
    from transformers import AutoModelForCausalLM
    from trl import AutoModelForCausalLMWithValueHead

    torch.manual_seed(1)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model))
    value_head.settle(model, new=True)
    return model.train()


@pytest.mark.parametrize("how", ["last", "eos", "mean", "max"])
def test_pooling_before_the_head_equals_the_plain_forward_over_all_positions(reward_model, how):
    """The plain path: all hidden states and all logits, then a slow loop over each sequence. Gradients too."""
    ids = torch.randint(3, 200, (3, 11))
    attended = torch.ones(3, 11, dtype=torch.int64)
    attended[1, 7:] = attended[2, 3:] = 0
    position = torch.tensor([9, 6, 1])
    with value_head.pooled(reward_model, attended, position, how):
        logits, _, values = reward_model(input_ids=ids, attention_mask=attended)
    assert (logits.shape[:2], values.shape) == ((3, 1), (3, 1))
    values.sum().backward()
    gradients = [parameter.grad for parameter in reward_model.parameters()]
    reward_model.zero_grad()
    plain_logits, _, plain_values = reward_model(input_ids=ids, attention_mask=attended)
    assert plain_values.shape == plain_logits.shape[:2] == (3, 11)
    hidden = reward_model.pretrained_model(input_ids=ids, attention_mask=attended, output_hidden_states=True)
    expected = []
    for states, length, at in zip(hidden.hidden_states[-1], (11, 7, 3), position.tolist(), strict=True):
        kept = states[:length]
        pooled = {"mean": kept.mean(0), "max": kept.max(0).values}.get(how, states[at])
        expected.append(reward_model.v_head.summary(pooled))
    expected = torch.stack(expected)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    if how in ("last", "eos"):
        torch.testing.assert_close(values[:, 0], plain_values.gather(1, position[:, None])[:, 0])
    expected.sum().backward()
    for gradient, parameter in zip(gradients, reward_model.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_head_is_exact_under_autocast_without_dropout_and_what_cannot_learn_is_frozen(reward_model):
    hidden = torch.randn(1, 4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = reward_model.v_head(hidden), reward_model.v_head(hidden)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    frozen = {name for name, parameter in reward_model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pretrained_model.lm_head.weight", "v_head.summary.bias"}
    assert reward_model.v_head.summary.bias.item() == 0


def test_a_folder_without_a_head_is_refused_by_name(reward_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no value_head.safetensors in"):
        value_head.load_head(reward_model, str(tmp_path))


def lists(**fields: object) -> list[dict]:
    """Eight ranked records, the fifth changed."""
    rows = [{"id": f"r{i}", "prompt": f"{i}?", "responses": ["Yes, it is.", "no"], "scores": [1, 0]} for i in range(8)]
    rows[4] |= fields
    return rows


LISTS = {"name": "lists", "formatting": "ranked"}
OPTIONS = {"name": "apo_rm", "dataset": "lists"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"apo_kl_coeff": -1.0}, "`apo_kl_coeff` must not be negative, but is -1.0"),
        ({"apo_coeff": float("nan")}, "`apo_coeff` must be a number, not nan"),
        ({"apo_coeff": "much"}, "`apo_coeff` must be a number, not 'much'"),
        ({"apo_coeff": 0, "apo_kl_coeff": 0}, "`apo_kl_coeff` and `apo_coeff` are both 0, so there is no loss"),
        ({"apo_sample_num": 0}, "`apo_sample_num` must be at least 1, not 0"),
        ({"apo_sample_num": 2.5}, "`apo_sample_num` must be a whole number, not 2.5"),
        ({"apo_loss": "diff"}, "`apo_loss` must be ranking or wgan or plackett_luce, not 'diff'"),
        ({"apo_normalization": "batch"}, "`apo_normalization` must be per_type or released, not 'batch'"),
        ({"apo_pooling": "first"}, "`apo_pooling` must be last or eos or mean or max, not 'first'"),
        ({"stage": "rm", "apo_coeff": 0.5}, "`apo_coeff` is a key of stage apo_rm, not of rm"),
        (
            {"stage": "rm", "apo_kl_coeff": 1.0},
            "the host's stage rm or dpo cannot read ranked; stage apo_rm or dpo_pl can",
        ),
        ({"packing": True}, "`packing` is not for stage apo_rm"),
        (
            {"apo_kl_coeff": 0.0},
            "FP223 dataset kind: all training records are human, and the coefficient of these is 0",
        ),
        (
            {"apo_loss": "wgan"},
            "FP224 dataset kind: `apo_loss: wgan` is for records of kind apo, but the training data has none",
        ),
        ({"apo_loss": "wgan", "apo_coeff": 0}, "`apo_loss: wgan` is the adversarial records' loss, but their"),
        ({"pref_beta": 0.5}, "`pref_beta` does nothing in stage apo_rm, so leave it out"),
        ({"do_predict": True}, "eval_dataset"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "val_size": 2}, "`load_best_model_at_end`"),
    ],
)
def test_bad_options_give_one_clear_line(refused, overrides, message):
    assert message in refused(lists(), LISTS, **OPTIONS | overrides)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"responses": ["Yes, it is."], "scores": [1]}, "FP050", "responses"),
        ({"scores": [1]}, "FP051", "scores"),
        ({"scores": [1, 1]}, "FP052", "scores"),
        ({"kind": "robot"}, "FP053", "kind"),
        ({"scores": [1, None]}, "FP011", "scores[1]"),
    ],
)
def test_a_bad_list_is_named_by_code_line_and_field(refused, fields, code, field):
    assert f"{code} " in (message := refused(lists(**fields), LISTS, cutoff_len=128, **OPTIONS))
    assert f"lists.jsonl:5 {field}:" in message


def test_a_pair_whose_margin_is_not_above_zero_is_refused(refused):
    pairs = [{"prompt": f"{i}?", "chosen": "Yes, it is.", "rejected": "no", "margin": 1.0} for i in range(4)]
    pairs[2]["margin"] = -0.5
    message = refused(pairs, LISTS | {"formatting": "pair"}, **OPTIONS)
    assert "FP220" in message
    assert "lists.jsonl:3 margin: is -0.5, so chosen is not above rejected" in message


def test_feedback_is_refused(refused):
    rows = [{"prompt": f"{i}?", "response": "yes", "label": bool(i % 2)} for i in range(4)]
    assert "FP201" in refused(rows, LISTS | {"formatting": "feedback"}, **OPTIONS)


def test_an_end_token_that_the_template_does_not_write_is_missed_before_the_model_loads(refused, monkeypatch):
    from llamafactory.data import TEMPLATES
    from llamafactory.data.formatter import StringFormatter

    monkeypatch.setattr(TEMPLATES["chatml"], "format_assistant", StringFormatter(slots=["{{content}}\n"]))
    message = refused(lists(), LISTS, apo_pooling="eos", **OPTIONS)
    assert "FP222" in message
    assert "lists.jsonl:1 apo_pooling" in message


def test_apo_score_tokenises_by_a_template_of_the_host(tiny_model):
    """`finepref apo score --template`: the turns as the host's chatml template writes them, with its end token."""
    from finepref.formats.records import Message
    from finepref.hosts.llamafactory.template_tokens import template
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt, response, *_ = template("chatml").encoder(tokenizer)((Message("user", "1 + 1?"),), "It is 2.")
    assert tokenizer.decode(prompt) == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(response).rstrip("\n") == "It is 2.<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"

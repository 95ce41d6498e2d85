"""Stages with token weights: from scores and spans of tokenised pairs to weights and losses, and shared data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from finepref.formats import layouts
from finepref.formats.check import read_records
from finepref.formats.convert import Converter
from finepref.formats.jsonl import write_jsonl
from finepref.formats.problems import BadData
from finepref.formats.ragtruth import read_ragtruth
from finepref.formats.records import parse
from finepref.losses import ld_dpo
from finepref.methods import BUILT_IN, apo_rm, cdpo, confpo, dpo_pl, sepo, simper, tdpo, tgdpo, tis_dpo
from finepref.methods.batches import Lists, Pairs, Ranked, Response
from finepref.methods.options import in_yaml
from finepref.methods.pair_rows import PairRow, ResponseRow, facts, fingerprint, weigh_all, weights_and_scores
from finepref.synth.apo.select import select
from finepref.synth.reversegen.pair import pairs
from waits import Elsewhere

ROOT = Path(__file__).parents[2]
NAN = math.nan
END = 9  # the end token; 8 is what the template writes after it


def response(tokens, scores=None, weights=None):
    """A response of some tokens after a prompt of two."""
    scores = [NAN] * len(tokens) if scores is None else scores
    weights = [1.0] * len(tokens) if weights is None else weights
    annotated, scored = any(weight != 1 for weight in weights), any(score == score for score in scores)
    return ResponseRow([-100, -100, *tokens], [0.0, 0.0, *weights], [NAN, NAN, *scores], annotated, scored)


def row(chosen, rejected, **more):
    return PairRow("a", chosen, rejected, mapped=False, end_token=END, **more)


SCORED = row(
    response([1, 2, 3, END, 8], [1.0, -2.0, 0.5, 4.0, NAN]), response([1, 2, END, 8], [-1.0, 3.0, 3.004, NAN])
)
CONTRAST = row(response([1, 2, END], [0.5, 0.5, 0.5]), response([1, END, 8], [0.25, 1.0, NAN]), contrast=True)


def options_of(method, **given):
    return method.STAGE.options.read("llamafactory", given, in_yaml)


def weights(method, pair, **given):
    """The weights of the response tokens; those of the prompt are 0."""
    found = method.STAGE.weigh(pair, options_of(method, **given), 0)
    assert found.chosen[:2] == found.rejected[:2] == [0.0, 0.0]
    assert found.side == 0
    return found.chosen[2:], found.rejected[2:]


def test_tgdpo_weighs_by_beta_alpha_and_score_and_keeps_negative_weights():
    """1 + 2 x 0.5 x s of chosen, 1 - 2 x 0.5 x s of rejected; 8 has no score, so 1."""
    chosen, rejected = weights(tgdpo, SCORED, pref_beta=0.5, tgdpo_alpha=2.0)
    assert chosen == pytest.approx([2.0, -1.0, 1.5, 5.0, 1.0])
    assert rejected == pytest.approx([2.0, -2.0, 1 - 3.004, 1.0])


def test_tis_dpo_weighs_by_the_papers_exponential():
    chosen, rejected = weights(tis_dpo, SCORED)
    e = math.exp
    assert chosen == pytest.approx([e(1.0), e(-0.5), e(0.5), e(1.5), 1.0])
    assert rejected == pytest.approx([e(0.5), e(-1.5), e(-1.5), 1.0])
    narrow = weights(tis_dpo, SCORED, tis_low=0.0, tis_high=0.5)
    assert narrow[0] == pytest.approx([e(0.5), 1.0, e(0.5), e(0.5), 1.0])


def test_tis_dpo_weighs_by_rank_in_the_released_form_rounded_and_without_the_end():
    """Chosen 1, -2, 0.5: ranks 2, 0, 1. Rejected -(-1), -3: ranks 1, 0."""
    assert weights(tis_dpo, SCORED, tis_weights="rank_based") == (
        pytest.approx([1.3, 0.7, 1.0, 0, 0]),
        pytest.approx([1.3, 0.7, 0, 0]),
    )
    tied = weights(tis_dpo, SCORED, tis_weights="rank_based", tis_end_token=True)
    assert tied[1] == pytest.approx([1.3, 0.7, 0.9, 1.1]), (
        "3.004 is rounded to 3, so -3 twice in their order; then 0 of the last, then 1"
    )
    scaled = weights(tis_dpo, SCORED, tis_weights="threshold_and_scale", tis_scale_low=0.0, tis_scale_high=3.0)
    assert scaled == (pytest.approx([2.5, 0, 2.0, 0, 0]), pytest.approx([2.5, 0, 0, 0]))
    assert weights(tis_dpo, SCORED, tis_weights="binary", tis_share=0.7) == ([1, 0, 1, 0, 0], [1, 0, 0, 0])


def test_cdpo_weighs_the_rejected_tokens_by_one_minus_the_contrast():
    assert weights(cdpo, CONTRAST) == ([1, 1, 1], [0.75, 0.0, 1.0])


def test_each_stage_refuses_the_other_kind_of_scores_and_pairs_without_any():
    plain = row(response([1, 2]), response([3]))
    for method in (sepo, tgdpo, tis_dpo):
        with pytest.raises(
            BadData, match=r"FP262 record a score_kind: .*the stage reads those that `finepref sepo score`"
        ):
            method.STAGE.weigh(CONTRAST, options_of(method), 0)
    with pytest.raises(BadData, match=r"FP262 .* those that `finepref sepo score --contrast` writes"):
        cdpo.STAGE.weigh(SCORED, options_of(cdpo), 0)
    for method in (tgdpo, tis_dpo, cdpo):
        with pytest.raises(BadData, match="FP210 record a chosen_scores: run `finepref sepo score"):
            method.STAGE.weigh(plain, options_of(method), 0)


@pytest.mark.parametrize("method", [tgdpo, tis_dpo, cdpo], ids=lambda method: method.STAGE.name)
def test_scores_of_other_tokens_are_refused_unless_the_option_takes_them(method):
    pair = CONTRAST if method is cdpo else SCORED
    (name,) = (name for name in method.STAGE.options.described("llamafactory") if name.endswith("_map_scores"))
    for change, code in (({"mapped": True}, "FP212"), ({"other_prompt": "scored with template 'x'"}, "FP250")):
        changed = pair._replace(**change)
        with pytest.raises(BadData, match=f"{code} .*`{name}`"):
            method.STAGE.weigh(changed, options_of(method), 0)
        assert method.STAGE.weigh(changed, options_of(method, **{name: True}), 0)


def test_a_response_of_which_every_weight_is_0_is_named():
    sure = CONTRAST._replace(rejected=response([1, END], [1.0, 1.0]))
    with pytest.raises(BadData, match="FP214 record a rejected"):
        cdpo.STAGE.weigh(sure, options_of(cdpo), 0)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        (
            tis_dpo,
            {"tis_weights": "rank_based", "tis_low": -1.0},
            "`tis_low` does nothing with `tis_weights: rank_based`",
        ),
        (tis_dpo, {"tis_low": 2.0}, "`tis_low` must be below `tis_high`, not (2.0, 1.5)"),
        (tis_dpo, {"tis_share": 0.5}, "`tis_share` belongs to `tis_weights: binary`"),
        (tis_dpo, {"tis_scale_low": 2.0}, "`tis_scale_low` must not be above `tis_scale_high`"),
        (tdpo, {"tdpo_ld_alpha": 0.5}, "`tdpo_ld_alpha` weighs whole responses: set `tdpo_masks: none`"),
        (tdpo, {"tdpo_ld_reference": "whole", "tdpo_masks": "none"}, "does nothing without `tdpo_ld_alpha`"),
        (
            tdpo,
            {"tdpo_end_token": True, "tdpo_masks": "none"},
            "`tdpo_end_token` does nothing with `tdpo_masks: none`",
        ),
        (tdpo, {"tdpo_ld_alpha": 0, "tdpo_masks": "none"}, "must be above 0 and at most 1"),
        (apo_rm, {"apo_margins": True, "apo_loss": "plackett_luce"}, "`apo_margins` does nothing with"),
        (apo_rm, {"apo_ties": "breslow"}, "`apo_ties` belongs to `apo_loss: plackett_luce`"),
        (apo_rm, {"apo_loss": "plackett_luce", "apo_normalization": "released"}, "divides by pairs"),
    ],
)
def test_options_that_would_be_ignored_are_refused(method, given, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        options_of(method, **given)
    assert said in str(caught.value)


def test_the_bounds_in_use_are_in_the_receipt():
    def bounds(**given):
        settings = tis_dpo.STAGE.settings_of(options_of(tis_dpo, **given))
        return settings["tis_low"], settings["tis_high"]

    assert bounds() == (-0.5, 1.5)
    assert bounds(tis_weights="threshold_and_scale", tis_high=2.0) == (-1.5, 2.0)
    assert bounds(tis_weights="binary") == (None, None)


def logps(generator, length):
    return -torch.rand(4, length, generator=generator, dtype=torch.float64)


def batch(found, *, fewer=0):
    """Four pairs of random log-probabilities with these weights."""
    generator, sides = torch.Generator().manual_seed(0), []
    for each in (found.chosen, found.rejected):
        weight = torch.tensor([each[1:]] * 4, dtype=torch.float64)
        needed = weight != 0
        values = (torch.where(needed, logps(generator, len(each) - 1), 0.0) for _ in range(3))
        sides.append(Response(next(values), weight, next(values), next(values)))
    return Pairs(*sides, torch.zeros(4, dtype=torch.int64))


NEUTRAL = [
    (tgdpo, SCORED, {"tgdpo_alpha": 0.0}),
    (tis_dpo, SCORED, {"tis_weights": "binary", "tis_end_token": True}),
    (
        tis_dpo,
        SCORED,
        {"tis_weights": "threshold_and_scale", "tis_scale_low": 1.0, "tis_scale_high": 1.0, "tis_end_token": True},
    ),
    (tis_dpo, SCORED, {"tis_low": -1e-12, "tis_high": 0.0}),
    (cdpo, CONTRAST._replace(rejected=response([1, 2, END], [0.0, 0.0, 0.0])), {}),
    (tdpo, SCORED, {"tdpo_variant": "dpo", "tdpo_masks": "none", "tdpo_ld_alpha": 1.0, "tdpo_ld_reference": "whole"}),
    (tdpo, SCORED, {"tdpo_variant": "dpo", "tdpo_masks": "none", "tdpo_ld_alpha": 1.0}),
]


@pytest.mark.parametrize(("method", "pair", "given"), NEUTRAL, ids=lambda each: "")
def test_with_weights_of_1_each_objective_is_stage_tdpo_with_dpo(method, pair, given):
    plain = options_of(tdpo, tdpo_variant="dpo", tdpo_masks="none", pref_beta=0.3)
    expected, _ = tdpo.STAGE.losses(batch(tdpo.STAGE.weigh(pair, plain, 0)), plain)
    options = options_of(method, pref_beta=0.3, **given)
    out, metrics = method.STAGE.losses(batch(method.STAGE.weigh(pair, options, 0)), options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)
    assert set(metrics) == set(method.STAGE.metrics)


@pytest.mark.parametrize("method", [tgdpo, tis_dpo, cdpo, confpo, simper], ids=lambda method: method.STAGE.name)
def test_a_stage_gives_the_metrics_of_its_row_and_reads_a_reference_as_it_says(method):
    pair, options = CONTRAST if method is cdpo else SCORED, options_of(method)
    pairs = batch((method.STAGE.weigh or weigh_all)(pair, options, 0))
    if not method.STAGE.reference:
        pairs = pairs._replace(
            chosen=pairs.chosen._replace(reference=None), rejected=pairs.rejected._replace(reference=None)
        )
    out, metrics = method.STAGE.losses(pairs, options)
    assert set(metrics) == set(method.STAGE.metrics)
    assert out.valid.all()
    assert torch.isfinite(out.loss).all()


@pytest.mark.parametrize("method", [confpo, simper], ids=lambda method: method.STAGE.name)
def test_objectives_without_a_reference_read_spans_only_if_asked(method):
    name = f"{method.STAGE.name}_masks"
    spans, plain = (
        row(response([1, 2, END], weights=[0.0, 1.0, 0.0]), response([4, END])),
        row(response([1]), response([2])),
    )
    assert weights(method, spans) == ([1, 1, 1], [1, 1])
    assert weights(method, spans, **{name: "annotated"}) == ([0, 1, 0], [1, 1])
    with pytest.raises(
        BadData, match=f"FP210 record a rejected_spans: `{name}: annotated` needs spans; `{name}: none`"
    ):
        weights(method, plain, **{name: "annotated"})


def test_confpo_names_the_share_of_tokens_that_it_trains():
    """Probabilities 0.8, 0.2, 0.5: the mean is 0.5, so one of three is below it, and two are not above it."""
    values = torch.tensor([[0.8, 0.2, 0.5]], dtype=torch.float64).log()
    side = Response(values, torch.ones_like(values))
    for rule, share in (("released", 1 / 3), ("paper", 2 / 3)):
        _, metrics = confpo.losses(Pairs(side, side, torch.zeros(1)), options_of(confpo, confpo_rule=rule))
        assert metrics["selected/chosen"].item() == pytest.approx(share)


def test_both_readings_of_ld_dpo_weigh_the_longer_response_beyond_the_shorter():
    """Five and four response tokens; alpha 0.5 from the fifth on."""
    keys = {"tdpo_variant": "dpo", "tdpo_masks": "none", "tdpo_ld_alpha": 0.5}
    assert weights(tdpo, SCORED, **keys) == ([1, 1, 1, 1, 0.5], [1, 1, 1, 1])
    losses = {}
    for reading in ("weighted", "whole"):
        options = options_of(tdpo, tdpo_ld_reference=reading, **keys)
        pairs = batch(tdpo.STAGE.weigh(SCORED, options, 0))
        losses[reading] = tdpo.STAGE.losses(pairs, options)[0]
        m_w, m_l = ((side.weight * side.logps).sum(-1) for side in pairs[:2])
        references = (
            (side.weight * side.reference if reading == "weighted" else side.reference).sum(-1) for side in pairs[:2]
        )
        r_w, r_l = references
        torch.testing.assert_close(losses[reading].chosen_reward, 0.1 * (m_w - r_w), rtol=0, atol=1e-12)
        torch.testing.assert_close(losses[reading].rejected_reward, 0.1 * (m_l - r_l), rtol=0, atol=1e-12)
    assert not torch.equal(losses["weighted"].loss, losses["whole"].loss)
    assert ld_dpo.length_weights(2, 0, alpha=0.5) == [0.5, 0.5]


def test_mask_dpo_keeps_the_end_token_and_the_template_after_it_beside_the_spans():
    spans = row(response([1, 2, 3, END, 8], weights=[0.0, 1.0, 0.0, 0.0, 0.0]), response([4, 5, END, 8]))
    assert weights(tdpo, spans) == ([0, 1, 0, 0, 0], [1, 1, 1, 1])
    assert weights(tdpo, spans, tdpo_end_token=True) == ([0, 1, 0, 1, 1], [1, 1, 1, 1])
    inside = row(response([END, 2, 3, END], weights=[0.0, 1.0, 0.0, 0.0]), response([4]))
    assert weights(tdpo, inside, tdpo_end_token=True)[0] == [0, 1, 0, 1], "the last one ends the response"


def test_an_end_token_that_is_to_be_trained_must_be_there_unless_it_was_cut_off():
    headless = row(response([1, 2, 3], weights=[0.0, 1.0, 0.0]), response([4, 5, END]))
    with pytest.raises(BadData, match=r"FP263 record a chosen: .*`tdpo_end_token`"):
        tdpo.STAGE.weigh(headless, options_of(tdpo, tdpo_end_token=True), 0)
    assert weights(tdpo, headless._replace(cut=True), tdpo_end_token=True) == ([0, 1, 0], [1, 1, 1])
    assert tdpo.STAGE.weigh(headless, options_of(tdpo), 0)


def test_the_reward_model_ranks_whole_lists_by_plackett_luce():
    """Three responses of rewards 0: ln 3 + ln 2; with the last two tied ln 3 (apart) or ln 3 + 2 ln 2 (breslow)."""
    rewards = torch.zeros(2, 3, dtype=torch.float64)
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 1.0]])
    lists = Ranked(rewards, scores, torch.ones(2, 3).bool(), torch.zeros(2).bool(), counts=(2.0, 0.0))
    ln2, ln3 = math.log(2), math.log(3)
    for ties, second in (("apart", ln3), ("breslow", ln3 + 2 * ln2)):
        out, _ = apo_rm.STAGE.losses(lists, options_of(apo_rm, apo_loss="plackett_luce", apo_ties=ties))
        assert out.loss.tolist() == pytest.approx([ln3 + ln2, second])


@pytest.mark.parametrize("ties", ["apart", "breslow"])
def test_dpo_pl_ranks_whole_lists_by_the_log_ratios_of_their_responses(ties):
    """An independent loop in float64 over lists of one to five responses, with ties, in a random order of rows."""
    rng = torch.Generator().manual_seed(4)
    sizes, width = [5, 2, 4, 1, 3, 3], 5
    places = [b * width + r for b, size in enumerate(sizes) for r in range(size)]
    places = [places[i] for i in torch.randperm(len(places), generator=rng).tolist()]
    tokens = torch.randn(2, len(places), 7, generator=rng, dtype=torch.float64)
    scores = torch.randint(0, 3, (6, width), generator=rng).double()
    present = torch.arange(width) < torch.tensor(sizes)[:, None]
    batch = Lists.of_tokens(*tokens, torch.tensor(places), scores, present)
    out, metrics = dpo_pl.STAGE.losses(batch, options_of(dpo_pl, pref_beta=0.4, dpo_pl_ties=ties))
    assert metrics == {}
    for b, size in enumerate(sizes):
        rows = [places.index(b * width + r) for r in range(size)]
        rewards = [0.4 * (math.fsum(tokens[0, row].tolist()) - math.fsum(tokens[1, row].tolist())) for row in rows]
        marks, loss, competes = scores[b].tolist(), 0.0, False
        for k in range(size):
            rivals = [j for j in range(size) if marks[j] < marks[k]]
            rivals += [j for j in range(size) if ties == "breslow" and j != k and marks[j] == marks[k]]
            competes = competes or bool(rivals)
            loss += math.log(1 + math.fsum(math.exp(rewards[j] - rewards[k]) for j in rivals))
        assert out.valid[b].item() == competes
        assert out.loss[b].item() == pytest.approx(loss, abs=1e-12)
        best, worst = (marks.index(end(marks[:size])) for end in (max, min))
        assert out.chosen_reward[b].item() == pytest.approx(rewards[best], abs=1e-12)
        assert out.rejected_reward[b].item() == pytest.approx(rewards[worst], abs=1e-12)
    assert out.valid.tolist().count(True) >= 4


def test_dpo_pl_of_two_responses_is_dpo_of_the_pair():
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 2, 4, 6, generator=rng, dtype=torch.float64)  # policy and reference, two responses
    policy, reference = tokens
    whole = torch.ones(4, 6, dtype=torch.float64)
    sides = (Response(policy[i], whole, reference[i]) for i in range(2))
    pairs_ = Pairs(*sides, torch.zeros(4, dtype=torch.int64))
    given = {"tdpo_variant": "dpo", "tdpo_masks": "none", "pref_beta": 0.3}
    expected, _ = tdpo.STAGE.losses(pairs_, options_of(tdpo, **given))
    scores = torch.tensor([[0.2, 0.1]]).expand(4, 2)
    lists = Lists(policy.sum(-1).T, reference.sum(-1).T, scores, torch.ones(4, 2).bool())
    found, _ = dpo_pl.STAGE.losses(lists, options_of(dpo_pl, pref_beta=0.3))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.tolist() == pytest.approx(theirs.tolist(), abs=1e-12)


@pytest.mark.parametrize("given", [{"apo_loss": "plackett_luce", "apo_ties": "breslow"}, {"apo_margins": True}])
def test_a_loss_of_lists_asks_an_accelerator_for_no_value(given):
    """The device "meta" has no values: asking for one fails."""
    rewards = torch.zeros(2, 3, device="meta", requires_grad=True)
    scores, present = torch.zeros(2, 3, device="meta"), torch.ones(2, 3, device="meta").bool()
    lists = Ranked(rewards, scores, present, torch.zeros(2, device="meta").bool(), counts=(2.0, 0.0))
    with Elsewhere():
        out, _ = apo_rm.STAGE.losses(lists, options_of(apo_rm, **given))
        out.loss.sum().backward()
    assert rewards.grad.device.type == "meta"


def test_a_reward_model_with_margins_asks_for_a_lead_and_for_the_margin_of_each_pair():
    """Gap 1 of the rewards, gap 3 of the scores: -log sigmoid(1 - 3)."""
    lists = Ranked(
        torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0, 0.0]]), torch.ones(1, 2).bool(), torch.zeros(1).bool()
    )
    options = options_of(apo_rm, apo_margins=True)
    assert apo_rm.STAGE.losses(lists, options)[0].loss.item() == pytest.approx(math.log1p(math.exp(2)))
    without, given = (
        parse({"id": "a", "prompt": "p", "chosen": "x", "rejected": "y"} | more, "pair")
        for more in ({}, {"margin": 2})
    )
    (problem,) = apo_rm.STAGE.check_record(without, options)
    assert (problem.code, problem.field) == ("FP264", "margin")
    assert apo_rm.STAGE.check_record(given, options) == []
    assert apo_rm.STAGE.check_record(without, options_of(apo_rm)) == []


MARGINS = [
    (tdpo, {"tdpo_pair_margins": True, "tdpo_masks": "none", "tdpo_variant": "dpo"}, 2.5),
    (tdpo, {"tdpo_pair_margins": True, "tdpo_masks": "none", "tdpo_variant": "tdpo1"}, 2.5),
    (tdpo, {"tdpo_pair_margins": True, "tdpo_masks": "none"}, 2.5),
    (sepo, {"sepo_pair_margins": True, "sepo_selection": "all", "sepo_margin": 0.5}, 3.0),
]


@pytest.mark.parametrize(("method", "given", "lead"), MARGINS, ids=["dpo", "tdpo1", "tdpo2", "sepo"])
def test_with_margins_the_chosen_response_must_lead_by_that_of_its_pair(method, given, lead):
    """-log sigmoid(z - m) of each pair; z is where the loss without any margin is -log sigmoid(z)."""
    pair, options = SCORED._replace(margin=2.5), options_of(method, **given)
    bare = options_of(method, **{name: value for name, value in given.items() if "margin" not in name})
    found = method.STAGE.weigh(pair, options, 0)
    assert (found.margin, method.STAGE.weigh(pair, bare, 0).margin) == (2.5, 0.0)
    without = method.STAGE.losses(batch(found), bare)[0].loss
    z = -torch.log(torch.expm1(without))
    out = method.STAGE.losses(batch(found)._replace(margin=torch.full((4,), 2.5)), options)[0]
    torch.testing.assert_close(out.loss, torch.log1p(torch.exp(lead - z)), rtol=0, atol=1e-9)
    with pytest.raises(BadData) as raised:
        method.STAGE.weigh(SCORED, options, 0)
    (problem,) = raised.value.problems
    assert (problem.code, problem.field) == ("FP264", "margin")


def test_a_row_has_the_margin_of_its_pair_and_none_where_the_data_has_none(tokenizer):
    for given, expected in (({}, None), ({"margin": 2}, 2.0)):
        record = parse({"id": "a", "prompt": "p", "chosen": "x", "rejected": "y"} | given, "pair")
        about = facts(record, tokenizer, [1], "a template")
        lists = {f"{side}_{name}": [1] for side in ("chosen", "rejected") for name in ("labels", "weight", "score")}
        assert PairRow.of(about | lists).margin == expected


# ---- joins: one data set feeds several objectives ----


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer with an end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert made.eos_token_id == len(alphabet)
    return made


def tokenised(record, tokenizer):
    """A record as a PairRow: the prompt is one token, each response its text and the end token."""
    made, problems = facts(record, tokenizer, [1], "plain"), []
    for side in ("chosen", "rejected"):
        encoded = tokenizer(getattr(record, side), return_offsets_mapping=True)
        ids = [*encoded["input_ids"], tokenizer.eos_token_id]
        weight, score = weights_and_scores(
            record, side, len(ids), 0, encoded["offset_mapping"], tokenizer=tokenizer, problems=problems
        )
        made[f"{side}_labels"], made[f"{side}_weight"], made[f"{side}_score"] = (
            [-100, *ids],
            [0.0, *weight],
            [NAN, *score],
        )
    assert problems == []
    return PairRow.of(made)


def recipe(name):
    """The stage of a recipe and its options as the YAML sets them."""
    keys = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    stage = next(each for each in BUILT_IN if each.name == keys["stage"])
    known = stage.options.described("llamafactory")
    return stage, stage.options.read(
        "llamafactory", {key: value for key, value in keys.items() if key in known}, in_yaml
    )


def trained(name, record, tokenizer):
    """The characters of chosen and of rejected that a recipe trains on, "$" for the end token; the loss is finite."""
    stage, options = recipe(name)
    pair = tokenised(record, tokenizer)
    found = (stage.weigh or weigh_all)(pair, options, 0)
    out, _ = stage.losses(batch(found), options)
    assert torch.isfinite(out.loss).all()
    assert out.valid.all()
    texts = ((found.chosen[1:], f"{record.chosen}$"), (found.rejected[1:], f"{record.rejected}$"))
    return tuple("".join(c for w, c in zip(weight, text, strict=True) if w != 0) for weight, text in texts)


def test_one_score_file_feeds_sepo_tgdpo_and_tis_dpo_by_their_recipes(tokenizer):
    row = {"prompt": "p", "chosen": "good", "rejected": "bad", "tokenizer": fingerprint(tokenizer)}
    row |= {"chosen_scores": [0.1, 0.4, -0.2, 0.0, 0.5], "rejected_scores": [0.3, -0.6, 0.2, 0.1]}
    record = parse(row, "scored_pair")
    assert trained("sepo", record, tokenizer) == ("$", "a"), "the share 0.3 of five and of four tokens"
    assert trained("tgdpo", record, tokenizer) == ("good$", "bad$")
    assert trained("tis_dpo", record, tokenizer) == ("good", "bad"), "the released form gives the end token 0"
    contrast = parse(
        row | {"score_kind": "contrast", "chosen_scores": [0.5] * 5, "rejected_scores": [1, 0, 0.5, 0]}, "scored_pair"
    )
    assert trained("cdpo", contrast, tokenizer) == ("good$", "ad$")


def test_injected_errors_feed_mask_dpo_and_step_dpo(tokenizer):
    row = {
        "prompt": "2+2?",
        "chosen": "It is 4.",
        "negatives": {"correctness": "It is 5."},
        "spans": {"correctness": [{"start": 6, "end": 7}]},
    }
    (record,) = Converter("span_pair", types=("correctness",)).run([("f", 1, parse(row, "negatives"))])
    assert trained("mask_dpo", record, tokenizer) == ("It is 4.$", "5$")
    assert trained("step_dpo", record, tokenizer) == ("It is 4.$", "5")


def layout_record(name, row):
    parsed = layouts.reader(name)(row, line=1)
    return parsed[0] if isinstance(parsed, tuple) else parsed


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "finegrained_rlhf",
            {
                "question": "Q",
                "passages": [],
                "prediction 1": "It is Lyon.",
                "feedback": {
                    "errors": [{"error type": "Wrong-Grounding", "start": 6, "end": 10}],
                    "corrected-prediction": "It is Paris.",
                },
                "preference": [1, 0, 2, 1, 0, 2],
            },
            ("It is Paris.$", "Lyon$"),
        ),
        (
            "anah",
            {
                "prompt": [{"role": "user", "content": "Q"}],
                "chosen": [{"role": "assistant", "content": "A. B."}],
                "chosen_item": {"sents": ["A.", " B."], "type": ["no_hallucination", "hallucination"]},
                "rejected": [{"role": "assistant", "content": "C. D."}],
                "rejected_item": {"sents": ["C.", " D."], "type": ["no_hallucination", "hallucination"]},
            },
            ("A.$", " D.$"),
        ),
    ],
)
def test_public_sets_with_spans_feed_mask_dpo(tokenizer, name, row, expected):
    assert trained("mask_dpo", layout_record(name, row), tokenizer) == expected


def test_prm800k_and_math_step_dpo_feed_step_dpo_without_the_steps_before(tokenizer):
    row = {"prompt": "2+3*4?", "initial_reason_steps": "3*4=12.\n", "chosen": "2+12=14.", "rejected": "2+12=15."}
    assert trained("step_dpo", layout_record("math_step_dpo", row), tokenizer) == ("2+12=14.", "2+12=15.")
    steps = [
        {"completions": [{"text": "3*4=12.", "rating": 1}], "human_completion": None, "chosen_completion": 0},
        {
            "completions": [{"text": "2+12=14.", "rating": 1}, {"text": "2+12=15.", "rating": -1}],
            "human_completion": None,
            "chosen_completion": 0,
        },
    ]
    problem = {"question": {"problem": "2+3*4?", "ground_truth_answer": "14"}, "label": {"steps": steps}}
    assert trained("step_dpo", layout_record("prm800k", problem), tokenizer) == ("2+12=14.", "2+12=15.")


def test_ragtruth_feeds_mask_dpo(tokenizer, tmp_path):
    mark = {"start": 6, "end": 10, "text": "Elbe", "label_type": "Evident Conflict"}
    responses = [
        {"id": "0", "source_id": "a", "labels": [mark], "response": "It is Elbe."},
        {"id": "1", "source_id": "a", "labels": [], "response": "The Rhine."},
    ]
    write_jsonl(tmp_path / "response.jsonl", responses)
    write_jsonl(tmp_path / "source_info.jsonl", [{"source_id": "a", "task_type": "QA", "prompt": "Q?"}])
    rows = read_ragtruth(tmp_path / "response.jsonl", tmp_path / "source_info.jsonl")
    (record,) = (record for row in rows for record in row.records)
    assert trained("mask_dpo", record, tokenizer) == ("The Rhine.$", "Elbe$")


@pytest.mark.parametrize("name", ["confpo", "simper"])
def test_pairs_of_reversegen_and_of_apo_feed_the_objectives_without_a_reference(tokenizer, tmp_path, name):
    proposals = [
        {"few_shot": "0", "few_shot_prompt": "Ask.", "prompt": text, "label": label}
        for text, label in (("Hard?", False), ("Easy?", True))
    ]
    (record,) = pairs(["0"], proposals, per_prompt=1, seed=0).pairs
    assert trained(name, record, tokenizer) == ("Hard?$", "Easy?$")
    assert trained(name, selected(tmp_path, "pair"), tokenizer) == ("b$", "a$")


def selected(folder, target):
    """The record that `finepref apo select` makes of three scored samples."""
    scored = {"id": "x", "prompt": "p", "responses": ["a", "b", "c"], "rewards": [-3.0, -1.0, -2.0]}
    write_jsonl(folder / "scored.jsonl", [scored])
    select(folder / "scored.jsonl", folder / "out.jsonl", target=target)
    (record,) = read_records(folder / "out.jsonl", target)
    return record


def test_rankings_of_apo_feed_plackett_luce(tmp_path):
    record = selected(tmp_path, "ranked")
    assert record.responses == ("b", "c", "a")
    stage, options = recipe("plackett_luce")
    scores = torch.tensor([record.scores])
    lists = Ranked(torch.zeros_like(scores), scores, torch.ones(1, 3).bool(), torch.zeros(1).bool())
    assert stage.losses(lists, options)[0].loss.item() == pytest.approx(math.log(3) + math.log(2))


@pytest.mark.parametrize(
    "name", ["tgdpo", "tis_dpo", "cdpo", "mask_dpo", "step_dpo", "confpo", "simper", "plackett_luce", "dpo_pl"]
)
def test_a_recipe_sets_only_options_that_its_stage_has(name):
    stage, options = recipe(name)
    keys = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    own = [key for key in keys if key.partition("_")[0] in {*stage.name.split("_")}]
    assert {*own} <= {*stage.options.described("llamafactory")}
    assert stage.settings_of(options)

"""Options: one checker for every method, and the spelling of each host."""

from __future__ import annotations

from functools import partial

import pytest
from finepref.hosts.openrlhf.command_line import flag_of, spelled
from finepref.methods import BUILT_IN, sepo, tdpo
from finepref.methods.options import HOSTS, in_yaml
from finepref.methods.seapo_kto import STAGE as SEAPO

by_host = pytest.mark.parametrize("host", HOSTS)


@by_host
@pytest.mark.parametrize("stage", BUILT_IN, ids=lambda stage: stage.name)
def test_every_default_passes_its_own_check_and_has_a_help(stage, host):
    options = stage.options.read(host, {}, in_yaml)
    for name, option in stage.options.described(host).items():
        assert option.help
        assert getattr(options, name) == option.default


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seapo_error_types": None}, "`seapo_error_types` must be a text, not None"),
        ({"seapo_error_types": "logic,,x"}, "`seapo_error_types` has an empty name"),
        ({"seapo_error_types": ["logic", 3]}, "`seapo_error_types` must be a text, not"),
        ({"seapo_auto_weights": "false"}, "`seapo_auto_weights` must be true or false, not 'false'"),
        ({"seapo_resample": "never"}, "`seapo_resample` must be epoch or once, not 'never'"),
        ({"pref_beta": 0}, "`pref_beta` must be above 0, not 0"),
        ({"pref_ftx": -1.0}, "`pref_ftx` must not be negative, but is -1.0"),
        ({"kto_chosen_weight": float("inf")}, "`kto_chosen_weight` must be a number, not inf"),
    ],
)
def test_what_yaml_lets_through_is_refused_in_one_line(given, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        SEAPO.options.read("llamafactory", given, in_yaml)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_list_of_names_is_a_comma_list():
    options = SEAPO.options.read("llamafactory", {"seapo_error_types": ["logic", "correctness"]}, in_yaml)
    assert options.error_types == ("logic", "correctness")


@pytest.mark.parametrize(
    ("stage", "name", "flag"),
    [
        (sepo.STAGE, "sepo_ratio_chosen", "--selective.ratio_chosen"),
        (sepo.STAGE, "finepref_full_logits", "--selective.full_logits"),
        (tdpo.STAGE, "tdpo_alpha", "--tdpo.alpha"),
        (tdpo.STAGE, "pref_beta", "--model.beta"),
        (SEAPO, "seapo_error_types", "--kto.error_types"),
        (SEAPO, "kto_chosen_weight", "--kto.chosen_weight"),
    ],
)
def test_an_option_has_a_flag_of_its_stages_group_or_the_hosts_own(stage, name, flag):
    assert flag_of(stage, name) == flag


def test_a_message_has_the_flags_of_openrlhf_and_leaves_paths_and_values_alone():
    """A key was once replaced wherever it stood, so that the folder tdpo_alpha became a flag too."""
    flags = {name: flag_of(tdpo.STAGE, name) for name in tdpo.STAGE.options.described("openrlhf")}
    with pytest.raises(ValueError, match=r"^--tdpo.alpha belongs to tdpo2; tdpo1 has none, so leave it out$"):
        tdpo.STAGE.options.read("openrlhf", {"tdpo_variant": "tdpo1", "tdpo_alpha": 0.5}, partial(spelled, flags))
    assert spelled(flags, "tdpo_masks", "none") == "--tdpo.masks none"
    assert spelled(flags, "runs/tdpo_alpha/x.jsonl") == "runs/tdpo_alpha/x.jsonl"


@by_host
def test_the_settings_of_a_run_are_every_option_as_resolved(host):
    released = sepo.STAGE.options.read(host, {"sepo_preset": "released"}, in_yaml)
    settings = sepo.STAGE.settings_of(released)
    assert settings.keys() == sepo.STAGE.options.described(host).keys()
    assert (settings["sepo_gamma"], settings["sepo_margin"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weight"),
    [(4, 8, 2.0), (6, 2, 4 / 9), (5, 4, 1.0), (7, 7, 1.0), (3, 0, 1.0), (0, 3, 1.0)],
)
def test_the_rule_for_weights_counts_the_responses_that_there_are(desirable, undesirable, weight):
    """By hand: w_D n_D / n_U must lie in [1, 4/3], else w_D moves to the nearer end. One kind alone has no ratio."""
    ruled = SEAPO.options.read("llamafactory", {"seapo_auto_weights": True}, in_yaml)
    given = SEAPO.options.read("llamafactory", {}, in_yaml)
    for options in (ruled, given):
        options.count_responses(desirable, undesirable)
    assert SEAPO.settings_of(ruled)["kto_chosen_weight"] == pytest.approx(weight)
    assert SEAPO.settings_of(given)["kto_chosen_weight"] == 1.0
    assert bool(given.advice) == (weight != 1.0)
    assert ruled.advice == ""


def test_a_thousand_responses_of_each_kind_have_the_weights_of_one_to_the_last_bit():
    one, many = (SEAPO.options.read("openrlhf", {"seapo_auto_weights": True}, in_yaml) for _ in range(2))
    one.kto_chosen_weight = many.kto_chosen_weight = 0.1
    many.count_responses(1000, 1000)
    assert SEAPO.settings_of(many) == SEAPO.settings_of(one)

"""The comparison with a record: what it reports, what it allows on another CPU, and that the records are complete."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from recorded import recorded, script

HOSTS = script.HOSTS
ULP = 2.0**-52


def record(**run: object) -> dict:
    """A record with one run."""
    made = {"arithmetic": "this CPU", "made": {"tokenizer_sha256": "t"}, "runs": {"tdpo": run}}
    return script.hexed(made)


def on_another_cpu(found: dict) -> dict:
    """The same as if another CPU had made it."""
    return found | {"arithmetic": "another CPU"}


def test_equal_runs_have_no_differences():
    one = record(log=[{"loss": 0.5, "step": 1}], receipt={"draws": {"digest": "ab"}})
    assert script.differences(one, copy.deepcopy(one)) == []


def test_a_float_that_differs_in_its_last_bit_is_reported_where_the_cpu_rounds_alike_only():
    one, other = record(log=[{"loss": 1.0}]), record(log=[{"loss": 1.0 + ULP}])
    assert script.differences(one, other) == ["tdpo.log[0].loss: recorded 1.0, now 1.0000000000000002"]
    assert script.differences(one, on_another_cpu(other)) == []


def test_a_float_that_differs_by_more_than_the_tolerance_is_reported_everywhere():
    one, near, far = (record(log=[{"loss": loss}]) for loss in (0.5, 0.5004, 0.5006))
    assert script.differences(one, on_another_cpu(near)) == []
    assert script.differences(one, on_another_cpu(far)) == ["tdpo.log[0].loss: recorded 0.5, now 0.5006"]


def test_the_tolerance_is_that_of_the_stage_of_the_run():
    one, other = record(log=[{"loss": 0.5}]), on_another_cpu(record(log=[{"loss": 0.5001}]))
    for found in (one, other):
        found["runs"]["sepo_all"] = found["runs"]["tdpo"]
    assert script.differences(one, other) == ["sepo_all.log[0].loss: recorded 0.5, now 0.5001"]


def test_a_run_that_failed_is_a_difference():
    assert script.differences(record(), record(failed="its output")) == ["tdpo: the run failed:\nits output"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"receipt": {"draws": {"digest": "ab"}}}, {"receipt": {"draws": {"digest": "ac"}}}),
        ({"receipt": {"rows": {"read": 40}}}, {"receipt": {"rows": {"read": 41}}}),
        ({"receipt": {"rows": {"read": 1}}}, {"receipt": {"rows": {"read": True}}}),
        ({"calls": {"weight": {"sha256": "1"}}}, {"calls": {"weight": {"sha256": "2"}}}),
        ({"log": [1, 2]}, {"log": [1, 2, 3]}),
        ({"log": [], "calls": {}}, {"log": []}),
        ({"log": []}, {"log": [], "calls": {}}),
        ({"log": None}, {"log": 0.5}),
    ],
)
def test_everything_that_no_rounding_reaches_is_compared_exactly_on_every_cpu(one, other):
    assert len(script.differences(record(**one), on_another_cpu(record(**other)))) == 1


def test_digests_of_floats_are_compared_where_the_cpu_rounds_alike_only():
    one, other = record(model={"float_sha256": "1"}), record(model={"float_sha256": "2"})
    assert script.differences(one, other) == ["tdpo.model.float_sha256: recorded '1', now '2'"]
    assert script.differences(one, on_another_cpu(other)) == []


def test_another_tokenizer_and_a_run_without_record_are_reported():
    one = record()
    other = copy.deepcopy(one) | {"made": {"tokenizer_sha256": "u"}}
    other["runs"]["sepo"] = {}
    assert script.differences(one, other) == [
        "made.tokenizer_sha256: recorded 't', now 'u'",
        "sepo: not in the record",
    ]


def test_floats_are_written_without_loss():
    for number in (0.0, 1.0, -0.1, 16.0, 1e-300, 5e-324, 2 / 3):
        assert script.as_float(script.hexed(number)) == number
    assert script.as_float("2404.11999") is None


def test_scalars_that_a_step_logs_become_one_entry_and_those_of_the_next_step_another():
    logged = [("train/loss", 1, 0.5), ("train/acc", 1, 1.0), ("train/loss", 2, 0.4), ("eval/loss", 2, 0.3)]
    assert script.by_step(logged) == [
        {"step": 1, "train/loss": 0.5, "train/acc": 1.0},
        {"step": 2, "train/loss": 0.4, "eval/loss": 0.3},
    ]


def test_a_weight_that_moves_to_the_next_token_changes_the_digest_of_the_call_and_of_all_calls():
    entries = []
    for weight in ([[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]):
        entry = script.new_entry()
        script.note(entry, {"chosen": {"weight": script.describe("weight", torch.tensor(weight))}})
        script.note(entry, {})
        script.note(entry, {})
        entries.append(entry)
    one, other = entries
    assert [entry["calls"] for entry in entries] == [3, 3]
    assert len(one["first"]) == script.SHOWN_CALLS
    assert one["first"][0]["chosen"]["weight"]["sha256"] != other["first"][0]["chosen"]["weight"]["sha256"]
    assert one["sha256"] != other["sha256"]
    assert one["float_sha256"] == other["float_sha256"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_record_has_every_run_of_the_script_with_its_settings(host):
    runs = recorded(host)["runs"]
    settings = json.loads(json.dumps(script.hexed(script.cases(host))))
    assert {name: run["settings"] for name, run in runs.items()} == settings


@pytest.mark.parametrize(
    ("host", "stages"),
    [
        ("llamafactory", {"seapo_kto", "sepo", "tdpo", "granular_sft", "apo_rm"}),
        ("openrlhf", {"seapo_kto", "sepo", "tdpo", "apo_rm"}),
    ],
)
def test_a_record_has_every_stage_of_its_host_and_the_loss_was_called_in_each_run(host, stages):
    runs = recorded(host)["runs"].values()
    assert {run["receipt"]["stage"] for run in runs} == stages
    for run in runs:
        if run["receipt"]["stage"] == "granular_sft":  # its loss is the host's
            calls = [run["model_inputs"]["labels"]["calls"]]
        else:
            calls = [entry["calls"] for name, entry in run["calls"].items() if name.endswith("_loss")]
        assert min(calls) >= run["receipt"]["ranks"][0]["loss_calls"] > 0


def test_a_change_made_on_purpose_is_let_through_and_nothing_beside_it(monkeypatch):
    purpose = {r"receipt\.settings\.pref_beta": (None, "renamed"), r"log\[\d+\]\.train/logps\b": (1e-7, "rounding")}
    monkeypatch.setattr(script, "INTENDED", purpose)
    intended = script.intended
    assert intended("receipt.settings.pref_beta: not in the record, now '0x1.0p+0'")
    assert not intended("receipt.settings.sepo_gamma: recorded 1.0, now 2.0")
    assert intended("log[3].train/logps/chosen: recorded -926.561767578125, now -926.5617370605469")
    assert not intended("log[3].train/logps/chosen: recorded -926.56, now -926.57")
    assert not intended("log[3].train/loss: recorded 0.5, now 0.50000001")


def test_a_change_of_the_runs_of_one_host_is_intended_there_only(monkeypatch):
    """Rewards of apo_rm on LLaMA-Factory lie elsewhere; its losses do not."""
    runs = r"llamafactory\.apo_rm_\w+\.log\[\d+\]\."
    purpose = {runs + "rewards/mean": (None, "shifted"), runs + "loss": (1e-4, "rounding")}
    monkeypatch.setattr(script, "INTENDED_IN", purpose)
    intended = script.intended
    mean = "log[0].rewards/mean: recorded -0.03, now 0.5"
    assert intended(mean, "llamafactory.apo_rm_mean.")
    assert not intended(mean, "openrlhf.apo_rm_mean.")
    assert not intended(mean, "llamafactory.tdpo_dpo_one.")
    assert intended("log[0].loss: recorded 0.5, now 0.50000001", "llamafactory.apo_rm_mean.")
    assert not intended("log[0].loss: recorded 0.5, now 0.501", "llamafactory.apo_rm_mean.")

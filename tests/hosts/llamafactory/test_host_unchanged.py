"""The host's own stages behave exactly as without finepref: same losses, same weights, same refusals."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import weights
from sample_rows import rows
from warm import Warm

OWN_KEYS = ("seapo_", "pref_ftx")


def host_data(folder) -> str:
    """The sums as the host's own alpaca, pairwise and KTO data sets."""
    sft, pairs, feedback = [], [], []
    for row in rows():
        base = {"instruction": row["prompt"], "input": ""}
        wrong = row["negatives"]["logic"]
        sft.append({**base, "output": row["chosen"]})
        pairs.append({**base, "chosen": row["chosen"], "rejected": wrong})
        feedback.append({**base, "output": row["chosen"], "label": True})
        feedback.append({**base, "output": wrong, "label": False})
    ranking = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
    table = {}
    for name, data, entry in (
        ("sft", sft, {}),
        ("dpo", pairs, ranking),
        ("rm", pairs, ranking),
        ("kto", feedback, {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "label"}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(data))
        table[name] = {"file_name": f"{name}.json", **entry}
    (folder / "dataset_info.json").write_text(json.dumps(table))
    return str(folder)


@pytest.fixture(scope="module")
def without_finepref():
    """A process that has imported the host as it is without finepref."""
    with Warm(("llamafactory.train.tuner",), {"FINEPREF_DISABLE": "1"}) as process:
        yield process


@pytest.mark.parametrize("stage", ["sft", "dpo", "rm", "kto"])
def test_the_hosts_own_stage_trains_to_the_same_weights_with_and_without_finepref(
    forked, warm, without_finepref, tmp_path, stage
):
    overrides = {"stage": stage, "dataset": stage, "dataset_dir": host_data(tmp_path)}
    overrides |= {"seapo_error_types": "all", "seapo_resample": "epoch"}
    results = []
    for name, process in (("with", warm), ("without", without_finepref)):
        settings = dict(overrides, output_dir=str(tmp_path / name))
        done = forked(process=process, drop=OWN_KEYS, **settings)
        assert done.code == 0, done.output[-3000:]
        state = json.loads((done.folder / "trainer_state.json").read_text())
        logged = [
            {k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in state["log_history"]
        ]
        results.append((logged, weights(done.folder), sorted(f.name for f in done.folder.iterdir())))
    (logged, tensors, files), (other_logged, other_tensors, other_files) = results
    assert logged == other_logged
    assert files == other_files
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


def test_our_kto_loss_equals_the_hosts_on_equal_input():
    """TRL's kto_loss, as the host calls it, on random log-probs; ours returns rows in the same order."""
    from types import SimpleNamespace

    from finepref.losses.kto import kto_loss, kto_reference_point
    from llamafactory.train.kto.trainer import CustomKTOTrainer

    torch.manual_seed(0)
    for chosen, rejected in ((3, 2), (0, 4), (4, 0), (1, 1)):
        policy, reference = torch.randn(chosen + rejected) * 9 - 30, torch.randn(chosen + rejected) * 9 - 30
        kl_policy, kl_reference = torch.randn(chosen + rejected) * 5, torch.randn(chosen + rejected) * 5
        host = SimpleNamespace(
            calculate_KL=True,
            beta=0.3,
            desirable_weight=1.2,
            undesirable_weight=0.7,
            loss_type="kto",
            accelerator=SimpleNamespace(gather_for_metrics=lambda value: value, device="cpu"),
        )
        losses, chosen_rewards, rejected_rewards, kl = CustomKTOTrainer.kto_loss(
            host, policy[:chosen], policy[chosen:], kl_policy, reference[:chosen], reference[chosen:], kl_reference
        )
        point = kto_reference_point(kl_policy, kl_reference)
        desirable = torch.arange(chosen + rejected) < chosen
        ours = kto_loss(policy - reference, desirable, point, beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
        torch.testing.assert_close(point, kl)
        torch.testing.assert_close(ours.loss, losses)
        torch.testing.assert_close(ours.chosen_reward[:chosen], chosen_rewards)
        torch.testing.assert_close(ours.rejected_reward[chosen:], rejected_rewards)


def test_the_stages_first_loss_equals_the_hosts_kto_on_the_same_rows(run, forked, tmp_path):
    """With one negative per prompt nothing is left to draw: the first loss must be the host's on the same 24 rows."""
    from sample_rows import write_rows

    records = [{**row, "negatives": {"logic": row["negatives"]["logic"]}} for row in rows()]
    folder = write_rows(tmp_path / "one", records)
    common = {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1, "max_steps": 1, "pref_ftx": 0.5}
    ours = run(dataset_dir=str(folder), output_dir=str(tmp_path / "ours"), **common)
    theirs = forked(
        stage="kto",
        dataset="kto",
        dataset_dir=host_data(tmp_path),
        drop=("seapo_",),
        output_dir=str(tmp_path / "theirs"),
        **common,
    )
    assert theirs.code == 0, theirs.output[-3000:]
    log = json.loads((theirs.folder / "trainer_state.json").read_text())["log_history"]
    for key in ("loss", "rewards/chosen", "logps/chosen", "logps/rejected"):
        assert ours.log[0][key] == pytest.approx(log[0][key], rel=1e-5, abs=1e-6), key

"""What the game asks for: commands, their order, their files. None is run here; tests/hosts/llamafactory does that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finepref.pipelines import settings
from finepref.pipelines.apo import apo
from finepref.pipelines.steps import Pipeline

ROOT = Path(__file__).parents[2]
METRICS = {"records": 4, "rewards/accuracies": 0.5, "calibration/ece": 0.25}
FIGURES = {"human": METRICS, "golden": METRICS, "golden_base": METRICS}
FIGURES |= {"answers": {"records": 6, "rewards/mean": -1.5, "win_rate": 0.75, "empty": 1}}


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Play a YAML with overrides; step -> (words, inputs). What the report reads is made up, all else empty."""

    def play(file, *overrides):
        steps = {}

        def run(self, step, command, *, inputs=(), outputs, environment=None, private=False):
            inputs = [str(path) for path in inputs]
            missing = [path for path in inputs if path.startswith(str(self.folder)) and not Path(path).exists()]
            assert not missing, "a step reads what no step before it makes"
            for path in outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            self.path(step).mkdir(parents=True, exist_ok=True)
            self.path(step, "eval.json").write_text(json.dumps(FIGURES))
            means = {"mean_reward_of_all": 1.0, "mean_reward_selected": 2.0}
            self.path(step, "selected.report.json").write_text(json.dumps(means))
            steps[step] = ([str(word) for word in command], inputs)
            self.steps[step] = {"command": steps[step][0], "seconds": 60.0}

        monkeypatch.setattr(Pipeline, "run", run)
        monkeypatch.chdir(ROOT)
        with Pipeline(tmp_path / "run") as pipeline:
            settings.call(apo, settings.load(file, overrides), file=file, pipeline=pipeline)
        return steps

    return play


@pytest.fixture
def short(tmp_path):
    """Settings of two rounds, without LoRA."""
    keys = {name: f"{name}.jsonl" for name in ("queries", "human", "test_queries", "test_human", "testing_human")}
    keys |= {"model": "an/llm", "reward_model": "a/base", "template": "default", "learning_rates": [2e-6, 1e-6]}
    keys |= {"sample": {"n": 4}, "answer": {"n": 1}, "merge": {"recipe": "examples/seapo_export.yaml"}}
    keys |= {"reward": {"recipe": "examples/apo_rm.yaml"}, "policy": {"recipe": "examples/apo_sft.yaml"}}
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def keys_of(words):
    """key=value words of a training."""
    return dict(word.split("=", 1) for word in words if "=" in word)


def after(words, option):
    return words[words.index(option) + 1]


@pytest.mark.parametrize("name", ["apo", "apo_demo"])
def test_the_shipped_files_play(played, name, tmp_path):
    steps = played(ROOT / "examples" / "pipelines" / f"{name}.yaml")
    rounds = {"apo": 3, "apo_demo": 2}[name]
    assert [step for step in steps if step.endswith("/eval")] == [f"round_{i}/eval" for i in range(rounds + 1)]
    trained = [words for words, _ in steps.values() if words[0] == "llamafactory-cli"]
    assert {Path(words[2]).is_file() for words in trained} == {True}
    assert "round_1/merged" in steps if name == "apo_demo" else "round_1/merged" not in steps


def test_the_papers_file_has_the_papers_learning_rates_and_sampling(played):
    steps = played(ROOT / "examples" / "pipelines" / "apo.yaml")
    rates = [float(keys_of(steps[f"round_{i}/policy"][0])["learning_rate"]) for i in (1, 2, 3)]
    assert rates == [5e-6, 2e-6, 9e-7]
    assert after(steps["round_1/samples"][0], "--preset") == "paper"
    assert after(steps["round_1/samples"][0], "--n") == "4"
    assert after(steps["round_0/answers"][0], "--preset") == "paper_test"
    assert after(steps["data/human"][0], "--from") == "apo_rm"
    assert steps["round_2/policy_samples"][0][3] == "data/hh_split_llm.queries.json"


def test_reward_models_of_human_preferences_alone_are_ranked_where_the_others_have_the_wgan_loss(played, short):
    steps = played(short, "reward.apo_loss=wgan")
    losses = {step: keys_of(words)["apo_loss"] for step, (words, _) in steps.items() if step.endswith("/reward")}
    assert losses == {
        "base/reward": "ranking",
        "testing/reward": "ranking",
        "round_1/reward": "wgan",
        "round_2/reward": "wgan",
    }


def test_each_round_goes_on_with_the_llm_and_starts_the_reward_model_anew(played, short, tmp_path):
    steps, run = played(short), tmp_path / "run"
    for i, llm in ((1, "an/llm"), (2, str(run / "round_1/policy/model"))):
        assert keys_of(steps[f"round_{i}/reward"][0])["model_name_or_path"] == "a/base"
        assert keys_of(steps[f"round_{i}/reward"][0])["dataset"] == f"human,apo_{i}"
        assert keys_of(steps[f"round_{i}/policy"][0])["model_name_or_path"] == llm
        assert keys_of(steps[f"round_{i}/policy"][0])["dataset"] == f"selected_{i}"
        assert after(steps[f"round_{i}/samples"][0], "--model") == llm
        scored, inputs = steps[f"round_{i}/scored"]
        assert after(scored, "--model") == str(run / f"round_{i}/reward/model")
        assert after(scored, "--cutoff-len") == "512"
        assert "--base" not in scored
        assert str(run / f"round_{i}/samples/samples.jsonl") in inputs
        assert steps[f"round_{i}/golden_pairs"][0][3] == str(run / f"round_{i - 1}/answers/samples.jsonl")
    table = json.loads((run / "dataset_info.json").read_text())
    assert table["apo_2"] == {"file_name": "round_2/pairs/pairs.jsonl", "formatting": "ranked"}
    assert table["selected_1"]["formatting"] == "sharegpt"


def test_sequential_goes_on_with_the_last_reward_model(played, short, tmp_path):
    steps, run = played(short, "sequential=true"), tmp_path / "run"
    starts = [keys_of(steps[f"round_{i}/reward"][0])["model_name_or_path"] for i in (1, 2)]
    assert starts == [str(run / "base/reward/model"), str(run / "round_1/reward/model")]
    steps = played(short, "sequential=true", "reward.finetuning_type=lora")
    keys = keys_of(steps["round_2/reward"][0])
    assert keys["model_name_or_path"] == "a/base"
    assert keys["adapter_name_or_path"] == str(run / "round_1/reward/model")
    assert after(steps["round_2/scored"][0], "--base") == "a/base"


def test_without_apo_data_the_reward_model_of_human_preferences_selects_in_all_rounds(played, short, tmp_path):
    steps = played(short, "apo_data=false")
    assert not [step for step in steps if step.endswith(("/pairs", "1/reward", "2/reward"))]
    for i in (1, 2):
        assert after(steps[f"round_{i}/scored"][0], "--model") == str(tmp_path / "run" / "base/reward/model")


@pytest.mark.parametrize("override", ["apo_kl_coeff=0", "apo_loss=wgan"])
def test_the_papers_other_ablations_are_keys_of_the_reward_models_training(played, short, override):
    assert override in played(short, f"reward.{override}")["round_1/reward"][0]


def test_dpo_trains_on_the_best_above_the_worst(played, short, tmp_path):
    steps = played(short, "update=dpo", "policy.recipe=examples/apo_dpo.yaml")
    assert after(steps["round_1/selected"][0], "--to") == "pair"
    table = json.loads((tmp_path / "run" / "dataset_info.json").read_text())
    assert table["selected_1"]["formatting"] == "pair"
    recipe = yaml.safe_load((ROOT / "examples/apo_dpo.yaml").read_text())
    assert (recipe["stage"], recipe["tdpo_variant"], recipe["tdpo_masks"]) == ("tdpo", "dpo", "none")


def test_a_model_can_be_asked_for_the_golden_answers(played, short, tmp_path):
    steps = played(short, "golden.engine=openai", "golden.model=teacher", "golden.base_url=http://localhost:1/v1")
    words, _ = steps["data/golden"]
    assert words[:4] == ["finepref", "apo", "sample", "queries.jsonl"]
    assert "--golden" in words
    assert [after(words, f"--{name}") for name in ("n", "engine", "model")] == ["1", "openai", "teacher"]
    assert after(steps["round_1/pairs"][0], "--golden") == str(tmp_path / "run/data/golden/golden.jsonl")


def test_only_our_own_commands_make_files_and_each_knows_what_it_reads(played, short, tmp_path):
    commands = ("make.a=finepref data gsm --output {made}/a", "make.b=finepref dedup {made}/a")
    steps = played(short, *commands, "queries='{made}/b'")
    made = tmp_path / "run" / "made"
    assert steps["make/b"] == (["finepref", "dedup", str(made / "a")], [str(made / "a")])
    assert steps["round_1/samples"][0][3] == str(made / "b")
    with pytest.raises(ValueError, match="make: c: 'rm x' is not a finepref command"):
        played(short, "make.c=rm x")


def test_a_game_of_no_rounds_is_refused(played, short):
    with pytest.raises(ValueError, match="there would be no round"):
        played(short, "learning_rates=[]")


def test_the_report_has_a_row_per_round_and_no_times(played, short, tmp_path):
    played(short)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| 2 | 0.5000 | 0.2500 | 0.5000 | 0.2500 | 0.5000 | 0.2500 |" in report
    assert "| 2 | 1e-06 | 1.0000 | 2.0000 | -1.5000 | 0.7500 | 1 |" in report
    assert "minutes" not in report
    assert "# 60.0 s" in (tmp_path / "run" / "steps.md").read_text()
    assert (tmp_path / "run" / "rounds.png").stat().st_size > 1000

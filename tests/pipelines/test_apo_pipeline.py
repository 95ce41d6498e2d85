"""The steps of an APO run: commands, their order, their files. None is run here; tests/hosts does that."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from finepref.pipelines import openrlhf, settings
from finepref.pipelines.apo import apo
from finepref.pipelines.steps import Pipeline

ROOT = Path(__file__).parents[2]
METRICS = {"records": 4, "rewards/accuracies": 0.5, "calibration/ece": 0.25}
FIGURES = {"human": METRICS, "golden": METRICS, "golden_base": METRICS}
FIGURES |= {"answers": {"records": 6, "rewards/mean": -1.5, "win_rate": 0.75, "empty": 1}}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Play a YAML with overrides; step -> (words, inputs). What the report reads is made up, all else empty."""

    def plan(file, *overrides):
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

    return plan


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


@pytest.fixture
def on_openrlhf(short):
    """The same run with OpenRLHF's flags."""
    keys = yaml.safe_load(short.read_text())
    del keys["template"], keys["merge"]
    keys |= {"host": "openrlhf", "reward": {"train": {"batch_size": 8}, "adam": {"betas": [0.9, 0.95]}}}
    keys |= {"policy": {"ds": {"zero_stage": 3, "adam_offload": True, "overlap_comm": False}, "lr_scheduler": None}}
    file = short.with_name("on_openrlhf.yaml")
    file.write_text(yaml.safe_dump(keys))
    return file


def flags_of(words):
    """Flag -> the words that follow it, of a training."""
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word[2:]] = []
        elif found:
            found[[*found][-1]].append(word)
    return found


def keys_of(words):
    """key=value words of a training."""
    return dict(word.split("=", 1) for word in words if "=" in word)


def after(words, option):
    return words[words.index(option) + 1]


@pytest.mark.parametrize("name", ["apo", "apo_demo"])
def test_the_shipped_files_run(planned, name, tmp_path):
    steps = planned(ROOT / "examples" / "pipelines" / f"{name}.yaml")
    rounds = {"apo": 3, "apo_demo": 2}[name]
    assert [step for step in steps if step.endswith("/eval")] == [f"round_{i}/eval" for i in range(rounds + 1)]
    trained = [words for words, _ in steps.values() if words[0] == "llamafactory-cli"]
    assert {Path(words[2]).is_file() for words in trained} == {True}
    if name == "apo_demo":
        assert steps["round_1/merged"][0][:3] == ["llamafactory-cli", "export", "examples/seapo_export.yaml"]
    assert "round_1/merged" in steps if name == "apo_demo" else "round_1/merged" not in steps


def test_the_papers_file_has_the_papers_learning_rates_and_sampling(planned):
    steps = planned(ROOT / "examples" / "pipelines" / "apo.yaml")
    rates = [float(keys_of(steps[f"round_{i}/policy"][0])["learning_rate"]) for i in (1, 2, 3)]
    assert rates == [5e-6, 2e-6, 9e-7]
    assert after(steps["round_1/samples"][0], "--preset") == "paper"
    assert after(steps["round_1/samples"][0], "--n") == "4"
    assert after(steps["round_0/answers"][0], "--preset") == "paper_test"
    assert after(steps["data/human"][0], "--from") == "apo_rm"
    assert steps["round_2/policy_samples"][0][3] == "data/hh_split_llm.queries.json"


def test_reward_models_of_human_preferences_alone_are_ranked_where_the_others_have_the_wgan_loss(planned, short):
    steps = planned(short, "reward.apo_loss=wgan")
    losses = {step: keys_of(words)["apo_loss"] for step, (words, _) in steps.items() if step.endswith("/reward")}
    assert losses == {
        "base/reward": "ranking",
        "testing/reward": "ranking",
        "round_1/reward": "wgan",
        "round_2/reward": "wgan",
    }


def test_each_round_continues_with_the_llm_and_starts_the_reward_model_again(planned, short, tmp_path):
    steps, run = planned(short), tmp_path / "run"
    for i, llm in ((1, "an/llm"), (2, str(run / "round_1/policy/model"))):
        assert steps[f"round_{i}/reward"][0][:3] == ["llamafactory-cli", "train", "examples/apo_rm.yaml"]
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


def test_sequential_continues_with_the_last_reward_model(planned, short, tmp_path):
    steps, run = planned(short, "sequential=true"), tmp_path / "run"
    starts = [keys_of(steps[f"round_{i}/reward"][0])["model_name_or_path"] for i in (1, 2)]
    assert starts == [str(run / "base/reward/model"), str(run / "round_1/reward/model")]
    steps = planned(short, "sequential=true", "reward.finetuning_type=lora")
    keys = keys_of(steps["round_2/reward"][0])
    assert keys["model_name_or_path"] == "a/base"
    assert keys["adapter_name_or_path"] == str(run / "round_1/reward/model")
    assert after(steps["round_2/scored"][0], "--base") == "a/base"


def test_without_apo_data_the_reward_model_of_human_preferences_selects_in_all_rounds(planned, short, tmp_path):
    steps = planned(short, "apo_data=false")
    assert not [step for step in steps if step.endswith(("/pairs", "1/reward", "2/reward"))]
    for i in (1, 2):
        assert after(steps[f"round_{i}/scored"][0], "--model") == str(tmp_path / "run" / "base/reward/model")


@pytest.mark.parametrize("override", ["apo_kl_coeff=0", "apo_loss=wgan"])
def test_the_papers_other_ablations_are_keys_of_the_reward_models_training(planned, short, override):
    assert override in planned(short, f"reward.{override}")["round_1/reward"][0]


def test_dpo_trains_on_the_best_above_the_worst(planned, short, tmp_path):
    steps = planned(short, "update=dpo", "policy.recipe=examples/apo_dpo.yaml")
    assert after(steps["round_1/selected"][0], "--to") == "pair"
    table = json.loads((tmp_path / "run" / "dataset_info.json").read_text())
    assert table["selected_1"]["formatting"] == "pair"
    recipe = yaml.safe_load((ROOT / "examples/apo_dpo.yaml").read_text())
    assert (recipe["stage"], recipe["tdpo_variant"], recipe["tdpo_masks"]) == ("tdpo", "dpo", "none")


def test_a_model_can_be_asked_for_the_golden_answers(planned, short, tmp_path):
    steps = planned(short, "golden.engine=openai", "golden.model=teacher", "golden.base_url=http://localhost:1/v1")
    words, _ = steps["data/golden"]
    assert words[:4] == ["finepref", "apo", "sample", "queries.jsonl"]
    assert "--golden" in words
    assert [after(words, f"--{name}") for name in ("n", "engine", "model")] == ["1", "openai", "teacher"]
    assert after(steps["round_1/pairs"][0], "--golden") == str(tmp_path / "run/data/golden/golden.jsonl")


def test_only_our_own_commands_make_files_and_each_knows_what_it_reads(planned, short, tmp_path):
    commands = ("make.a=finepref data gsm --output {made}/a", "make.b=finepref dedup {made}/a")
    steps = planned(short, *commands, "queries='{made}/b'")
    made = tmp_path / "run" / "made"
    assert steps["make/b"] == (["finepref", "dedup", str(made / "a")], [str(made / "a")])
    assert steps["round_1/samples"][0][3] == str(made / "b")
    with pytest.raises(ValueError, match="make: c: 'rm x' is not a finepref command"):
        planned(short, "make.c=rm x")


def test_a_run_without_rounds_is_refused(planned, short):
    with pytest.raises(ValueError, match="there would be no round"):
        planned(short, "learning_rates=[]")


def test_the_report_has_a_row_per_round_and_no_times(planned, short, tmp_path):
    planned(short)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| 2 | 0.5000 | 0.2500 | 0.5000 | 0.2500 | 0.5000 | 0.2500 |" in report
    assert "| 2 | 1e-06 | 1.0000 | 2.0000 | -1.5000 | 0.7500 | 1 |" in report
    assert "minutes" not in report
    assert "# 60.0 s" in (tmp_path / "run" / "steps.md").read_text()
    assert (tmp_path / "run" / "rounds.png").stat().st_size > 1000


def test_openrlhfs_shipped_file_has_the_papers_settings_and_the_flags_of_its_script(planned):
    steps = planned(ROOT / "examples" / "pipelines" / "apo_openrlhf.yaml")
    assert [step for step in steps if step.endswith("/eval")] == [f"round_{i}/eval" for i in range(4)]
    words, _ = steps["round_2/reward"]
    script = (ROOT / "examples/openrlhf/apo_rm.sh").read_text()
    told = flags_of(re.sub(r"`#.*?`|\\", "", script).split())
    differing = {"module", "model.model_name_or_path", "data.dataset", "eval.dataset", "eval.steps", "ckpt.output_dir"}
    for flag, values in told.items():
        if flag not in differing:
            assert [*map(number, flags_of(words)[flag])] == [*map(number, values)][:1], flag
    rates = [float(flags_of(steps[f"round_{i}/policy"][0])["adam.lr"][0]) for i in (1, 2, 3)]
    assert rates == [5e-6, 2e-6, 9e-7]


def number(word):
    """1e-06 and 1e-6 are one, as are 1 and 1.0."""
    try:
        return float(word)
    except ValueError:
        return word


def test_on_openrlhf_a_sections_mappings_are_dotted_flags(planned, on_openrlhf):
    steps = planned(on_openrlhf, "policy.train.max_epochs=2")
    words, _ = steps["base/reward"]
    assert words[:3] == ["deepspeed", "--module", "openrlhf.cli.train_apo_rm"]
    assert flags_of(words)["train.batch_size"] == ["8"]
    assert flags_of(words)["adam.betas"] == ["0.9", "0.95"]
    policy = flags_of(steps["round_1/policy"][0])
    assert policy["ds.adam_offload"] == []
    assert policy["train.max_epochs"] == ["2"]
    assert not {"ds.overlap_comm", "lr_scheduler"} & policy.keys()


def test_on_openrlhf_each_round_trains_the_llm_on_and_the_reward_model_anew(planned, on_openrlhf, tmp_path):
    steps, run = planned(on_openrlhf), tmp_path / "run"
    for i, llm in ((1, "an/llm"), (2, str(run / "round_1/policy/model"))):
        reward, policy = (flags_of(steps[f"round_{i}/{name}"][0]) for name in ("reward", "policy"))
        assert reward["model.model_name_or_path"] == ["a/base"]
        assert reward["data.dataset"] == [f"human,apo_{i}"]
        assert reward["data.dataset_dir"] == [str(run)]
        assert reward["data.apply_chat_template"] == []
        assert "apo.keep_value_head" not in reward
        words, inputs = steps[f"round_{i}/policy"]
        assert words[:3] == ["deepspeed", "--module", "openrlhf.cli.train_sft"]
        selected = str(run / f"round_{i}/selected/selected.jsonl")
        assert policy["data.dataset"] == [selected]
        assert selected in inputs
        assert policy["data.input_key"] == ["messages"]
        assert policy["data.apply_chat_template"] == []
        assert policy["model.model_name_or_path"] == [llm]
        assert policy["adam.lr"] == [["2e-06"], ["1e-06"]][i - 1]
        assert after(steps[f"round_{i}/samples"][0], "--model") == llm


def test_on_openrlhf_rewards_are_read_where_and_as_long_as_they_were_trained(planned, on_openrlhf):
    """Also where no flag says it, as the host and the scorer have different defaults."""
    for overrides, pooling, length in (
        ((), "eos", "512"),
        (("reward.apo.pooling=last", "reward.data.max_len=64"), "last", "64"),
    ):
        steps = planned(on_openrlhf, *overrides)
        trained = flags_of(steps["round_1/reward"][0])
        assert (trained["apo.pooling"], trained["data.max_len"]) == ([pooling], [length])
        scored = steps["round_1/scored"][0]
        assert (after(scored, "--pooling"), after(scored, "--cutoff-len")) == (pooling, length)
        assert not {"--base", "--template"} & {*scored}


def test_on_openrlhf_too_reward_models_of_human_preferences_alone_are_ranked(planned, on_openrlhf):
    steps = planned(on_openrlhf, "reward.apo.loss=wgan")
    losses = [after(words, "--apo.loss") for step, (words, _) in steps.items() if step.endswith("/reward")]
    assert losses == ["ranking", "ranking", "wgan", "wgan"]


def test_on_openrlhf_sequential_keeps_the_value_head_of_the_last_reward_model(planned, on_openrlhf, tmp_path):
    steps, run = planned(on_openrlhf, "sequential=true"), tmp_path / "run"
    for i, start in ((1, run / "base/reward/model"), (2, run / "round_1/reward/model")):
        flags = flags_of(steps[f"round_{i}/reward"][0])
        assert flags["model.model_name_or_path"] == [str(start)]
        assert flags["apo.keep_value_head"] == []


def test_on_openrlhf_dpo_is_train_tdpos_plain_variant_on_our_pairs(planned, on_openrlhf, tmp_path):
    words, _ = planned(on_openrlhf, "update=dpo", "policy.model.beta=0.1")["round_1/policy"]
    assert words[2] == "openrlhf.cli.train_tdpo"
    flags = flags_of(words)
    assert [flags[name] for name in ("tdpo.variant", "tdpo.masks", "model.beta")] == [["dpo"], ["none"], ["0.1"]]
    assert flags["data.dataset"] == ["selected_1"]
    assert json.loads((tmp_path / "run" / "dataset_info.json").read_text())["selected_1"]["formatting"] == "pair"


def test_on_openrlhf_an_adapter_of_the_llm_is_merged_before_it_is_sampled(planned, on_openrlhf, tmp_path):
    steps, run = planned(on_openrlhf, "policy.ds.lora.rank=8", "merge.ds.param_dtype=fp16"), tmp_path / "run"
    words, inputs = steps["round_1/merged"]
    assert words[:3] == ["python", "-m", "openrlhf.cli.lora_combiner"]
    assert flags_of(words) == {
        "ds.param_dtype": ["fp16"],
        "model_path": ["an/llm"],
        "lora_path": [str(run / "round_1/policy/model")],
        "output_path": [str(run / "round_1/merged/model")],
    }
    assert inputs == [str(run / "round_1/policy/model")]
    assert after(steps["round_1/answers"][0], "--model") == str(run / "round_1/merged/model")


def test_a_launcher_is_the_words_before_the_module(planned, on_openrlhf):
    words, _ = planned(on_openrlhf, "launcher=deepspeed --num_gpus 4 --module")["round_1/policy"]
    assert words[:5] == ["deepspeed", "--num_gpus", "4", "--module", "openrlhf.cli.train_sft"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("reward.ds.lora.rank=8", "OpenRLHF saves no value head beside a LoRA adapter"),
        ("template=default", "template is LLaMA-Factory's"),
        ("policy.recipe=examples/apo_sft.yaml", "policy.recipe is LLaMA-Factory's"),
        ("policy.adam.lr=1e-5", "learning_rates, one per round"),
        ("reward.model.model_name_or_path=x", "reward.model.model_name_or_path: the run sets this itself"),
        ("reward.apo.keep_value_head=true", "reward.apo.keep_value_head: the run sets this itself"),
        ("policy.ckpt.path=x", "policy.ckpt.path: the run sets this itself"),
        ("policy.data.tokenizer_chat_template=x", "policy.data.tokenizer_chat_template: the run sets this itself"),
    ],
)
def test_what_cannot_be_on_openrlhf_is_refused_before_anything_runs(planned, on_openrlhf, tmp_path, override, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        planned(on_openrlhf, override)
    assert not (tmp_path / "run" / "data").exists()


def test_openrlhfs_signs_in_the_name_of_the_run_are_refused(on_openrlhf, tmp_path):
    with Pipeline(tmp_path / "a,b") as pipeline, pytest.raises(ValueError, match="a comma or @ in the path"):
        settings.call(apo, settings.load(on_openrlhf), file=on_openrlhf, pipeline=pipeline)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("template=''", "template is missing"),
        ("merge={}", "merge is missing"),
        ("launcher=python -m", "launcher is OpenRLHF's"),
    ],
)
def test_llamafactory_needs_its_own_settings_and_no_others(planned, short, tmp_path, override, told):
    with pytest.raises(ValueError, match=told):
        planned(short, override)
    assert not (tmp_path / "run" / "data").exists()


def test_openrlhf_resumes_from_complete_checkpoints_only_and_none_stay(tmp_path, monkeypatch):
    """The host's `latest` names the last whole checkpoint."""
    checkpoints = tmp_path / "run/step/checkpoints"
    found = []

    def run(self, step, command, *, inputs=(), outputs, environment=None, private=False):
        found.append(sorted(path.name for path in checkpoints.iterdir()) if checkpoints.exists() else [])

    monkeypatch.setattr(Pipeline, "run", run)
    with Pipeline(tmp_path / "run") as pipeline:
        for latest in ("global_step2", "global_step4", "", None):
            (checkpoints / "global_step2").mkdir(parents=True)
            if latest is not None:
                (checkpoints / "latest").write_text(latest)
            openrlhf.train(pipeline, "step", ["program"], {}, {"model.model_name_or_path": "a/model"}, inputs=[])
            assert not checkpoints.exists()
    assert found == [["global_step2", "latest"], [], [], []]

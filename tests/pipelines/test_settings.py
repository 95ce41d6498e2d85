"""Settings of a pipeline: YAML, overrides, and their check against a signature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finepref.formats.markdown_table import table
from finepref.pipelines import llamafactory
from finepref.pipelines.settings import call, load, options


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "apo.yaml"
    path.write_text("rounds: 2\nmodel: some/model\nsample: {n: 4, temperature: 1.2}\n")
    return path


def test_an_override_takes_the_place_of_a_key_and_a_dot_goes_into_a_section(yaml_file):
    settings = load(yaml_file, ["rounds=3", "sample.temperature=0.5", "sample.top_p=1", "judge.name=math"])
    assert settings == {
        "rounds": 3,
        "model": "some/model",
        "sample": {"n": 4, "temperature": 0.5, "top_p": 1},
        "judge": {"name": "math"},
    }


def test_an_override_of_one_section_leaves_another_alone_that_is_the_same_by_a_yaml_alias(tmp_path):
    path = tmp_path / "alias.yaml"
    path.write_text("reward: &both {train: {epochs: 1}}\npolicy: *both\n")
    settings = load(path, ["policy.train.epochs=2"])
    assert settings == {"reward": {"train": {"epochs": 1}}, "policy": {"train": {"epochs": 2}}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds", "not key=value"),
        ("=3", "not key=value"),
        ("a..b=3", "not key=value"),
        ("rounds.x=1", "rounds is not"),
    ],
)
def test_a_bad_override_is_refused(yaml_file, override, message):
    with pytest.raises(ValueError, match=message):
        load(yaml_file, [override])


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "'"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad.yaml is not"):
        load(path)


CANARY = "canary-7f3a9c51"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample.api_key", CANARY),
        ("wandb.key", CANARY),
        ("train.hf_hub_token", CANARY),
        ("judge.OPENAI_API_KEY", CANARY),
        ("sample.base_url", f"https://user:{CANARY}@host/v1"),
        ("sample.base_url", f"https://host/v1?token={CANARY}"),
        ("sample.rubric", f"sk-{CANARY}{CANARY}"),
        ("sample.headers", ["Accept: all", f"Authorization: Bearer {CANARY}"]),
    ],
)
def test_a_secret_in_the_settings_is_refused_by_its_key_and_not_repeated(yaml_file, tmp_path, key, value):
    path = tmp_path / "with_secret.yaml"
    section, name = key.split(".")
    path.write_text(json.dumps({"rounds": 2, section: {name: value}}))
    for file, overrides in ((path, []), (yaml_file, [f"{key}={json.dumps(value)}"])):
        with pytest.raises(ValueError, match=f"{file}: {key}: settings are written to files.*OPENAI_API_KEY") as told:
            load(file, overrides)
        assert CANARY not in str(told.value)


@pytest.mark.parametrize("override", [f"sk-{CANARY}", f"https://u:{CANARY}@host", f"api_key='{CANARY}", "rounds.x=1"])
def test_an_override_that_is_refused_for_another_reason_does_not_show_its_value(yaml_file, override):
    with pytest.raises(ValueError, match="is not") as told:
        load(yaml_file, [override])
    assert CANARY not in str(told.value)


def test_a_file_that_is_not_yaml_is_not_quoted(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(f"rounds: 2\napi_key: '{CANARY}\n")
    with pytest.raises(ValueError, match=r"bad.yaml is not YAML \(line 3\)") as told:
        load(path)
    assert CANARY not in str(told.value)


def test_keys_that_only_sound_like_secrets_are_settings(tmp_path):
    path = tmp_path / "plain.yaml"
    settings = {"max_new_tokens": 8, "hf_hub_token": None, "eos_token": "</s>", "base_url": "http://localhost:8000/v1"}
    path.write_text(json.dumps(settings))
    assert load(path) == settings


def test_all_bad_settings_are_told_at_once_with_file_and_key(yaml_file):
    def pipeline(*, rounds: int, model: str, queries: Path) -> None:
        raise AssertionError("it should not start")

    with pytest.raises(ValueError, match="rounds") as told:
        call(pipeline, {"rounds": "two", "model": "m", "colour": 1}, file=yaml_file)
    lines = str(told.value).splitlines()
    assert sorted(line.removeprefix(f"{yaml_file}: ").split(":")[0] for line in lines) == [
        "colour",
        "queries",
        "rounds",
    ]
    assert f"{yaml_file}: colour: unknown key" in lines
    assert f"{yaml_file}: queries: is missing" in lines


def test_right_settings_reach_the_pipeline(yaml_file):
    seen = {}

    def pipeline(*, rounds: int, model: str, sample: dict[str, object], output: Path) -> None:
        seen.update(rounds=rounds, model=model, sample=sample, output=output)

    call(pipeline, load(yaml_file), file=yaml_file, output=Path("out"))
    assert seen == {
        "rounds": 2,
        "model": "some/model",
        "sample": {"n": 4, "temperature": 1.2},
        "output": Path("out"),
    }


def test_a_section_becomes_the_options_of_a_command():
    section = {"max_new_tokens": 64, "check": True, "resume": False, "model": None, "types": ["a", "b"]}
    assert options(section) == ["--max-new-tokens", "64", "--check", "--types", "a,b"]


def test_keys_of_the_host_are_spelled_as_yaml():
    words = llamafactory.spelled({"bf16": False, "max_steps": 1, "warmup": None, "stage": "sft"})
    assert words == ["bf16=false", "max_steps=1", "warmup=null", "stage=sft"]


def test_lora_is_what_the_host_does_where_neither_the_recipe_nor_the_section_says_otherwise(tmp_path):
    (tmp_path / "recipe.yaml").write_text("stage: sft\n")
    section = {"recipe": str(tmp_path / "recipe.yaml")}
    assert llamafactory.uses_lora(section)
    assert not llamafactory.uses_lora(section | {"finetuning_type": "full"})


def test_a_table_rounds_floats_and_keeps_bars_in_their_cells():
    assert table(["a", "b"], [[0.5, "x|y"], [None, 3]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 0.5000 | x\\|y |",
        "| - | 3 |",
    ]

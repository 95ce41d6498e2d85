"""Settings of a pipeline: YAML, overrides, and their check against a signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from finepref.pipelines import llamafactory
from finepref.pipelines.report import table
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
    words = llamafactory.train("examples/apo_rm.yaml", {"bf16": False, "max_steps": 1, "warmup": None, "stage": "sft"})
    assert words == [
        *("llamafactory-cli", "train", "examples/apo_rm.yaml"),
        *("bf16=false", "max_steps=1", "warmup=null", "stage=sft"),
    ]


def test_a_table_rounds_floats_and_keeps_bars_in_their_cells():
    assert table(["a", "b"], [[0.5, "x|y"], [None, 3]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 0.5000 | x\\|y |",
        "| - | 3 |",
    ]

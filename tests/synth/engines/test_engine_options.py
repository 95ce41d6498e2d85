"""The options by which the commands find their engine, where neither vLLM nor Ray is installed."""

from __future__ import annotations

import json

import pytest
from finepref.cli import app
from finepref.commands.engine_options import EngineName, EngineOptions, engine_of
from finepref.synth.engines.vllm import VllmEngine
from finepref.synth.ray_workers import Workers
from typer.testing import CliRunner


def engine(name: str, **options):
    model = options.pop("model", "owner/name")
    return engine_of(EngineName(name), model, EngineOptions(base_url="http://host/v1", **options))


@pytest.mark.parametrize(
    "text", ["{tensor_parallel_size: 2}", "tensor_parallel_size: 2", '{"tensor_parallel_size": 2}']
)
def test_vllm_options_are_a_mapping(text):
    found = engine("vllm", vllm_options=text)
    assert isinstance(found, VllmEngine)
    assert found.options == {"tensor_parallel_size": 2}


@pytest.mark.parametrize("text", ["--tensor-parallel-size 2 {", "[1]", "1: 2", "{a: ["])
def test_vllm_options_that_are_no_mapping_are_refused(text):
    with pytest.raises(ValueError, match="is not a mapping"):
        engine("vllm", vllm_options=text)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf", {"vllm_options": "a: 1"}, "are for --engine vllm"),
        ("openai", {"workers": 2}, "an endpoint has --concurrency"),
        ("rules", {"workers": 2}, "are for --engine hf and vllm"),
    ],
)
def test_options_of_another_engine_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        engine(name, **options)


def test_workers_get_a_folder_by_its_whole_path_and_keep_the_engines_name(tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    for name in ("hf", "vllm"):
        shared = engine(name, model=tiny_model.name, workers=2, worker_cpus=3.0, worker_gpus=0.5)
        assert shared.workers == Workers(count=2, cpus=3.0, gpus=0.5)
        assert shared.engine.name == str(tiny_model)
        assert shared.model == engine(name, model=tiny_model.name).model


@pytest.mark.parametrize(("more", "missing"), [(["--engine", "vllm"], "vllm"), (["--workers", "2"], "ray")])
def test_a_package_that_is_not_there_is_named_with_its_extra(tiny_model, tmp_path, more, missing):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "Why?", "chosen": "Because."}) + "\n")
    output = ["--output", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, ["seapo", "inject", str(source), "--model", str(tiny_model), *output, *more])
    assert result.exit_code == 1
    assert f"No module named '{missing}'" in result.output
    assert "vllm and ray are extras of their own" in result.output

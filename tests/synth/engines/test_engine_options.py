"""The options by which the commands find their engine, where neither vLLM nor Ray is installed."""

from __future__ import annotations

import json

import pytest
import torch
from finepref.cli import app
from finepref.commands.engine_options import EngineName, EngineOptions, engine_of, workers_of
from finepref.synth.engines import checkpoint
from finepref.synth.engines.vllm import VllmEngine
from finepref.synth.ray_workers import Workers, blocks
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
        ("vllm", {"device_map": "auto"}, "--device-map is for --engine hf; vLLM has"),
        ("hf", {"device_map": "auto", "workers": 2}, "needs --worker-gpus"),
    ],
)
def test_options_of_another_engine_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        engine(name, **options)


def test_the_folder_of_an_adapter_stands_for_it_and_its_base(tiny_model, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    found = engine("hf", model=str(adapter))
    assert (found.name, found.adapter) == (str(tiny_model), str(adapter))
    assert found.model != engine("hf", model=str(tiny_model)).model
    monkeypatch.chdir(tmp_path)
    shared = engine("hf", model="adapter", workers=2, worker_gpus=0.0)
    assert (shared.engine.name, shared.engine.adapter) == (str(tiny_model), str(adapter))
    with pytest.raises(ValueError, match="is an adapter, which --engine vllm does not load: merge it, or use hf"):
        engine("vllm", model=str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match="gone"):
        engine("hf", model=str(adapter))


def test_workers_get_a_folder_by_its_whole_path_and_keep_the_engines_name(tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    for name in ("hf", "vllm"):
        shared = engine(name, model=tiny_model.name, workers=2, worker_cpus=3.0, worker_gpus=0.5)
        assert shared.workers == Workers(count=2, cpus=3.0, gpus=0.5)
        assert shared.engine.name == str(tiny_model)
        assert shared.model == engine(name, model=tiny_model.name).model


@pytest.mark.parametrize(
    ("present", "given", "options", "expected"),
    [
        (True, None, {}, 1.0),
        (True, None, {"tensor_parallel_size": 4}, 4.0),
        (True, None, {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 8.0),
        (True, 0.5, {"tensor_parallel_size": 4}, 0.5),
        (False, None, {"tensor_parallel_size": 4}, 0.0),
    ],
)
def test_a_worker_has_the_gpus_that_vllm_divides_a_model_among_unless_told_otherwise(
    monkeypatch, present, given, options, expected
):
    monkeypatch.setattr(checkpoint, "accelerator", lambda: torch.device("cuda", 0) if present else None)
    assert workers_of(2, 1.0, given, options) == Workers(count=2, cpus=1.0, gpus=expected)
    text = ", ".join(f"{name}: {size}" for name, size in options.items())
    shared = engine("vllm", workers=2, worker_gpus=given, vllm_options=text)
    assert shared.workers.gpus == expected


def test_a_parallel_size_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="tensor_parallel_size 'all' is not a whole number of 1 or more"):
        engine("vllm", workers=2, vllm_options="tensor_parallel_size: all")


def test_a_device_map_reaches_the_engine_and_is_refused_under_torchrun(monkeypatch):
    assert engine("hf", device_map="auto").device_map == "auto"
    assert engine("hf", device_map="auto", workers=2, worker_gpus=4.0).engine.device_map == "auto"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="do not start it under torchrun"):
        engine("hf", device_map="auto")


@pytest.mark.parametrize(("groups", "workers", "expected"), [(0, 2, 0), (5, 2, 5), (128, 2, 128), (50_000, 8, 512)])
def test_many_groups_are_few_blocks(groups, workers, expected):
    """64 for each worker at most."""
    assert blocks(groups, workers) == expected


@pytest.mark.parametrize(("more", "missing"), [(["--engine", "vllm"], "vllm"), (["--workers", "2"], "ray")])
def test_a_package_that_is_not_there_is_named_with_its_extra(tiny_model, tmp_path, more, missing):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "Why?", "chosen": "Because."}) + "\n")
    output = ["--output", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, ["seapo", "inject", str(source), "--model", str(tiny_model), *output, *more])
    assert result.exit_code == 1
    assert f"No module named '{missing}'" in result.output
    assert "vllm and ray are extras of their own" in result.output

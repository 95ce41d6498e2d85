"""`finepref sepo score --engine vllm` on tiny random models, against plain forwards in float64 and the engine hf."""

from __future__ import annotations

import json
import shutil
import weakref

import pytest
import torch
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.synth.scorers import vllm as scoring_vllm
from finepref.synth.scorers.hf import HfScorer
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.vllm import VllmScorer
from finepref.synth.sepo import score as sepo
from safetensors.torch import save_file
from tiny_llama import save_perturbed
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

EAGER = {"enforce_eager": True}
NEAR = 1e-4
"""Of log-probabilities in float32 whose sums are taken in another order."""
ITEMS = [
    Item("a", [5, 6, 7], {"chosen": [10, 11, 12, 0], "rejected": [10, 11, 13, 14, 15, 0]}),
    Item("long", [*range(8, 108)], {"chosen": [9, 9, 0], "rejected": [*range(3, 153), 0]}),
    Item("full", [8] * 200, {"chosen": [*range(20, 75), 0], "rejected": [30, 0]}),
    Item("empty", [4, 9], {"chosen": [0], "rejected": [31, 32, 0]}),
    Item("last", [4], {"chosen": [30, 31, 0], "rejected": [30, 31]}),
]
"""For a context of 256 tokens: `long` is cut into steps of 64, and `full` fills the context."""


@pytest.fixture(scope="module")
def oracle(tiny_model, tmp_path_factory):
    return save_perturbed(tiny_model, tmp_path_factory.mktemp("oracle") / "model")


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    texts = [
        ("How many are there?", "There are 12.", "13."),
        ("Why?", "Because it is so.", "No."),
        ("And é?", "a", "b"),
    ]
    write_jsonl(path, ({"id": f"{i}", "prompt": p, "chosen": c, "rejected": r} for i, (p, c, r) in enumerate(texts)))
    return path


def alone(network, prompt, response):
    """log softmax of the logits at the position before each response token, the sequence in a row of its own."""
    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *response]])).logits[0]
    return [logits[len(prompt) + i - 1].log_softmax(-1)[token].item() for i, token in enumerate(response)]


def assert_as_each_alone(found, folder):
    network = AutoModelForCausalLM.from_pretrained(folder).double()
    assert sorted(found) == sorted(item.id for item in ITEMS)
    for item in ITEMS:
        assert [*found[item.id]] == [*item.responses]
        for name, response in item.responses.items():
            values = found[item.id][name]
            assert values.dtype == torch.float32
            assert values.tolist() == pytest.approx(alone(network, item.prompt, response), abs=NEAR), (item.id, name)


def test_every_response_token_has_the_log_probability_of_a_plain_forward_and_the_model_leaves_the_memory(
    tiny_model, monkeypatch
):
    """In groups of 2 and steps of 64 tokens. What is done is not yielded, a group of it not read: 999 is no token."""
    models = []

    class Watched(VllmScorer):
        def load(self, items):
            engine = super().load(items)
            models.extend(engine.apply_model(weakref.ref))
            return engine

    monkeypatch.setattr(scoring_vllm, "GROUP", 2)
    done = [Item(name, [4], {"chosen": [token, 0]}) for name, token in (("c", 9), ("d", 999), ("e", 999))]
    found = {}
    for together in Watched(str(tiny_model), batch_tokens=64, options=EAGER).logps(
        [*ITEMS, *done], done=["c", "d", "e"]
    ):
        assert models[0]() is not None
        found |= dict(together)
    assert models[0]() is None
    assert_as_each_alone(found, tiny_model)


def test_a_run_that_was_cut_off_goes_on_to_the_same_files(pairs, oracle, tiny_model, tmp_path):
    """After the first step that finishes a record: the other two, which are under way, are lost."""

    class StopsAfterAStep(VllmScorer):
        def logps(self, items, *, done=()):
            yield next(super().logps(items, done=done))
            raise KeyboardInterrupt

    def scored(output, kind=VllmScorer):
        reference = kind(str(tiny_model), batch_tokens=64, options=EAGER)
        return sepo.score(
            pairs, output, oracle=HfScorer(str(oracle)), reference=reference, limits=sepo.Limits()
        ).scored

    def contents(output):
        return [output.with_suffix(suffix).read_bytes() for suffix in (".jsonl", ".parquet", ".report.json")]

    calm, cut = tmp_path / "calm.jsonl", tmp_path / "cut.jsonl"
    assert scored(calm) == 3
    with pytest.raises(KeyboardInterrupt):
        scored(cut, StopsAfterAStep)
    assert not cut.exists()
    journal = tmp_path / "cut.work" / "reference-0-of-1" / "journal.jsonl"
    assert len(json.loads(journal.read_text())) == 1
    assert scored(cut) == 3
    assert contents(cut) == contents(calm)


def test_a_record_without_room_is_named_before_anything_is_read(tiny_model):
    scorer = VllmScorer(str(tiny_model), options={"max_model_len": 255})
    with pytest.raises(ValueError, match=r"^record full has 256 tokens and vLLM room for 255 \(max_model_len\)$"):
        next(scorer.logps(ITEMS))


def test_the_command_gives_the_scores_of_hf_also_beside_another_rank(pairs, oracle, tiny_model, tmp_path, monkeypatch):
    """Of the only record, which is rank 0's."""
    pairs.write_text(pairs.read_text().splitlines()[0] + "\n")
    rows = {}
    for engine, more in (("hf", []), ("vllm", ["--vllm-options", "enforce_eager: true"])):
        output = tmp_path / f"{engine}.jsonl"
        command = ["sepo", "score", f"{pairs}", "--output", f"{output}", "--reference", f"{tiny_model}"]
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, told in (("1", "rank 1 of 2 is done"), ("0", f"{output}: 1 scored pairs")):
            monkeypatch.setenv("RANK", rank)
            result = CliRunner().invoke(app, [*command, "--oracle", f"{oracle}", "--engine", engine, *more])
            assert result.exit_code == 0, result.output
            assert result.stdout.splitlines()[-1].startswith(told)
        [(_, rows[engine])] = read_jsonl(output, problems=None)
    for side in sepo.SIDES:
        expected, found = (rows[engine].pop(f"{side}_scores") for engine in ("hf", "vllm"))
        assert max(map(abs, expected)) > 0.01
        assert found == pytest.approx(expected, abs=2 * NEAR)
    assert rows["hf"] == rows["vllm"]


def test_an_adapter_scores_as_its_weights_added(tiny_model, tmp_path):
    """W + (alpha / r) B A with alpha 4, r 2, for the query projections, as peft writes it."""
    torch.manual_seed(2)
    merged = AutoModelForCausalLM.from_pretrained(tiny_model)
    low = {}
    for number, layer in enumerate(merged.model.layers):
        weight = layer.self_attn.q_proj.weight
        a, b = torch.randn(2, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], 2) * 0.2
        weight.data += 4 / 2 * b @ a
        start = f"base_model.model.model.layers.{number}.self_attn.q_proj.lora"
        low |= {f"{start}_A.weight": a, f"{start}_B.weight": b}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(low, adapter / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    shutil.copytree(tiny_model, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    scorer = VllmScorer(str(tiny_model), adapter=str(adapter), options=EAGER)
    found = dict(each for together in scorer.logps(ITEMS) for each in together)
    assert_as_each_alone(found, tmp_path / "merged")
    plain = alone(AutoModelForCausalLM.from_pretrained(tiny_model), ITEMS[0].prompt, ITEMS[0].responses["chosen"])
    assert (found["a"]["chosen"] - torch.tensor(plain)).abs().max() > 0.1


def test_an_adapter_of_the_output_head_is_refused(tiny_model, tmp_path):
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2}))
    with pytest.raises(ValueError, match="changes the output head, which vLLM cannot score with"):
        next(VllmScorer(str(tiny_model), adapter=str(tmp_path)).logps(ITEMS))

"""`finepref sepo score --engine vllm` on tiny random models, against plain forwards in float64 and the engine hf."""

from __future__ import annotations

import json
import shutil
import weakref

import pytest
import torch
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.synth import scoring_vllm, sepo
from finepref.synth.scoring import Item
from finepref.synth.scoring_vllm import VllmScorer
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


def scored(pairs, output, oracle, reference, *, scorer=VllmScorer, **settings):
    made = [kind(str(folder), **settings) for kind, folder in ((VllmScorer, oracle), (scorer, reference))]
    return sepo.score(pairs, output, oracle=made[0], reference=made[1], limits=sepo.Limits())


def test_every_response_token_has_the_log_probability_of_a_plain_forward(tiny_model, monkeypatch):
    """In groups of 2 and steps of 64 tokens. What is done is left out, and with it a group that is done."""
    monkeypatch.setattr(scoring_vllm, "GROUP", 2)
    scorer = VllmScorer(str(tiny_model), batch_tokens=64, options=EAGER)
    together = [*scorer.logps(ITEMS)]
    assert len(together) > 3
    assert_as_each_alone(dict(each for some in together for each in some), tiny_model)
    again = dict(each for some in scorer.logps(ITEMS, done=["a", "long", "full"]) for each in some)
    assert sorted(again) == ["empty", "last"]


def test_a_model_leaves_the_memory_when_all_is_read(tiny_model):
    models = []

    class Watched(VllmScorer):
        def load(self, items):
            engine = super().load(items)
            models.extend(engine.apply_model(weakref.ref))
            return engine

    for _ in Watched(str(tiny_model), options=EAGER).logps(ITEMS):
        assert models[0]() is not None
    assert models[0]() is None


def test_a_run_that_was_cut_off_goes_on_to_the_same_files(pairs, oracle, tiny_model, tmp_path):
    class StopsAfterAStep(VllmScorer):
        def logps(self, items, *, done=()):
            yield next(super().logps(items, done=done))
            raise KeyboardInterrupt

    def contents(output):
        return [output.with_suffix(suffix).read_bytes() for suffix in (".jsonl", ".parquet", ".report.json")]

    settings = {"batch_tokens": 64, "options": EAGER}
    scored(pairs, tmp_path / "calm.jsonl", oracle, tiny_model, **settings)
    cut = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        scored(pairs, cut, oracle, tiny_model, scorer=StopsAfterAStep, **settings)
    assert not cut.exists()
    journals = [tmp_path / "cut.work" / f"{role}-0-of-1" / "journal.jsonl" for role in sepo.ROLES]
    entries = [
        [each for line in journal.read_text().splitlines() for each in json.loads(line)] for journal in journals
    ]
    assert [len(each) for each in entries] == [3, 1]
    assert scored(pairs, cut, oracle, tiny_model, **settings).scored == 3
    assert contents(cut) == contents(tmp_path / "calm.jsonl")


def test_a_record_without_room_is_named_before_anything_is_read(tiny_model):
    scorer = VllmScorer(str(tiny_model), options={"max_model_len": 255})
    with pytest.raises(ValueError, match=r"^record full has 256 tokens and vLLM room for 255 \(max_model_len\)$"):
        next(scorer.logps(ITEMS))


def test_the_command_gives_the_scores_of_hf_and_ranks_share_the_work(pairs, oracle, tiny_model, tmp_path, monkeypatch):
    def run(output, *more):
        command = ["sepo", "score", f"{pairs}", "--output", f"{output}", "--reference", f"{tiny_model}"]
        result = CliRunner().invoke(app, [*command, "--oracle", f"{oracle}", *more])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[-1]

    run(tmp_path / "hf.jsonl")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("1", "rank 1 of 2 is done"), ("0", f"{tmp_path / 'vllm.jsonl'}: 3 scored pairs")):
        monkeypatch.setenv("RANK", rank)
        assert run(tmp_path / "vllm.jsonl", "--engine", "vllm", "--vllm-options", "enforce_eager: true").startswith(
            told
        )
    expected, found = (
        [row for _, row in read_jsonl(tmp_path / name, problems=None)] for name in ("hf.jsonl", "vllm.jsonl")
    )
    assert len(found) == 3
    for one, other in zip(expected, found, strict=True):
        for side in sepo.SIDES:
            assert max(map(abs, one[f"{side}_scores"])) > 0.01
            assert other.pop(f"{side}_scores") == pytest.approx(one.pop(f"{side}_scores"), abs=2 * NEAR)
        assert one == other


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

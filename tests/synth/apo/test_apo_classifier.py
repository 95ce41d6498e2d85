"""`finepref apo export`: plain transformers gives the rewards of `finepref apo score`, on batches of any lengths."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.synth.apo.reward_model import RewardModel
from safetensors.torch import load_file, save_file
from tiny_llama import save_chatml_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello?"},
    {"role": "user", "content": "Name a colour, a number and a word."},
]
ROWS = [
    {"id": "a", "prompt": "What is 1 + 1?", "responses": ["2", "It is two, which everybody should know.", "3!"]},
    {"id": "b", "messages": TURNS, "responses": ["Blue, 4, oak.", "No"]},
]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory) -> Path:
    return save_chatml_llama(tmp_path_factory.mktemp("chatml"))


def with_head(model: Path, folder: Path, bias: float = 0.0) -> Path:
    """A full reward model as LLaMA-Factory saves it."""
    shutil.copytree(model, folder)
    torch.manual_seed(3)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([bias])}
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def full(chatml, tmp_path_factory) -> Path:
    return with_head(chatml, tmp_path_factory.mktemp("full") / "model")


def called(*words: object, code: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["apo", *map(str, words)])
    assert outcome.exit_code == code, outcome.output
    return outcome.output


def scores(folder: Path, tmp_path: Path, *words: object) -> list[float]:
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    write_jsonl(place / "rows.jsonl", ROWS)
    called("score", place / "rows.jsonl", "--output", place / "scored.jsonl", "--model", folder, *words)
    return [reward for _, row in read_jsonl(place / "scored.jsonl", problems=None) for reward in row["rewards"]]


def dialogues() -> list[list[dict]]:
    found = []
    for row in ROWS:
        turns = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        found += [[*turns, {"role": "assistant", "content": response}] for response in row["responses"]]
    return found


def logits(folder: Path, padding_side: str = "right", dtype: object = "auto") -> list[float]:
    """Of all dialogues in one batch, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    batch = tokenizer.apply_chat_template(dialogues(), padding=True, return_tensors="pt", return_dict=True)
    assert len({*batch["attention_mask"].sum(1).tolist()}) > 2, "the batch is to be ragged"
    with torch.no_grad():
        found = model(**batch).logits
    assert found.shape == (len(dialogues()), 1)
    return found[:, 0].tolist()


@pytest.mark.parametrize("pooling", ["last", "eos"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rewards_of_plain_transformers_are_those_of_apo_score(full, tmp_path, pooling, side):
    output = called("export", full, tmp_path / "classifier", "--pooling", pooling)
    assert f"LlamaForSequenceClassification, reward at {pooling}, padding token <|pad|>" in output
    expected = scores(full, tmp_path, "--pooling", pooling)
    assert max(expected) - min(expected) > 0.1
    assert logits(tmp_path / "classifier", side) == pytest.approx(expected, abs=1e-4)


def test_the_folder_says_what_it_is(full, tmp_path):
    receipt = {"stage": "apo_rm", "settings": {"apo_pooling": "eos"}, "seed": 1, "datasets": [], "rows": {}}
    receipt |= {"first_step": 0, "optimizer_steps": 1, "run": {"template": None}}
    trained = tmp_path / "trained"
    shutil.copytree(full, trained)
    (trained / "finepref_receipt.json").write_text(json.dumps(receipt))
    (trained / "README.md").write_text("# Mine\n\n## Stage `apo_rm`\n\nOptions.\n")
    assert "reward at eos" in called("export", trained, tmp_path / "classifier")
    config = json.loads((tmp_path / "classifier/config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["id2label"], config["label2id"]) == ({"0": "reward"}, {"reward": 0})
    assert (config["problem_type"], config["pad_token_id"]) == ("regression", tokenizer.pad_token_id)
    assert json.loads((tmp_path / "classifier/finepref_receipt.json").read_text()) == receipt
    card = (tmp_path / "classifier/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    assert "read at the end token `<|im_end|>`" in card
    assert card.endswith("## Stage `apo_rm`\n\nOptions.\n")
    tensors = load_file(tmp_path / "classifier/model.safetensors")
    assert tensors["score.weight"].shape == (1, 32)
    assert not any(name.startswith("lm_head") for name in tensors)


def test_the_exported_folder_can_be_scored_and_exported_again(full, tmp_path):
    called("export", full, tmp_path / "one")
    assert scores(tmp_path / "one", tmp_path) == pytest.approx(scores(full, tmp_path), abs=1e-6)
    called("export", tmp_path / "one", tmp_path / "two")
    assert logits(tmp_path / "two") == logits(tmp_path / "one")


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_an_adapter_is_merged(chatml, tmp_path, kind):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **kind)
    adapter = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(chatml), config).save_pretrained(adapter)
    AutoTokenizer.from_pretrained(chatml).save_pretrained(adapter)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, adapter / "value_head.safetensors")
    called("export", adapter, tmp_path / "classifier", "--base", chatml)
    expected = scores(adapter, tmp_path, "--base", chatml)
    assert logits(tmp_path / "classifier") == pytest.approx(expected, abs=1e-4)
    assert logits(tmp_path / "classifier") != pytest.approx(scores(chatml_head(chatml, head, tmp_path), tmp_path))


def chatml_head(model: Path, head: dict, folder: Path) -> Path:
    shutil.copytree(model, folder / "without_adapter")
    save_file(head, folder / "without_adapter" / "value_head.safetensors")
    return folder / "without_adapter"


def test_what_openrlhf_saves_is_exported_under_the_name_that_others_read(full, tmp_path):
    theirs = tmp_path / "openrlhf"
    shutil.copytree(full, theirs)
    head = load_file(theirs / "value_head.safetensors")["v_head.summary.weight"]
    (theirs / "value_head.safetensors").unlink()
    save_file(
        load_file(theirs / "model.safetensors") | {"value.weight": head},
        theirs / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((theirs / "config.json").read_text()) | {
        "value_head_prefix": "value",
        "normalize_reward": False,
    }
    (theirs / "config.json").write_text(json.dumps(config))
    called("export", theirs, tmp_path / "classifier")
    assert logits(tmp_path / "classifier") == pytest.approx(scores(full, tmp_path), abs=1e-4)
    written = json.loads((tmp_path / "classifier/config.json").read_text())
    assert not written.keys() & {"value_head_prefix", "normalize_reward"}


def test_in_16_bits_the_head_stays_exact(full, tmp_path):
    called("export", full, tmp_path / "classifier", "--dtype", "bfloat16")
    tensors = load_file(tmp_path / "classifier/model.safetensors")
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    assert torch.equal(tensors["score.weight"], load_file(full / "value_head.safetensors")["v_head.summary.weight"])


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_another_pooling_is_refused_by_name(full, tmp_path, pooling):
    output = called("export", full, tmp_path / "classifier", "--pooling", pooling, code=1)
    assert f"this reward model has pooling {pooling}" in output
    assert not (tmp_path / "classifier").exists()


def test_a_bias_is_refused_or_left_out_on_demand(chatml, tmp_path):
    biased = with_head(chatml, tmp_path / "biased", bias=0.75)
    assert "has the bias 0.75" in called("export", biased, tmp_path / "classifier", code=1)
    assert "lower by 0.75" in called("export", biased, tmp_path / "classifier", "--drop-bias")
    expected = [reward - 0.75 for reward in scores(biased, tmp_path)]
    assert logits(tmp_path / "classifier") == pytest.approx(expected, abs=1e-4)
    assert "lower by 0.75" in (tmp_path / "classifier/README.md").read_text()


def test_a_padding_token_that_is_the_token_read_is_replaced_or_refused(tiny_model, tmp_path):
    """transformers reads the last token that is not the padding token."""
    model = with_head(tiny_model, tmp_path / "model")
    called("export", model, tmp_path / "last")
    assert logits(tmp_path / "last") == pytest.approx(scores(model, tmp_path), abs=1e-4)
    assert "the tokenizer pads with it: give it another pad_token" in called(
        "export", model, tmp_path / "eos", "--pooling", "eos", code=1
    )
    assert not (tmp_path / "eos").exists()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.unk_token = "!"
    tokenizer.save_pretrained(model)
    assert "padding token !" in called("export", model, tmp_path / "eos", "--pooling", "eos")
    assert logits(tmp_path / "eos") == pytest.approx(scores(model, tmp_path, "--pooling", "eos"), abs=1e-4)


def test_a_chat_template_that_writes_other_tokens_than_the_training_is_named(full, tmp_path):
    from finepref.synth.apo import classifier
    from finepref.synth.encoding import Template, Tokens

    def encoder(tokenizer):
        return lambda prompt, response: Tokens(tokenizer("Q:")["input_ids"], tokenizer(response)["input_ids"], 0, [])

    model = RewardModel(full, template=Template("other", encoder))
    (note,) = classifier.write(model, tmp_path / "classifier").notes
    assert note.startswith(
        "The tokenizer's chat template does not write the tokens of the training's template (other)"
    )
    assert note in (tmp_path / "classifier/README.md").read_text()


def test_a_folder_with_files_in_it_is_not_overwritten(full, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    assert "exists already" in called("export", full, tmp_path / "there", code=1)
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["notes.txt"]


def test_an_architecture_without_such_a_class_is_one_line(full, tmp_path, monkeypatch):
    """Bamba has a causal language model, and no class for sequences."""
    from finepref.synth.apo import classifier
    from transformers import BambaConfig, LlamaModel

    decoder = LlamaModel.from_pretrained(full)
    decoder.config = BambaConfig()
    monkeypatch.setattr(classifier, "_merged", lambda model: decoder)
    assert "no SequenceClassification class for bamba" in called("export", full, tmp_path / "classifier", code=1)

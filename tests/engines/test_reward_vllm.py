"""vLLM serves what `finepref apo export` writes: its answers are the rewards of `finepref apo score`."""

from __future__ import annotations

import shutil

import pytest
import torch
from finepref.formats.records import Message
from finepref.synth.apo.classifier import write
from finepref.synth.apo.reward_model import RewardModel
from safetensors.torch import save_file
from transformers import AutoTokenizer

ASKED = [("a", "b"), ("What is this?", "A somewhat longer answer than the others, to stand beside."), ("Why?", "")]


def test_classify_gives_the_rewards_of_apo_score(tiny_model, tmp_path):
    """Without a problem_type in the configuration vLLM would answer with the sigmoid of the reward."""
    from vllm import LLM

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(3)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, folder / "value_head.safetensors")
    model = RewardModel(folder)
    rows = {str(i): model.sequence([Message("user", q)], answer) for i, (q, answer) in enumerate(ASKED)}
    expected = {name: reward for batch in model.rewards(rows) for name, reward in batch.items()}
    write(model, tmp_path / "classifier")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    asked = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in ASKED]
    prompts = [{"prompt_token_ids": ids} for ids in tokenizer.apply_chat_template(asked, return_dict=False)]
    llm = LLM(str(tmp_path / "classifier"), enforce_eager=True, dtype="float32", max_num_seqs=8)
    found = [each.outputs.probs for each in llm.classify(prompts)]
    assert [len(each) for each in found] == [1, 1, 1]
    assert [each[0] for each in found] == pytest.approx([expected[str(i)] for i in range(3)], abs=1e-4)
    assert any(not 0 < reward < 1 for reward in expected.values())

"""`finepref apo score` on what OpenRLHF trained: the rewards of the host's own model class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ranked_rows
from finepref.formats.jsonl import write_jsonl
from finepref.synth.reward import RewardModel, score


def rewards_by_host(folder: Path, texts: list[str]) -> list[float]:
    """A batch padded on the left, as the host's trainer and its reward server make it."""
    import torch
    from openrlhf.models import get_llm_for_sequence_regression
    from transformers import AutoTokenizer

    kwargs = {"param_dtype": "fp32", "attn_implementation": "eager"}
    model = get_llm_for_sequence_regression(str(folder), "reward", **kwargs).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"]).tolist()


@pytest.mark.parametrize("pooling", ["last", "eos"])
def test_scores_are_those_of_the_hosts_reward_model(train, tmp_path, pooling):
    records = ranked_rows()
    done = train("apo_rm", apo__pooling=pooling, adam__lr=1e-2)
    write_jsonl(tmp_path / "lists.jsonl", records)
    output = tmp_path / "scored.jsonl"
    score(tmp_path / "lists.jsonl", output, model=RewardModel(done.folder, pooling=pooling))
    found = [reward for line in output.read_text().splitlines() for reward in json.loads(line)["rewards"]]
    end = "<|im_end|>" if pooling == "eos" else ""
    texts = [
        f"<|im_start|>user\n{record['prompt']}<|im_end|>\n<|im_start|>assistant\n{response}{end}"
        for record in records
        for response in record["responses"]
    ]
    assert found == pytest.approx(rewards_by_host(done.folder, texts), abs=1e-4)
    assert max(found) - min(found) > 0.01

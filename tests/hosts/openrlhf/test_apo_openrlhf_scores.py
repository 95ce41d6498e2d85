"""`finepref apo score` on what OpenRLHF trained: the rewards of the host's own model class."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finepref.formats import records
from finepref.formats.jsonl import write_jsonl
from finepref.synth.apo.reward_model import RewardModel
from finepref.synth.apo.score import score
from openrlhf_runs import tensors
from sample_rows import ranked_rows


def rewards_by_host(folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A batch padded on the left, as the host's trainer and its reward server make it."""
    import torch
    from openrlhf.models import get_llm_for_sequence_regression
    from transformers import AutoTokenizer

    monkeypatch.setattr("openrlhf.utils.utils.convert_to_torch_dtype", lambda name: torch.float32)
    kwargs = {"param_dtype": "fp32", "attn_implementation": "eager"}
    model = get_llm_for_sequence_regression(str(folder), "reward", **kwargs).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"]).tolist()


@pytest.mark.parametrize("pooling", ["last", "eos"])
def test_scores_are_those_of_the_hosts_reward_model(train, tmp_path, monkeypatch, pooling):
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
    assert found == pytest.approx(rewards_by_host(done.folder, texts, monkeypatch), abs=1e-4)
    assert max(found) - min(found) > 0.01


@pytest.mark.parametrize("pooling", ["last", "eos"])
def test_the_scorer_reads_the_tokens_that_were_trained_on_also_where_they_were_cut(train, pooling):
    """The scorer cuts each response's prompt alone, training as its list's longest response needs it."""
    from finepref.hosts.openrlhf import data, ranked
    from finepref.hosts.openrlhf.notes import Notes
    from finepref.hosts.reading import Sourced
    from finepref.hosts.rows import Rows
    from finepref.methods.apo_rm import STAGE as APO_RM
    from finepref.methods.options import in_yaml

    model = RewardModel(train("apo_rm").folder, pooling=pooling)
    options = APO_RM.options.read("openrlhf", {"apo_pooling": pooling}, in_yaml)
    rows = [row | {"scores": [*range(len(row["scores"]), 0, -1)]} for row in ranked_rows()]
    found = [Sourced("", i, records.parse(row, "ranked", file="", line=i)) for i, row in enumerate(rows)]

    def read() -> list[list]:
        return [[model.sequence(each.record.prompt, text) for text in each.record.responses] for each in found]

    lengths = [[len(row.ids) for row in each] for each in read()]
    for limit in (max(map(max, lengths)) - 1, max(map(max, lengths)) - 3):
        given = SimpleNamespace(
            input_template=None, apply_chat_template=True, tokenizer_chat_template=None, max_len=limit
        )
        encoder = data.Encoder(model.tokenizer, given, policy=options.overlong, rule=data.reward_rule)
        trained = ranked.tokenise(found, encoder, "rows", Notes(Rows(), options.bad_rows), options=options)
        model.cutoff_len = limit
        seen = set()
        for scored, row, whole in zip(read(), trained, lengths, strict=True):
            for each, ids, length in zip(scored, row.sequences, whole, strict=True):
                seen.add(each.cut)
                sequence = each.ids[: each.position + 1]
                beyond = max(0, max(whole) - limit) - max(0, length - limit)
                assert sequence[beyond:] == ids.tolist()
        assert seen == {False, True}


def test_a_reward_model_goes_on_with_its_own_value_head_where_it_is_told_to(train, attempt, tiny_model, tmp_path):
    def head(folder):
        return tensors(folder)["score.weight"]

    first = train("apo_rm", ckpt__output_dir=tmp_path / "first").folder
    again = {"model__model_name_or_path": first, "adam__lr": 0.0}
    kept = train("apo_rm", ckpt__output_dir=tmp_path / "kept", apo__keep_value_head=True, **again).folder
    assert torch.equal(head(kept), head(first))
    drawn = train("apo_rm", ckpt__output_dir=tmp_path / "drawn", **again).folder
    assert not torch.equal(head(drawn), head(first))

    refused = attempt("apo_rm", apo__keep_value_head=True)
    assert refused.code == 1
    assert f"{tiny_model} has no value head" in refused.output

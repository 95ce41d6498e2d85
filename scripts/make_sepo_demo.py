"""Makes dataset_info/samples/sepo_demo.jsonl: token scores of tdpo_demo by a small oracle against its own start.

The oracle is SmolLM2-135M-Instruct after the 20 steps of KTO that `make demo` trains (seed 7, LoRA); a real one is
trained by examples/sepo_oracle_dpo.yaml.

    make demo
    .venvs/llamafactory/bin/python scripts/make_sepo_demo.py demo/models/smollm2 demo/saves/seapo_kto
"""

import argparse
from pathlib import Path

import torch
from finepref.formats import jsonl, records
from finepref.formats.scores import fingerprint
from finepref.losses.ops import token_logps
from finepref.losses.sepo import token_reward
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLES = Path(__file__).parents[1] / "dataset_info" / "samples"


@torch.no_grad()
def scored(record: records.SpanPair, model: PeftModel, tokenizer) -> records.ScoredPair:
    """The pair with log pi_oracle - log pi_ref of each response token and of the end token."""
    turns = [turn._asdict() for turn in record.prompt]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = {}
    for side, text in (("chosen", record.chosen), ("rejected", record.rejected)):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([[*context, *encoded["input_ids"], tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(context)] = -100
        oracle = token_logps(model(ids).logits, labels)
        with model.disable_adapter():
            reference = token_logps(model(ids).logits, labels)
        reward = token_reward(oracle, reference)[0, len(context) - 1 :]
        found[f"{side}_scores"] = tuple(round(value, 4) for value in reward.tolist())
        found[f"{side}_offsets"] = (*map(tuple, encoded["offset_mapping"]), (len(text), len(text)))
    return records.ScoredPair(
        id=record.id.removesuffix(":correctness"),
        prompt=record.prompt,
        chosen=record.chosen,
        rejected=record.rejected,
        tokenizer=fingerprint(tokenizer.backend_tokenizer.to_str()),
        **found,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="the model that the oracle started from")
    parser.add_argument("oracle", help="the oracle's adapter")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.reference)
    model = AutoModelForCausalLM.from_pretrained(arguments.reference, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, arguments.oracle).eval()
    pairs = [
        records.parse(row, "span_pair") for _, row in jsonl.read_jsonl(SAMPLES / "tdpo_demo.jsonl", problems=None)
    ]
    jsonl.write_jsonl(SAMPLES / "sepo_demo.jsonl", (records.to_row(scored(pair, model, tokenizer)) for pair in pairs))


if __name__ == "__main__":
    main()

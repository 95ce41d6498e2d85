"""Models and rows of the benchmarks. Run in the environment of LLaMA-Factory:

    .venvs/llamafactory/bin/python benchmarks/training/inputs.py FOLDER '{"model": "tiny-128k", "rows": "real", ...}'

The pairs are LLaMA-Factory's dpo_en_demo, 300 rows with answers of about 330 tokens. The negatives are made from its
chosen answers as SeaPO makes them, one error each, by rule: `finepref.synth.seapo.error_rules` where the answer has a
correct equation, else the rules below. Every peer gets the same texts in its own format, in the same order.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TYPES = ("correctness", "logic", "hallucination")
TINY = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY = 128_256
SHORTEST = 64
"""Tokens of a response. Without it rows that fit would be those with answers of a few words."""


def make_model(folder: Path, name: str, sizes: dict[str, int]) -> None:
    """A model folder: `smollm2`, or a random Llama of the given sizes with SmolLM2's tokenizer."""
    if (folder / "config.json").exists():
        return
    from finepref.synth import smollm2
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    source = folder.parent / "smollm2"
    smollm2.convert(source)
    if name == "smollm2":
        return
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = CHATML  # SmolLM2's adds a system turn
    tokenizer.save_pretrained(partial)
    set_seed(0)
    special = {f"{each}_token_id": getattr(tokenizer, f"{each}_token_id") for each in ("bos", "eos", "pad")}
    longest = {"max_position_embeddings": 16_384, "tie_word_embeddings": False}
    LlamaForCausalLM(LlamaConfig(**{**TINY, "vocab_size": VOCABULARY, **sizes}, **special, **longest)).save_pretrained(
        partial
    )
    partial.rename(folder)


def demo_pairs(path: str) -> list[dict[str, Any]]:
    """Turns, chosen and rejected of dpo_en_demo: a file, or else from the source archive of llamafactory on PyPI."""
    if path:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            wanted = ["--no-deps", "--no-binary", ":all:", "llamafactory==0.9.5"]
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--dest", scratch, *wanted], check=True
            )
            (archive,) = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                (member,) = (each for each in packed.getnames() if each.endswith("/data/dpo_en_demo.json"))
                rows = json.load(packed.extractfile(member))
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    return [
        {
            "messages": [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]],
            "chosen": row["chosen"]["value"],
            "rejected": row["rejected"]["value"],
        }
        for row in rows
    ]


def with_error(record: dict[str, Any], name: str, error_type: str) -> str:
    """The chosen answer with one error."""
    from finepref.formats.records import Message
    from finepref.synth.seapo.error_rules import INVENTED, inject

    draw, answer = random.Random(name), record["chosen"]
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in record["messages"])
    if found := inject(error_type, prompt=prompt, chosen=answer, seed=0, record_id=name):
        return found.text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", answer)] or [len(answer)]
    place = draw.choice(ends)
    if error_type == "correctness":
        words = list(re.finditer(r"[A-Za-z]{4,}", answer))
        old = draw.choice(words)
        new = draw.choice([word[0] for word in words if word[0] != old[0]])
        return answer[: old.start()] + new + answer[old.end() :]
    sentence = "It follows that the opposite is true." if error_type == "logic" else draw.choice(INVENTED).format(n=37)
    return f"{answer[:place]} {sentence}{answer[place:]}"


def chosen_rows(pairs: list[dict[str, Any]], asked: dict[str, Any], encode: Any) -> Iterator[dict[str, Any]]:
    """Records of the demo that fit; in `long prompts` the prompt has no fewer tokens than the chosen response."""
    for index, pair in enumerate(pairs):
        others = iter([*pairs[index + 1 :], *pairs[:index]])
        turns = [dict(turn) for turn in pair["messages"]]
        row = {**pair, "messages": turns}
        row["negative"] = with_error(pair, f"row-{index}", TYPES[index % len(TYPES)])
        row["type"] = TYPES[index % len(TYPES)]
        if asked["rows"] == "long prompts":
            before = []
            while True:
                prompt, response = encode(turns, row["chosen"])
                if len(prompt) >= len(response):
                    break
                before += next(others)["chosen"].split()
                gap = int(0.8 * (len(response) - len(prompt))) + 8
                turns[-1]["content"] = " ".join(before[:gap]) + "\n\n" + turns[-1]["content"]
                before = before[gap:]
        encoded = [encode(turns, row[side]) for side in ("chosen", "rejected", "negative")]
        fits = max(len(prompt) + len(response) for prompt, response in encoded) <= asked["cutoff_len"]
        if fits and min(len(response) for _, response in encoded) >= SHORTEST:
            yield row


def even_rows(asked: dict[str, Any], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Records with exactly so many tokens: `prompt` of words in the prompt, `response` in each response."""
    draw = random.Random(0)
    words = [each for each in tokenizer.get_vocab() if re.fullmatch(r"Ġ[a-z]{3,8}", each)]
    words = [each.replace("Ġ", " ") for each in sorted(words, key=tokenizer.get_vocab().get)[:4000]]

    def text(count: int) -> str:
        return "".join(draw.choices(words, k=count))

    for _ in range(asked["records"]):
        row = {side: text(asked["response"]) for side in ("chosen", "rejected", "negative")}
        yield {**row, "messages": [{"role": "user", "content": text(asked["prompt"])}], "type": TYPES[0]}


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    """The records in the format of every arm, and a dataset_info.json."""
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in ("dpo", "kto", "pairs", "negatives")}
    files |= {name: [] for name in ("trl_dpo", "trl_kto", "openrlhf")}
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    for index, row in enumerate(records):
        turns = row["messages"]
        sides = {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
        spoken = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
        files["dpo"].append({"conversations": spoken, **sides})
        own = {"id": f"row-{index}", "messages": turns, "chosen": row["chosen"]}
        files["pairs"].append({**own, "rejected": row["rejected"]})
        files["negatives"].append({**own, "negatives": {row["type"]: row["negative"]}})
        text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
        prompt = text + "<|im_start|>assistant\n"
        files["trl_dpo"].append({"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]})
        said = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        files["openrlhf"].append({"prompt": turns, **said})
        for label, side in ((True, "chosen"), (False, "negative")):
            answer = {"from": "gpt", "value": row[side]}
            files["kto"].append({"conversations": [*spoken, answer], "label": label})
            files["trl_kto"].append({"prompt": prompt, "completion": row[side], "label": label})
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ranking = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entries = {
        "dpo": {"formatting": "sharegpt", "ranking": True, "columns": ranking},
        "kto": {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}},
        "pairs": {"formatting": "pair"},
        "negatives": {"formatting": "negatives"},
    }
    info = {name: {"file_name": f"{name}.jsonl", **entry} for name, entry in entries.items()}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1))


def main() -> None:
    """Make the model and the data that the settings ask for; their token ids go into rows.json."""
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    model, data = folder / asked["model_folder"], folder / asked["data_folder"]
    make_model(model, asked["model"], asked.get("sizes", {}))
    if (data / "rows.json").exists():
        return
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="chatml"))

    def encode(turns: list[dict[str, str]], answer: str) -> tuple[list[int], list[int]]:
        said = [*turns, {"role": "assistant", "content": answer}]
        system = said.pop(0)["content"] if said[0]["role"] == "system" else None
        return template.encode_oneturn(tokenizer, said, system)

    data.mkdir(parents=True, exist_ok=True)
    if "response" in asked:
        records = list(even_rows(asked, tokenizer))
    else:
        found = chosen_rows(demo_pairs(asked.get("pairs", "")), asked, encode)
        records = list(islice(found, asked["records"]))
        if len(records) < asked["records"]:
            sys.exit(f"only {len(records)} rows of the demo fit into {asked['cutoff_len']} tokens")
    write(data, records)
    tokens = []
    for row in records:
        encoded = {side: encode(row["messages"], row[side]) for side in ("chosen", "rejected", "negative")}
        tokens.append({"prompt": encoded["chosen"][0], **{side: ids for side, (_, ids) in encoded.items()}})
    (data / "rows.json").write_text(json.dumps(tokens))


if __name__ == "__main__":
    main()

"""Tasks of lm-eval with documents of their own, and tiny models; nothing is downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_llama import byte_tokenizer, save_tiny_llama

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported

CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
num_fewshot: 2
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""
ANSWER = """\
task: tiny_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 4, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""
GROUP = """\
group: tiny_group
task: [tiny_choice, tiny_answer]
"""
RUNS_CODE = ANSWER.replace("task: tiny_answer", "task: tiny_code\nunsafe_code: true")
BEST_OF = ANSWER.replace("task: tiny_answer", "task: tiny_best")
BEST_OF = BEST_OF.replace("exact_match", "!function metrics.best_of\n    k: [1]")
BEST_OF += "filter_list: [{{name: all, filter: [{{function: custom, filter_fn: !function metrics.all_of}}]}}]\n"
METRICS = """
def best_of(references, predictions, k):
    return {f"best@{n}": float(len({*predictions[0][:n]})) for n in k}


def all_of(resps, docs):
    return resps
"""


@pytest.fixture(scope="session", autouse=True)
def prepared(tmp_path_factory):
    """What datasets prepares lies in a folder of the test."""
    import datasets

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return save_tiny_llama(
        tmp_path_factory.mktemp("models") / "tiny",
        byte_tokenizer(),
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def adapter(tiny_model) -> Path:
    """A LoRA adapter on the model that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    folder = tiny_model.parent / "lora"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    """A folder with the tasks tiny_choice and tiny_answer of 24 documents, and a group of both."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "sums.jsonl"
    rows = [
        {"question": f"What is {i} + {i}?", "choices": [f"not {i}", f"{2 * i}.", f"about {i}"], "answer": 1}
        for i in range(24)
    ]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, text in {"choice": CHOICE, "answer": ANSWER, "code": RUNS_CODE, "best": BEST_OF}.items():
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    (folder / "group.yaml").write_text(GROUP)
    (folder / "metrics.py").write_text(METRICS)
    return folder

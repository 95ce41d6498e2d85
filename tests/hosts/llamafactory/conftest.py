"""The real host on a tiny model made here; most tests run in this process, the command line where it matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_llama import save_tiny_llama

os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

ROOT = Path(__file__).parents[3]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with an untied head and a byte-level tokenizer trained on the demo rows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the answer is a number and so on", "What is 12 + 13?"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return save_tiny_llama(
        tmp_path_factory.mktemp("tiny"),
        fast,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=fast.pad_token_id,
    )


def rows(count: int = 12) -> list[dict]:
    """Negatives records of sums, each with the paper's three error types."""
    return [
        {
            "id": f"sum-{i}",
            "prompt": f"What is {i} + {i + 1}?",
            "chosen": f"{i} + {i + 1} = {2 * i + 1}. The answer is {2 * i + 1}.",
            "negatives": {
                "correctness": f"{i} + {i + 1} = {2 * i + 4}. The answer is {2 * i + 4}.",
                "logic": f"{i} + {i + 1} = {2 * i + 1}. So the answer is {i}.",
                "hallucination": f"As Gauss wrote, {i} + {i + 1} = {2 * i + 1}. The answer is {2 * i + 1}.",
            },
        }
        for i in range(count)
    ]


def span_rows(count: int = 12) -> list[dict]:
    """Pairs of right and wrong sums with two spans, on the wrong results, or on the right ones in every third pair."""
    pairs = []
    for i in range(count):
        right, wrong = f"{2 * i + 1}", f"{2 * i + 4}"
        chosen = f"{i} + {i + 1} = {right}. The answer is {right}."
        rejected = f"{i} + {i + 1} = {wrong}. The answer is {wrong}."
        row = {"id": f"span-{i}", "prompt": f"What is {i} + {i + 1}?", "chosen": chosen, "rejected": rejected}
        side, text, number = ("chosen", chosen, right) if i % 3 == 0 else ("rejected", rejected, wrong)
        row[f"{side}_spans"] = results(text, number)
        pairs.append(row)
    return pairs


def granular_rows(count: int = 12) -> list[dict]:
    """The same pairs with both results marked in the right answer."""
    return [
        {key: row[key] for key in ("id", "prompt", "chosen", "rejected")}
        | {"chosen_spans": results(row["chosen"], f"{2 * i + 1}")}
        for i, row in enumerate(span_rows(count))
    ]


def results(text: str, number: str) -> list[dict]:
    """Spans of the two places that state a result."""
    starts = (text.index("= ") + 2, text.index("is ") + 3)
    return [{"start": start, "end": start + len(number)} for start in starts]


def scored_rows(model: Path, count: int = 12) -> list[dict]:
    """The same pairs with a score for each token of the model's tokenizer and for the end token."""
    from finepref.formats.scores import fingerprint
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = []
    for row in span_rows(count):
        scored = {key: row[key] for key in ("id", "prompt", "chosen", "rejected")}
        scored["tokenizer"] = fingerprint(tokenizer.backend_tokenizer.to_str())
        for side in ("chosen", "rejected"):
            encoded = tokenizer(scored[side], add_special_tokens=False, return_offsets_mapping=True)
            places = [*encoded["offset_mapping"], (len(scored[side]),) * 2]
            scored[f"{side}_scores"] = [((7 * k + len(row["id"])) % 11 - 5) / 4 for k in range(len(places))]
            scored[f"{side}_offsets"] = [list(place) for place in places]
        pairs.append(scored)
    return pairs


def ranked_rows(count: int = 12, start: int = 0) -> list[dict]:
    """Sums with two to four scored responses; every third record is of kind apo and has two."""
    lists = []
    for i in range(start, start + count):
        total = 2 * i + 1
        texts = [f"{i} + {i + 1} = {total}.", f"{i} + {i + 1} = {total + 3}!", f"As Gauss wrote, {total}.", "No idea."]
        size = 2 if i % 3 == 2 else 2 + i % 3 + i % 2
        row = {"id": f"list-{i}", "prompt": f"What is {i} + {i + 1}?", "responses": texts[:size]}
        lists.append(row | {"scores": [1.0, 0.5, -1.0, -2.0][:size]} | ({"kind": "apo"} if i % 3 == 2 else {}))
    return lists


def write_rows(folder: Path, records: list[dict], name: str = "sums", **entry: object) -> Path:
    """A dataset_dir with one data set."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in records)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    info = folder / "dataset_info.json"
    table = json.loads(info.read_text()) if info.exists() else {}
    table[name] = {"file_name": f"{name}.jsonl", "formatting": "negatives", **entry}
    info.write_text(json.dumps(table), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sums(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset_dir with a data set of 12 records for each stage."""
    folder = write_rows(tmp_path_factory.mktemp("data"), rows())
    write_rows(folder, span_rows(), "spans", formatting="span_pair")
    write_rows(folder, granular_rows(), "granular", formatting="span_pair")
    write_rows(folder, scored_rows(tiny_model), "scores", formatting="scored_pair")
    return write_rows(folder, ranked_rows(), "lists", formatting="ranked")


DATASETS = {"seapo_kto": "sums", "sepo": "scores", "tdpo": "spans", "apo_rm": "lists", "granular_sft": "granular"}
RECIPES = {
    "seapo_kto": "seapo_kto",
    "sepo": "sepo",
    "tdpo": "tdpo_spans",
    "apo_rm": "apo_rm",
    "granular_sft": "granular_sft",
}


@pytest.fixture
def recipe(tiny_model: Path, sums: Path, tmp_path: Path):
    """The shipped recipe with what a tiny run overrides; keyword arguments override further."""
    import yaml

    def build(name: str = "seapo_kto", **overrides: object) -> dict:
        settings = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
        settings |= {
            "model_name_or_path": str(tiny_model),
            "template": "chatml",
            "dataset_dir": str(sums),
            "dataset": DATASETS.get("granular_sft" if settings.get("granular") else settings.get("stage"), "sums"),
            "output_dir": str(tmp_path / "out"),
            "bf16": False,
            "preprocessing_num_workers": 1,
            "dataloader_num_workers": 0,
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "plot_loss": False,
            "cache_dir": str(tmp_path / "cache"),
        }
        return settings | overrides

    return build


@pytest.fixture
def run(recipe):
    """Train in this process; returns the output folder, the receipt and the training log."""

    def train(**overrides: object) -> SimpleNamespace:
        from llamafactory.train.tuner import run_exp

        settings = recipe(**overrides)
        run_exp(dict(settings))
        folder = Path(settings["output_dir"])
        return SimpleNamespace(
            folder=folder,
            receipt=json.loads((folder / "finepref_receipt.json").read_text()),
            log=json.loads((folder / "trainer_state.json").read_text())["log_history"],
        )

    return train


@pytest.fixture
def command(recipe, tmp_path: Path):
    """Train by `llamafactory-cli train FILE`; returns the finished process and the output folder."""

    def call(
        *, environment: dict[str, str] | None = None, drop: tuple[str, ...] = (), **overrides: object
    ) -> SimpleNamespace:
        import yaml

        settings = {key: value for key, value in recipe(**overrides).items() if not (drop and key.startswith(drop))}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        bin_folder = str(Path(sys.executable).parent)
        process = subprocess.run(
            [f"{bin_folder}/llamafactory-cli", "train", str(file)],
            env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )
        folder = Path(settings["output_dir"])
        receipt = folder / "finepref_receipt.json"
        return SimpleNamespace(
            code=process.returncode,
            output=process.stdout + process.stderr,
            folder=folder,
            receipt=json.loads(receipt.read_text()) if receipt.exists() else None,
        )

    return call


@pytest.fixture
def refused(recipe, tmp_path, monkeypatch):
    """Run with changed records and options; the error, raised while no model could be loaded."""

    def attempt(records=None, entry=None, **overrides):
        from finepref.formats.check import BadData
        from llamafactory.train.tuner import run_exp

        monkeypatch.setattr("llamafactory.model.load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
        if records is not None:
            overrides["dataset_dir"] = str(write_rows(tmp_path / "bad", records, **(entry or {})))
        with pytest.raises((BadData, ValueError, FileNotFoundError)) as caught:
            run_exp(recipe(**overrides))
        return str(caught.value)

    return attempt


def losses(done: SimpleNamespace) -> list[float]:
    """The training losses of a run, one per step."""
    return [entry["loss"] for entry in done.log if "loss" in entry]


def weights(folder: Path) -> dict:
    """All tensors of a saved model or adapter."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}

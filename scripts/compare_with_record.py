"""Train every stage for a few steps on its demo set and compare every number with the record of an earlier commit.

    python scripts/compare_with_record.py llamafactory --environment .venvs/llamafactory
    python scripts/compare_with_record.py openrlhf --environment .venvs/openrlhf --cases 'seapo_kto,tdpo_*'
    python scripts/compare_with_record.py openrlhf --write tests/records/b40675d-openrlhf.json

Use it to prove that a change of the code did not change a run. It prints one line per difference, and exits with 1 if
there is any. What is compared, of each run: the logged losses and metrics, the receipt, the weights, log-probabilities
and losses of the first batches, the tokens that the model reads, and the trained model. Floats are compared bit by bit
where the machine rounds like the one that made the record (see `arithmetic`). On another CPU they may differ by
TOLERANCES, as a response's log-probabilities sum to about -1000, where float32 has steps of 6e-5. Whole numbers,
weights, draws and tokens are always compared exactly.

The script imports nothing of finepref but the functions in `finepref.losses` (see `LOSSES`), which it watches. It
starts the hosts by their command lines. The code that is compared is the finepref installed in the environment.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOSTS = ("llamafactory", "openrlhf")
RECORDED = "b40675d"  # the commit whose records tests/records has
TOLERANCES = {"seapo_kto": 2e-3, "tdpo": 5e-4, "": 5e-5}  # by the start of a run's name, on another CPU
# What a commit since then has changed on purpose: pattern of the place below a run -> (how far a float may be off,
# None for anything; why). Everything else must be as recorded.
INTENDED: dict[str, tuple[float | None, str]] = {}
# The same for the runs of one host whose names match, HOST.RUN.PLACE.
INTENDED_IN: dict[str, tuple[float | None, str]] = {}
SHOWN_CALLS = 2  # calls of a loss that are recorded in full; all further ones are in the digests

LOSSES = {
    "finepref.losses.sepo": ("sepo_loss",),
    "finepref.losses.tdpo": ("tdpo1_loss", "tdpo2_loss", "masked_dpo_loss"),
    "finepref.losses.kto": ("kto_loss", "kto_reference_point"),
    "finepref.losses.apo_rm": ("apo_rm_loss",),
}
EXACT = ("weight", "sides", "mask", "scores", "is_apo", "desirable", "valid")  # tensors that no rounding reaches
TIMES = re.compile(r"(runtime|per_second|_time)$")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "The answer is 12. The answer is 96. So, the answer is 873.",
    "She eats 5 eggs a day for 52 days, for a total of 5*52 = 260 eggs.",
    "How many pages does she have left to write? How many days will it last?",
    "Together, they have 15 + 5 = 20 books, which is 90/18 = 5 times as many as before.",
    "He already has 13 potted plants on each of the 58 window ledges of his large home.",
]


# the runs


def cases(host: str) -> dict[str, dict[str, Any]]:
    """The runs by name: keys of a YAML on LLaMA-Factory; on OpenRLHF a `command` and its flags."""
    return llamafactory_cases() if host == "llamafactory" else openrlhf_cases()


def tdpo_choices() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the options of TDPO that is allowed, with a name."""
    for variant, sides, normalize in product(("tdpo1", "tdpo2", "dpo"), ("two", "one"), (False, True)):
        name = f"{variant}_{sides}" + ("_normalized" if normalize else "")
        spans = {"masks": "annotated", "sides": sides, "normalize_spans": normalize}
        yield name, {"variant": variant, **spans} | ({"log_kl": True} if variant == "dpo" else {})
    for variant in ("tdpo1", "tdpo2", "dpo"):
        whole = {"masks": "none", "sides": "two", "normalize_spans": False}
        yield f"{variant}_none", {"variant": variant, **whole} | ({"log_kl": True} if variant == "dpo" else {})


def apo_choices() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the options of APO's reward model that both hosts have, with a name."""
    for loss, means, pooling in product(("ranking", "wgan"), ("per_type", "released"), ("last", "eos")):
        yield f"{loss}_{means}_{pooling}", {"loss": loss, "normalization": means, "pooling": pooling}


SEPO_CHOICES: dict[str, dict[str, Any]] = {
    "oracle": {},
    "released": {"preset": "released", "ratio_chosen": 0.5, "ratio_rejected": 0.2},
    "margin": {"gamma": 2.1, "margin": 0.3},
    "random": {"selection": "random"},
    "all": {"selection": "all"},
}


def llamafactory_cases() -> dict[str, dict[str, Any]]:
    """Three steps each, KTO's twelve, so that its draws of the second epoch are in."""
    evaluation = {"val_size": 8, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    lora = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
    kto = {"stage": "seapo_kto", "dataset": "seapo_demo", "max_steps": 12, "ref_model": "OTHER"}
    sepo = {"stage": "sepo", "dataset": "sepo_demo", "sepo_map_scores": True}
    tdpo = {"stage": "tdpo", "dataset": "tdpo_demo", "ref_model": "OTHER"}
    granular = {"stage": "sft", "granular": True, "dataset": "granular_demo"}
    apo = {"stage": "apo_rm", "dataset": "apo_demo"}
    types = {"seapo_error_types": "logic,correctness", "seapo_resample": "once", "pref_beta": 0.3}
    weights = {"kto_chosen_weight": 1.5, "kto_rejected_weight": 0.5, "pref_ftx": 0.5}
    runs = {
        "seapo_kto": kto,
        "seapo_kto_once": kto | types | weights,
        "seapo_kto_automatic_weights": kto | {"seapo_auto_weights": True, "kto_chosen_weight": 2.0, "max_steps": 3},
        "seapo_kto_lora": kto | lora | evaluation | {"ref_model": None},
    }
    for name, given in SEPO_CHOICES.items():
        runs[f"sepo_{name}"] = sepo | {f"sepo_{key}": value for key, value in given.items()}
    spans = {"stage": "sepo", "dataset": "tdpo_demo"}
    runs |= {
        "sepo_full_logits": sepo | {"finepref_full_logits": True},
        "sepo_spans": spans,
        "sepo_spans_random": spans | {"sepo_selection": "random"},
        "sepo_lora": sepo | lora | evaluation,
    }
    for name, given in tdpo_choices():
        runs[f"tdpo_{name}"] = tdpo | {f"tdpo_{key}": value for key, value in given.items()}
    runs |= {
        "tdpo_alpha": tdpo | {"tdpo_alpha": 0.7, "pref_beta": 0.2},
        "tdpo_full_logits": tdpo | {"finepref_full_logits": True},
        "tdpo_granular_demo": tdpo | {"dataset": "granular_demo", "tdpo_normalize_spans": True},
        "tdpo_lora": tdpo | lora | evaluation | {"ref_model": None},
        "granular_sft": granular,
        "granular_sft_lora": granular | lora | evaluation,
    }
    for name, given in apo_choices():
        runs[f"apo_rm_{name}"] = apo | {f"apo_{key}": value for key, value in given.items()}
    tested = {"eval_dataset": "apo_demo_test", "eval_strategy": "steps", "eval_steps": 2, "do_predict": True}
    runs |= {
        "apo_rm_mean": apo | {"apo_pooling": "mean"},
        "apo_rm_max": apo | {"apo_pooling": "max"},
        "apo_rm_lora": apo | lora | tested | {"apo_kl_coeff": 0.7, "apo_coeff": 0.5, "apo_sample_num": 2},
        "apo_rm_pairs": apo | {"dataset": "apo_demo,apo_demo_test"},
    }
    return runs


def openrlhf_cases() -> dict[str, dict[str, Any]]:
    """One epoch each, KTO's two."""
    lora = {"ds.lora.rank": 4}
    kto = {"command": "kto", "data.dataset": "seapo_demo", "train.max_epochs": 2, "ref.model_name_or_path": "OTHER"}
    sepo = {"command": "selective", "data.dataset": "sepo_demo", "selective.map_scores": True}
    tdpo = {"command": "tdpo", "data.dataset": "tdpo_demo", "ref.model_name_or_path": "OTHER"}
    apo = {"command": "apo_rm", "data.dataset": "apo_demo"}

    def evaluation(dataset: str) -> dict[str, Any]:
        return {"eval.dataset": dataset, "eval.steps": 2}

    types = {"kto.error_types": "logic,correctness", "kto.resample": "once", "model.beta": 0.3}
    weights = {"kto.chosen_weight": 1.5, "kto.rejected_weight": 0.5}
    runs = {
        "seapo_kto": kto,
        "seapo_kto_once": kto | types | weights,
        "seapo_kto_automatic_weights": kto | {"kto.auto_weights": True, "kto.chosen_weight": 2.0},
        "seapo_kto_lora": kto | lora | evaluation("seapo_demo"),
    }
    for name, given in SEPO_CHOICES.items():
        runs[f"sepo_{name}"] = sepo | {f"selective.{key}": value for key, value in given.items()}
    spans = {"command": "selective", "data.dataset": "tdpo_demo"}
    runs |= {
        "sepo_full_logits": sepo | {"selective.full_logits": True},
        "sepo_spans": spans,
        "sepo_spans_random": spans | {"selective.selection": "random"},
        "sepo_lora": sepo | lora | evaluation("sepo_demo"),
        "sepo_packed": sepo | {"ds.packing_samples": True},
    }
    for name, given in tdpo_choices():
        runs[f"tdpo_{name}"] = tdpo | {f"tdpo.{key}": value for key, value in given.items()}
    runs |= {
        "tdpo_alpha": tdpo | {"tdpo.alpha": 0.7, "model.beta": 0.2},
        "tdpo_full_logits": tdpo | {"tdpo.full_logits": True},
        "tdpo_granular_demo": tdpo | {"data.dataset": "granular_demo", "tdpo.normalize_spans": True},
        "tdpo_lora": tdpo | lora | evaluation("tdpo_demo"),
        "tdpo_packed": tdpo | {"ds.packing_samples": True},
    }
    for name, given in apo_choices():
        runs[f"apo_rm_{name}"] = apo | {f"apo.{key}": value for key, value in given.items()}
    coefficients = {"apo.kl_coeff": 0.7, "apo.coeff": 0.5, "apo.sample_num": 2}
    runs |= {
        "apo_rm_lora": apo | lora | coefficients | evaluation("apo_demo_test"),
        "apo_rm_packed": apo | {"ds.packing_samples": True},
    }
    return runs


def llamafactory_settings(given: Mapping[str, Any], work: Path, folder: Path) -> dict[str, Any]:
    """The whole YAML of a run; keys set to None are left out."""
    common = {
        "model_name_or_path": str(work / "model"),
        "template": "chatml",
        "dataset_dir": str(work / "data"),
        "do_train": True,
        "finetuning_type": "full",
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "overwrite_cache": True,
        "cutoff_len": 2048,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "preprocessing_num_workers": 1,
        "report_to": "none",
        "seed": 7,
    }
    settings = common | {key: str(work / "other") if value == "OTHER" else value for key, value in given.items()}
    return {key: value for key, value in settings.items() if value is not None}


def openrlhf_flags(given: Mapping[str, Any], work: Path, folder: Path) -> list[str]:
    """The flags of a run; True has no value, False is left out."""
    common = {
        "model.model_name_or_path": work / "model",
        "data.dataset_dir": work / "data",
        "data.apply_chat_template": True,
        "data.max_len": 2048,
        "train.batch_size": 8,
        "train.micro_batch_size": 4,
        "train.seed": 7,
        "adam.lr": 1e-3,
        "lr_warmup_ratio": 0.0,
        "logger.tensorboard_dir": folder / "tb",
        "logger.wandb.run_name": "run",
        "ckpt.output_dir": folder / "out",
        "ckpt.path": folder / "ckpt",
        "ds.param_dtype": "fp32",
    }
    flags = []
    for key, value in (common | given).items():
        if key != "command" and value is not False:
            flags += [f"--{key}"] + ([] if value is True else [str(work / "other" if value == "OTHER" else value)])
    return flags


# recording, in the environment's Python


def collect(host: str, names: list[str], work: Path) -> dict[str, Any]:
    """Train the named cases, each in a fork of this process; all that is compared, or the output of a failed run."""
    import torch

    torch.set_num_threads(1)
    made = make_models(work)
    (work / "data").mkdir()
    (work / "data/dataset_info.json").write_text("{}")  # the demo sets are found in finepref's own
    watched = Watched()
    for name in ("datasets", "peft", "accelerate", "transformers.trainer"):
        import_module(name)
    if host == "llamafactory":
        import_module("llamafactory.train.tuner")
    else:
        for name in ("deepspeed", "torch.utils.tensorboard", "tensorboard.backend.event_processing", "ray"):
            import_module(name)
    runs = {}
    for name in names:
        given = cases(host)[name]
        folder = work / name
        folder.mkdir()
        print(f"{host}: {name}", file=sys.stderr, flush=True)
        child = os.fork()
        if child == 0:
            run_forked(lambda given=given, folder=folder: train(host, given, work, folder, watched), folder)
        if os.waitpid(child, 0)[1]:
            runs[name] = {"failed": (folder / "output.txt").read_text()[-4000:]}
        else:
            runs[name] = json.loads((folder / "found.json").read_text().replace(str(work), "WORK"))
        shutil.rmtree(folder)
    return {"host": host, "arithmetic": arithmetic(work), "made": made, "runs": runs}


def run_forked(task: Callable[[], None], folder: Path) -> None:
    """Do a task with its output in a file, and end this process."""
    code = 1
    try:
        with open(folder / "output.txt", "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        task()
        code = 0
    except SystemExit as ended:
        print(ended.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(host: str, given: Mapping[str, Any], work: Path, folder: Path, watched: Watched) -> None:
    """One run by the host's command line; what it did goes to found.json."""
    if host == "llamafactory":
        settings = llamafactory_settings(given, work, folder)
        (folder / "run.yaml").write_text(json.dumps(settings))  # JSON is YAML
        sys.argv = ["llamafactory-cli", "train", str(folder / "run.yaml")]
        import_module("llamafactory.cli").main()
        logged = json.loads((folder / "out/trainer_state.json").read_text())["log_history"]
    else:
        import runpy

        from torch.utils.tensorboard import SummaryWriter

        scalars: list[tuple[str, int, float]] = []
        SummaryWriter.add_scalar = lambda self, name, value, step: scalars.append((name, step, float(value)))
        module = f"openrlhf.cli.train_{given['command']}"
        world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
        os.environ.update(world, MASTER_PORT=free_port())
        sys.argv = [module, *openrlhf_flags(given, work, folder)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        logged = by_step(scalars)
    found = {
        "settings": dict(given),
        "log": without_times(logged),
        "receipt": comparable(json.loads((folder / "out/finepref_receipt.json").read_text())),
        "calls": watched.calls,
        "model_inputs": watched.inputs,
        "model": saved_tensors(folder / "out"),
    }
    scores = folder / "out/finepref_scores.jsonl"
    if scores.exists():
        found["predicted"] = [json.loads(line) for line in scores.read_text().splitlines()[:12]]
    (folder / "found.json").write_text(json.dumps(hexed(found)))


def free_port() -> str:
    """A port for torch.distributed."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return str(listening.getsockname()[1])


class Watched:
    """The losses of finepref and the forward pass of the model, with a record of what they are called with.

    The losses are wrapped before any module that could hold a reference to them is imported.

    Attributes:
        calls: loss -> number of calls, digests over all of them, and the first ones in full.
        inputs: the same of the token ids and labels that the model reads.
    """

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        for module_name, names in LOSSES.items():
            module = import_module(module_name)
            for name in names:
                setattr(module, name, self.loss(name, getattr(module, name)))
        llama = import_module("transformers.models.llama.modeling_llama")
        llama.LlamaModel.forward = self.forward("tokens", ("input_ids",), llama.LlamaModel.forward)
        causal = llama.LlamaForCausalLM
        causal.forward = self.forward("labels", ("labels",), causal.forward)

    def loss(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The loss, which also notes its arguments and its value."""
        signature = inspect.signature(function)

        @wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            noted = {key: describe(key, value) for key, value in bound.arguments.items() if key != "group"}
            out = function(*args, **kwargs)
            note(self.calls.setdefault(name, new_entry()), noted | {"out": describe("out", out)})
            return out

        return noting

    def forward(self, name: str, keys: tuple[str, ...], function: Callable[..., Any]) -> Callable[..., Any]:
        """The forward pass, which also notes some of its arguments."""
        signature = inspect.signature(function)

        @wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            found = {key: describe(key, given[key]) for key in keys if given.get(key) is not None}
            if found:
                note(self.inputs.setdefault(name, new_entry()), found)
            return function(*args, **kwargs)

        return noting


def new_entry() -> dict[str, Any]:
    """The record of a function that has not been called yet."""
    return {"calls": 0, "sha256": "", "float_sha256": "", "first": []}


def note(entry: dict[str, Any], noted: dict[str, Any]) -> None:
    """Add one call: to the digests, and as it is while there are few."""
    entry["calls"] += 1
    for kind in ("sha256", "float_sha256"):
        entry[kind] = short(f"{entry[kind]} {list(digests(noted, kind))}".encode())
    if len(entry["first"]) < SHOWN_CALLS:
        entry["first"].append(noted)


def digests(noted: Any, kind: str) -> Iterator[str]:
    """All digests of that kind within a description."""
    if isinstance(noted, dict):
        for key, value in noted.items():
            if key == kind:
                yield value
            else:
                yield from digests(value, kind)


def describe(name: str, value: Any) -> Any:
    """A tensor as its type, shape, digest and mean (short vectors also as they are); containers part by part."""
    import torch

    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: describe(key, part) for key, part in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [describe(name, part) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.ndim == 0 and value.dtype == torch.int64:
        return value.item()  # a count is a number, wherever it lies
    exact = name in EXACT or not value.is_floating_point()
    found = {
        "type": f"{str(value.dtype).removeprefix('torch.')}{[*value.shape]}",
        "sha256" if exact else "float_sha256": short(value.contiguous().numpy().tobytes()),
        "mean": value.double().mean().item() if value.numel() else 0.0,
    }
    if exact and value.ndim > 1:
        found["not_0"] = int((value != 0).sum())
    if name == "labels":
        found["kept"] = int((value != -100).sum())
    if not exact and value.ndim < 2:
        found["values"] = value.double().reshape(-1).tolist()
    return found


def short(content: bytes) -> str:
    """64 bits of the SHA-256, which is plenty for a few thousand tensors."""
    return hashlib.sha256(content).hexdigest()[:16]


def by_step(logged: list[tuple[str, int, float]]) -> list[dict[str, Any]]:
    """(name, step, value) in the order of logging -> one entry for all that follows each other in a step."""
    entries: list[dict[str, Any]] = []
    for name, step, value in logged:
        if not entries or entries[-1]["step"] != step or name in entries[-1]:
            entries.append({"step": step})
        entries[-1][name] = value
    return entries


def without_times(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A training log without seconds."""
    return [{key: value for key, value in entry.items() if not TIMES.search(key)} for entry in logged]


def comparable(receipt: dict[str, Any]) -> dict[str, Any]:
    """A receipt without what may differ between equal runs: versions, times, the command, where patch cards stand."""
    kept = {key: value for key, value in receipt.items() if key != "versions"}
    kept["ranks"] = [{key: value for key, value in rank.items() if key != "cards"} for rank in receipt["ranks"]]
    of_this_run = ("started", "ended", "command")
    kept["run"], *kept["parts"] = (
        {key: value for key, value in part.items() if key not in of_this_run}
        for part in (receipt["run"], *receipt["parts"])
    )
    return kept


def saved_tensors(folder: Path) -> dict[str, Any]:
    """Digest and size of what the run has saved, by file."""
    import torch
    from safetensors.torch import load_file

    found = {}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        if file.suffix == ".bin" and file.name == "training_args.bin":
            continue
        tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
        content = b"".join(name.encode() + tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors))
        found[file.name] = {
            "tensors": len(tensors),
            "float_sha256": short(content),
            "mean_size": sum(t.double().abs().mean().item() for t in tensors.values()) / len(tensors),
        }
    return found


def hexed(value: Any) -> Any:
    """Floats as hexadecimal strings, which lose nothing."""
    if isinstance(value, dict):
        return {key: hexed(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [hexed(part) for part in value]
    return re.sub(r"\.?0*p", "p", value.hex()) if isinstance(value, float) else value


def make_models(work: Path) -> dict[str, str]:
    """A random two-layer Llama, another one as reference, and their byte-level tokenizer; returns their digests."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")
    fast.chat_template = CHATML
    made = {"tokenizer_sha256": short(tokenizer.to_str().encode())}
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=fast.eos_token_id,
                pad_token_id=fast.pad_token_id,
            )
        )
        model.save_pretrained(work / name)
        fast.save_pretrained(work / name)
        made[f"{name}_float_sha256"] = saved_tensors(work / name)["model.safetensors"]["float_sha256"]
    return made


def arithmetic(work: Path) -> str:
    """A digest of three plain training steps: machines on which it is equal round alike."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    numbers = []
    for step in range(3):
        ids = (torch.arange(4 * 301).view(4, 301) * (7 + step)) % model.config.vocab_size
        logps = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        loss = -torch.nn.functional.logsigmoid(logps[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1).mean(-1)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        numbers.append(loss.detach())
    content = b"".join(t.detach().contiguous().numpy().tobytes() for t in [*numbers, *model.parameters()])
    return short(content)


# comparing


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any], *, tolerant: bool = False) -> list[str]:
    """One line for everything in `found` that is not as recorded; only the runs that `found` has are compared.

    `tolerant`: floats may differ by TOLERANCES although the machine rounds alike.
    """
    alike = recorded["arithmetic"] == found["arithmetic"] and not tolerant
    lines = list(compare("made", recorded["made"], found["made"], 0.0 if alike else TOLERANCES[""]))
    for name, run in found["runs"].items():
        if "failed" in run:
            lines.append(f"{name}: the run failed:\n{run['failed']}")
        elif name not in recorded["runs"]:
            lines.append(f"{name}: not in the record")
        else:
            tolerance = next(value for start, value in TOLERANCES.items() if name.startswith(start))
            found_lines = compare(name, recorded["runs"][name], run, 0.0 if alike else tolerance)
            host = recorded.get("host", "")
            lines += [line for line in found_lines if not intended(line.removeprefix(f"{name}."), f"{host}.{name}.")]
    return lines


def intended(line: str, run: str = "") -> bool:
    """Whether a difference below a run (HOST.NAME.) is one of those that were made on purpose."""
    place, _, said = line.partition(": ")
    patterns = [*((pattern, place, each[0]) for pattern, each in INTENDED.items())]
    patterns += [(pattern, f"{run}{place}", each[0]) for pattern, each in INTENDED_IN.items()]
    for pattern, whole, relative in patterns:
        if not re.match(pattern, whole):
            continue
        floats = re.fullmatch(r"recorded (\S+), now (\S+)", said)
        if relative is None or (floats and math.isclose(*map(float, floats.groups()), rel_tol=relative)):
            return True
    return False


def compare(path: str, recorded: Any, found: Any, tolerance: float) -> Iterator[str]:
    """The differences below one place of the record; with tolerance 0 every bit of a float counts."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in recorded | found:
            place = f"{path}.{key}"
            if key not in found:
                yield f"{place}: recorded {recorded[key]!r:.80}, now absent"
            elif key not in recorded:
                yield f"{place}: not in the record, now {found[key]!r:.80}"
            elif tolerance == 0 or not key.endswith("float_sha256"):
                yield from compare(place, recorded[key], found[key], tolerance)
    elif isinstance(recorded, list) and isinstance(found, list):
        if len(recorded) != len(found):
            yield f"{path}: recorded {len(recorded)} entries, now {len(found)}"
        for index, (one, other) in enumerate(zip(recorded, found, strict=False)):
            yield from compare(f"{path}[{index}]", one, other, tolerance)
    elif type(recorded) is not type(found) or recorded != found:
        one, other = as_float(recorded), as_float(found)
        if one is None or other is None:
            yield f"{path}: recorded {recorded!r:.80}, now {found!r:.80}"
        elif tolerance == 0 or not math.isclose(one, other, rel_tol=1e-6, abs_tol=tolerance):
            yield f"{path}: recorded {one!r}, now {other!r}"


def as_float(value: Any) -> float | None:
    """The float that `hexed` wrote, None for anything else."""
    written = isinstance(value, str) and re.fullmatch(r"-?0x[01][.0-9a-f]*p[-+]\d+|-?inf|nan", value)
    return float.fromhex(value) if written else None


def as_text(found: Mapping[str, Any]) -> str:
    """A record as JSON with a line for each part of a run."""
    head = {key: value for key, value in found.items() if key != "runs"}
    runs = []
    for name, run in found["runs"].items():
        parts = (f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in run.items())
        runs.append(f"{json.dumps(name)}:{{\n" + ",\n".join(parts) + "}")
    return json.dumps(head)[:-1] + ',"runs":{\n' + ",\n".join(runs) + "}}\n"


# the command


def record_of(host: str) -> Path:
    """The file with the record of a host."""
    return ROOT / f"tests/records/{RECORDED}-{host}.json"


def found_in(environment: Path, host: str, names: list[str]) -> dict[str, Any]:
    """Run the cases with the finepref of an environment, in one process there.

    Raises:
        RuntimeError: the hosts could not be imported.
    """
    with tempfile.TemporaryDirectory() as place:
        work = Path(place).resolve()
        variables = {
            "HF_HOME": str(work / "hf"),  # nothing cached by other code
            "HF_HUB_OFFLINE": "1",
            "WANDB_DISABLED": "true",
            "WANDB_MODE": "offline",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        }
        program = [str(environment / "bin/python"), str(Path(__file__).resolve()), host]
        program += ["--environment", str(environment), "--cases", ",".join(names), "--collect", str(work)]
        done = subprocess.run(program, env=os.environ | variables, cwd=work, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"{host}: no run could be started, see above")
        return json.loads((work / "all.json").read_text())


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=HOSTS)
    parser.add_argument("--environment", type=Path, help="folder of a virtual environment; default .venvs/HOST")
    parser.add_argument("--record", type=Path, help=f"default tests/records/{RECORDED}-HOST.json")
    parser.add_argument("--cases", default="*", help="comma list of names or patterns, as tdpo_*; default all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="make a record instead of comparing with one")
    parser.add_argument(
        "--tolerant",
        action="store_true",
        help="floats may differ by rounding here too: for a change of the order of sums",
    )
    parser.add_argument("--collect", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    patterns = given.cases.split(",")
    known = list(cases(given.host))
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            parser.error(f"no such case: {pattern}; there are {', '.join(known)}")
    names = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if given.collect:
        (given.collect / "all.json").write_text(json.dumps(collect(given.host, names, given.collect)))
        return 0
    environment = (given.environment or ROOT / ".venvs" / given.host).absolute()
    try:
        found = found_in(environment, given.host, names)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    if given.write:
        failed = {name: run["failed"] for name, run in found["runs"].items() if "failed" in run}
        if failed:
            print(*(f"{name} failed:\n{output}" for name, output in failed.items()), sep="\n", file=sys.stderr)
            return 2
        given.write.write_text(as_text(found))
        return 0
    recorded = json.loads((given.record or record_of(given.host)).read_text())
    lines = differences(recorded, found, tolerant=given.tolerant)
    for line in lines:
        print(line)
    alike = recorded["arithmetic"] == found["arithmetic"] and not given.tolerant
    how = "bit by bit" if alike else "with tolerances"
    print(f"{given.host}: {len(lines)} differences in {len(names)} runs; floats were compared {how}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs arms, each measurement in a process of its own in the environment of its host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from claims import Arm, Setting
from flops import Record, Sizes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Failed(RuntimeError):  # noqa: N818
    """A process ended with an error."""


class Runs:
    """Starts processes.

    Args:
        work: folder of models, data and caches, kept between runs.
        threads: of torch.
        device: cpu or cuda; on cuda the dtype is bfloat16.
        pairs: file of LLaMA-Factory's dpo_en_demo; "" downloads it.
    """

    def __init__(self, work: Path, threads: int, device: str, pairs: str = "") -> None:
        self.work, self.threads, self.device, self.pairs = work.resolve(), threads, device, pairs
        self.log = self.work / "log.txt"
        self.work.mkdir(parents=True, exist_ok=True)

    def prepare(self, setting: Setting) -> list[dict[str, list[int]]]:
        """Make model and data. Returns the token ids of prompt, chosen, rejected and negative of each record."""
        data = self.data_of(setting)
        asked = {**asdict(setting), "model_folder": setting.model, "data_folder": data.name, "pairs": self.pairs}
        self.python("llamafactory", "inputs.py", str(self.work), json.dumps(asked))
        return json.loads((data / "rows.json").read_text())

    def data_of(self, setting: Setting) -> Path:
        """The folder of a setting's data. Rows depend on nothing else."""
        return self.work / f"{setting.rows.replace(' ', '-')}-{setting.records}-{setting.cutoff_len}"

    def rates(self, sizes: Sizes, tokens: int) -> dict[str, float]:
        """Measured operations per second of matrix products in the layers and in the head."""
        dtype = "bfloat16" if self.device == "cuda" else "float32"
        asked = {**asdict(sizes), "tokens": tokens, "dtype": dtype, "device": self.device}
        return self.python("llamafactory", "matmul_rate.py", json.dumps(asked))

    def fill(self, setting: Setting, arm: Arm) -> None:
        """A whole run, which leaves the cache of the reference behind."""
        self.python(arm.host, "arm_llamafactory.py", json.dumps({**self.settings(setting, arm), "fill": True}))

    def measure(self, setting: Setting, arm: Arm) -> dict[str, Any]:
        """One measurement; {"skipped": reason} where finepref has no such option yet."""
        return self.python(arm.host, f"arm_{arm.host}.py", json.dumps(self.settings(setting, arm)))

    def settings(self, setting: Setting, arm: Arm) -> dict[str, Any]:
        """The settings of the arm's program."""
        return getattr(self, f"_{arm.host}")(setting, arm)

    def _llamafactory(self, setting: Setting, arm: Arm) -> dict[str, Any]:
        return {
            "stage": arm.stage,
            "do_train": True,
            "model_name_or_path": str(self.work / setting.model),
            "template": "chatml",
            "finetuning_type": "lora",
            "lora_rank": 8,
            "lora_alpha": 16,
            "lora_target": "all",
            "dataset": arm.data,
            "dataset_dir": str(self.data_of(setting)),
            "cutoff_len": setting.cutoff_len,
            "cache_dir": str(self.work / "cache"),
            "preprocessing_num_workers": 1,
            "output_dir": str(self.work / "out"),
            "overwrite_output_dir": True,
            "per_device_train_batch_size": setting.batch * arm.rows_of_record,
            "num_train_epochs": 1,
            "disable_shuffling": True,
            "bf16": self.device == "cuda",
            "flash_attn": "sdpa",
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1000,
            **arm.options,
        }

    def _openrlhf(self, setting: Setting, arm: Arm) -> dict[str, Any]:
        data = self.data_of(setting)
        out = self.work / "out-openrlhf"
        own = {"data.dataset": arm.data, "data.dataset_dir": str(data)}
        of_host = {"data.dataset": str(data / f"{arm.data}.jsonl"), "data.prompt_key": "prompt"}
        return {
            "stage": arm.stage,
            "flags": {
                "model.model_name_or_path": str(self.work / setting.model),
                "model.gradient_checkpointing_enable": True,
                "data.max_len": setting.cutoff_len,
                "data.apply_chat_template": True,
                "train.micro_batch_size": setting.batch,
                "train.batch_size": setting.batch,
                "ds.lora.rank": 8,
                "ds.lora.alpha": 16,
                "ds.param_dtype": "bf16" if self.device == "cuda" else "fp32",
                "ds.zero_stage": 0,
                "ds.attn_implementation": "sdpa",
                "ckpt.output_dir": str(out),
                "ckpt.path": str(out / "ckpt"),
                "logger.logging_steps": 1000,
                **(of_host if arm.stage == "dpo" else own),
                **arm.options,
            },
        }

    def _trl(self, setting: Setting, arm: Arm) -> dict[str, Any]:
        return {
            "stage": arm.stage,
            "model": str(self.work / setting.model),
            "output_dir": str(self.work / "out-trl"),
            "data": str(self.data_of(setting) / f"{arm.data}.jsonl"),
            "cutoff_len": setting.cutoff_len,
            "batch": setting.batch * arm.rows_of_record,
            "bf16": self.device == "cuda",
        }

    def python(self, environment: str, program: str, *arguments: str) -> Any:
        """Run a program of this folder. Returns the JSON of its last line.

        Raises:
            Failed: it ended with an error; the message is the end of its output.
        """
        python = ROOT / ".venvs" / environment / "bin" / "python"
        if not python.exists():
            raise Failed(f"there is no environment {environment}: run `make env-{environment}`")
        variables = {
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "passive",
            "HF_DATASETS_CACHE": str(self.work / "datasets" / environment),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
        }
        command = [str(python), str(HERE / program), *arguments]
        done = subprocess.run(command, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True)
        with open(self.log, "a") as file:
            file.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            raise Failed(f"{program} in {environment} failed, see {self.log}:\n{(done.stdout + done.stderr)[-1500:]}")
        lines = done.stdout.splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def records_of(rows: list[dict[str, list[int]]], arm: Arm) -> list[Record]:
    """The sequences of each record, as an arm trains on them.

    KTO's mismatched responses are those of the row before in the host's file, in our stages those of another record.
    """
    found = []
    for index, row in enumerate(rows):
        prompt, other = row["prompt"], rows[index - 1]
        if arm.rows_of_record == 1:
            found.append(Record([(prompt, row[side]) for side in ("chosen", "rejected")]))
        else:
            ours = arm.cost.startswith("unpaired")
            mismatched = [other["negative"], other["chosen"] if ours else row["chosen"]]
            trained = [(prompt, row[side]) for side in ("chosen", "negative")]
            found.append(Record(trained, [(prompt, response) for response in mismatched]))
    return found


def fail(text: object) -> None:
    """End with a message."""
    sys.exit(str(text))

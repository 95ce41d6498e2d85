"""One epoch of TRL's DPOTrainer or KTOTrainer with its default settings: the arm's settings as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import meter


def main() -> None:
    """Run the arm."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    import torch
    import trl
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stop = meter.watch_trainer()
    of_arm = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "kto": (trl.KTOTrainer, trl.KTOConfig)}
    trainer, config = of_arm[settings["stage"]]
    dtype = torch.bfloat16 if settings["bf16"] else torch.float32
    trainer(
        AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype),
        args=config(
            settings["output_dir"],
            per_device_train_batch_size=settings["batch"],
            max_length=settings["cutoff_len"],
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            bf16=settings["bf16"],
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
        ),
        train_dataset=load_dataset("json", data_files=settings["data"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[stop],
    ).train()


if __name__ == "__main__":
    try:
        main()
    except meter.Measured as measured:
        meter.told(measured)

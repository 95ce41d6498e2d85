#!/usr/bin/env bash
# The run of README.md in this folder, from the repository's root with the environment `make env-llamafactory` active.
set -euo pipefail
finepref model smollm2 --output models/smollm2
overrides=(
    model_name_or_path=models/smollm2 template=chatml dataset=apo_demo eval_dataset=apo_demo_test
    finetuning_type=lora learning_rate=1.0e-3 warmup_steps=2 num_train_epochs=1.0 seed=11 cutoff_len=192
    per_device_train_batch_size=2 gradient_accumulation_steps=1 per_device_eval_batch_size=6
    bf16=false disable_gradient_checkpointing=true preprocessing_num_workers=1 dataloader_num_workers=0
    do_eval=true eval_on_start=true eval_strategy=steps eval_steps=1000 logging_steps=1 save_steps=1000
    output_dir=saves/apo_rm_demo
)
llamafactory-cli train examples/apo_rm.yaml "${overrides[@]}"

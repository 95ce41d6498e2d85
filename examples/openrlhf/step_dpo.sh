#!/usr/bin/env bash
# Step-DPO (arXiv 2406.18629): DPO on the first wrong step of a solution, beside a right one.
#   examples/openrlhf/step_dpo.sh [more flags]
# The authors' settings for 7B; --data.dataset tdpo_demo is included.
set -euo pipefail

deepspeed --module openrlhf.cli.train_tdpo \
    --model.model_name_or_path xinlai/Qwen2-7B-SFT \
    --tdpo.variant dpo \
    --tdpo.masks annotated \
    --tdpo.sides two \
    --model.beta 0.5 \
    --data.dataset math_step_dpo \
    --data.apply_chat_template \
    --data.max_len 1024 \
    --ckpt.output_dir saves/openrlhf/step_dpo \
    --ckpt.save_steps 400 \
    --train.batch_size 128 \
    --train.micro_batch_size 4 \
    --train.max_epochs 8 \
    --adam.lr 5e-7 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.1 \
    --logger.logging_steps 1 \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 \
    "$@"

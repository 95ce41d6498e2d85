#!/usr/bin/env bash
# ConfPO (arXiv 2506.08712): a preference loss on the tokens that the policy is least sure of.
#   examples/openrlhf/confpo.sh [more flags]
# The authors' settings.
set -euo pipefail

deepspeed --module openrlhf.cli.train_confpo \
    --model.model_name_or_path alignment-handbook/zephyr-7b-sft-full \
    --confpo.beta 1.5 \
    --confpo.gamma 1.6 \
    --data.dataset ultrafeedback_pairs \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --ckpt.output_dir saves/openrlhf/confpo \
    --ckpt.save_steps 100 \
    --train.batch_size 128 \
    --train.micro_batch_size 8 \
    --train.max_epochs 1 \
    --adam.lr 3e-7 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.1 \
    --logger.logging_steps 10 \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    "$@"

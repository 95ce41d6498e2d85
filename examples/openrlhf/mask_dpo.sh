#!/usr/bin/env bash
# Mask-DPO (arXiv 2503.02846): DPO without the hallucinated sentences of chosen and the right ones of rejected.
#   examples/openrlhf/mask_dpo.sh [more flags]
# Data with spans: see examples/mask_dpo.yaml; --data.dataset tdpo_demo is included.
set -euo pipefail

deepspeed --module openrlhf.cli.train_tdpo \
    --model.model_name_or_path meta-llama/Llama-3.1-8B-Instruct \
    --tdpo.variant dpo \
    --tdpo.masks annotated \
    --tdpo.sides two \
    --tdpo.end_token \
    --model.beta 0.1 \
    --data.dataset anah_pairs \
    --data.apply_chat_template \
    --data.max_len 1024 \
    --ckpt.output_dir saves/openrlhf/mask_dpo \
    --ckpt.save_steps 200 \
    --train.batch_size 64 \
    --train.micro_batch_size 8 \
    --train.max_epochs 3 \
    --adam.lr 5e-7 \
    --adam.betas 0.9 0.999 \
    --adam.weight_decay 0.0 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.03 \
    --max_norm 1.0 \
    --logger.logging_steps 10 \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 `# released: float16; its gradients need a loss scale` \
    "$@"

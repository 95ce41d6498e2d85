#!/usr/bin/env bash
# cDPO, critical tokens (arXiv 2411.19943): DPO that pushes down what makes an answer wrong.
#   examples/openrlhf/cdpo.sh [more flags]
# The scores: see examples/cdpo.yaml; --data.dataset cdpo_demo --cdpo.map_scores needs none.
set -euo pipefail

deepspeed --module openrlhf.cli.train_cdpo \
    --model.model_name_or_path meta-llama/Meta-Llama-3-8B \
    --model.beta 1.0 `# released: 0.1; the paper's, its code does not sum over the tokens` \
    --data.dataset cdpo_gsm \
    --data.apply_chat_template \
    --data.max_len 1500 \
    --ckpt.output_dir saves/openrlhf/cdpo \
    --train.batch_size 8 \
    --train.micro_batch_size 2 \
    --train.max_epochs 3 \
    --adam.lr 4e-5 \
    --adam.weight_decay 0.01 \
    --lr_scheduler cosine `# not given` \
    --lr_warmup_ratio 0.1 \
    --logger.logging_steps 10 \
    --ds.lora.rank 16 \
    --ds.lora.alpha 32 \
    --ds.lora.dropout 0 \
    --ds.lora.target_modules all-linear \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    "$@"

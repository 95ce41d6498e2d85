#!/usr/bin/env bash
# SePO, step 4 of 4: reference-free training on the 30 % of tokens that the oracle's scores select.
#   examples/openrlhf/sepo_4_train.sh [more flags]     (--data.dataset sepo_demo needs no step before)
# The paper's settings (arXiv 2408.13518); where the authors' script differs, the flag says so.
set -euo pipefail

deepspeed --module openrlhf.cli.train_selective \
    --model.model_name_or_path meta-llama/Llama-2-7b-chat-hf \
    --selective.preset paper `# gamma 2.5, margin 0 (lambda unverified); --selective.gamma: the paper has 2.1 to 2.5` \
    --selective.selection oracle \
    --selective.ratio_chosen 0.3 `# any ratio from one score file; the paper tries 0.1 to 0.9` \
    --selective.ratio_rejected 0.3 \
    --data.dataset sepo_ultrafeedback \
    --data.apply_chat_template \
    --data.max_len 4096 \
    --ckpt.output_dir saves/openrlhf/sepo \
    --train.batch_size 128 \
    --train.micro_batch_size 1 \
    --train.max_epochs 1 \
    --adam.lr 5e-7 \
    --adam.betas 0.9 0.95 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.03 \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 \
    --model.gradient_checkpointing_enable \
    "$@"

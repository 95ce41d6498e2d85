#!/usr/bin/env bash
# A reward model by the Plackett-Luce likelihood of whole rankings (DPO, arXiv 2305.18290, appendix A.3).
#   examples/openrlhf/plackett_luce.sh [more flags]
# No settings were published for it; those here are apo_rm.sh's.
set -euo pipefail

deepspeed --module openrlhf.cli.train_apo_rm \
    --model.model_name_or_path huggyllama/llama-7b \
    --apo.loss plackett_luce \
    --apo.ties apart `# or breslow: equal scores compete with each other` \
    --data.dataset apo_hh_human \
    --data.apply_chat_template \
    --data.max_len 512 \
    --ckpt.output_dir saves/openrlhf/plackett_luce \
    --train.batch_size 64 \
    --train.micro_batch_size 1 \
    --train.max_epochs 1 \
    --adam.lr 1e-6 \
    --adam.weight_decay 0.0 \
    --lr_scheduler linear \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 \
    "$@"

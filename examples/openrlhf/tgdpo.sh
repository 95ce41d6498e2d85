#!/usr/bin/env bash
# TGDPO (arXiv 2506.14574): DPO whose token weights come from a model that DPO has trained already.
#   examples/openrlhf/tgdpo.sh [more flags]
# The authors' settings. The scores: see examples/tgdpo.yaml; --data.dataset sepo_demo needs none.
set -euo pipefail

deepspeed --module openrlhf.cli.train_tgdpo \
    --model.model_name_or_path meta-llama/Meta-Llama-3-8B-Instruct \
    --tgdpo.alpha 0.5 `# the paper tries 0.5, 1 and 2; 0 is DPO` \
    --model.beta 0.1 \
    --data.dataset tgdpo_ultrafeedback \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --ckpt.output_dir saves/openrlhf/tgdpo \
    --ckpt.save_steps 60 \
    --train.batch_size 128 \
    --train.micro_batch_size 1 \
    --train.max_epochs 1 \
    --adam.lr 7e-7 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.1 \
    --logger.logging_steps 1 \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 \
    "$@"

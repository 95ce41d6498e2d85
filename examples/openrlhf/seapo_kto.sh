#!/usr/bin/env bash
# SeaPO (arXiv 2509.24781): KTO on each answer and one of its injected errors, drawn anew every epoch.
#   examples/openrlhf/seapo_kto.sh [more flags]     (--data.dataset seapo_demo is there already)
# The paper's settings. A batch counts records: 8 of them are the paper's 16 rows.
set -euo pipefail

deepspeed --module openrlhf.cli.train_kto \
    --model.model_name_or_path Qwen/Qwen2.5-7B-Instruct \
    --kto.error_types all `# or any subset, e.g. correctness,logic` \
    --kto.resample epoch \
    --kto.chosen_weight 1.0 \
    --kto.rejected_weight 1.0 \
    --model.beta 0.1 \
    --data.dataset seapo_ultrafeedback \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --ckpt.output_dir saves/openrlhf/seapo_kto \
    --train.batch_size 8 \
    --train.micro_batch_size 1 \
    --train.max_epochs 3 \
    --adam.lr 5e-6 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.1 `# not given in the paper` \
    --ds.lora.rank 8 \
    --ds.lora.alpha 16 \
    --ds.zero_stage 2 \
    "$@"

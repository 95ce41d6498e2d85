#!/usr/bin/env bash
# SeaPO (arXiv 2509.24781): KTO on each answer and one of its injected errors, drawn anew every epoch.
#   examples/openrlhf/seapo_kto.sh [more flags]     (--data.dataset seapo_demo is included)
# The settings of the authors' command, kto.sh; where the recipe differs, the flag says so. A batch counts records, which
# are two rows each: 8 records are the authors' 16 rows. What has no flag in OpenRLHF:
#   optim: released: adamw_torch; OpenRLHF's adam is DeepSpeed's AdamW
#   pref_ftx: released: 0; there is no such term
#   warmup_steps: released: 0; OpenRLHF has a share only, lr_warmup_ratio
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
    --data.max_samples 1000000 \
    --ckpt.output_dir saves/openrlhf/seapo_kto \
    --ckpt.save_steps 5000 \
    --logger.logging_steps 5 \
    --train.batch_size 8 `# released: 16; counted in rows` \
    --train.micro_batch_size 1 `# released: 2; counted in rows` \
    --train.max_epochs 3 \
    --adam.lr 5e-6 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.0 \
    --max_norm 1.0 \
    --ds.lora.rank 8 \
    --ds.lora.alpha 16 \
    --ds.lora.dropout 0 \
    --ds.lora.target_modules all-linear \
    --ds.param_dtype bf16 \
    --ds.zero_stage 2 \
    "$@"

#!/usr/bin/env bash
# SePO, step 2 of 4: the oracle, plain DPO on the reference model of step 1.
#   examples/openrlhf/sepo_2_oracle_dpo.sh [more flags]
# The authors' settings (arXiv 2408.13518). Variant dpo without masks is plain DPO, on checked rows.
set -euo pipefail

deepspeed --module openrlhf.cli.train_tdpo \
    --model.model_name_or_path saves/openrlhf/sepo_ref \
    --tdpo.variant dpo \
    --tdpo.masks none \
    --model.beta 0.1 \
    --data.dataset ultrafeedback_pairs \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --ckpt.output_dir saves/openrlhf/sepo_oracle \
    --ckpt.save_steps 275 \
    --train.batch_size 256 \
    --train.micro_batch_size 2 \
    --train.max_epochs 1 \
    --adam.lr 5e-7 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.03 `# not given for this step` \
    --ds.zero_stage 2 `# released: 3; TinyLlama fits without it` \
    --ds.param_dtype bf16 \
    --model.gradient_checkpointing_enable \
    "$@"

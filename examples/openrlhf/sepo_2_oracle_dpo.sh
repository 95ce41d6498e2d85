#!/usr/bin/env bash
# SePO, step 2 of 4: the oracle, plain DPO on the reference model of step 1.
#   examples/openrlhf/sepo_2_oracle_dpo.sh [more flags]
# The paper's settings (arXiv 2408.13518). train_tdpo with variant dpo and no masks is DPO on checked rows.
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
    --train.batch_size 256 \
    --train.micro_batch_size 4 \
    --train.max_epochs 1 \
    --adam.lr 5e-7 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.03 `# not given in the paper for this step` \
    --ds.zero_stage 2 \
    "$@"

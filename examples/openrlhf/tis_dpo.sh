#!/usr/bin/env bash
# TIS-DPO (arXiv 2410.04350): DPO with token-level importance weights, from DPO forwards and backwards.
#   examples/openrlhf/tis_dpo.sh [more flags]
# The scores: see examples/tis_dpo.yaml; --data.dataset sepo_demo needs none.
# The authors' settings. What has no flag in OpenRLHF:
#   optim: released: rmsprop; OpenRLHF has Adam and Muon
#   warmup_steps: released: 150; OpenRLHF has a share only, lr_warmup_ratio
set -euo pipefail

deepspeed --module openrlhf.cli.train_tis_dpo \
    --model.model_name_or_path Qwen/Qwen2.5-3B \
    --tis_dpo.weights rank_based \
    --tis_dpo.scale_low 0.7 \
    --tis_dpo.scale_high 1.3 \
    --model.beta 0.1 \
    --data.dataset tis_ultrafeedback \
    --data.apply_chat_template \
    --data.max_len 512 \
    --ckpt.output_dir saves/openrlhf/tis_dpo \
    --train.batch_size 32 \
    --train.micro_batch_size 2 \
    --train.max_epochs 1 \
    --adam.lr 5e-7 \
    --lr_scheduler constant_with_warmup \
    --max_norm 10.0 \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    "$@"

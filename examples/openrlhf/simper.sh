#!/usr/bin/env bash
# SimPER (arXiv 2502.00883): preference by perplexities; no reference model and no constant to choose.
#   examples/openrlhf/simper.sh [more flags]
# The authors' settings for Llama-3-8B base.
# What has no flag in OpenRLHF:
#   optim: released: adamw_torch; OpenRLHF takes DeepSpeed's Adam
set -euo pipefail

deepspeed --module openrlhf.cli.train_simper \
    --model.model_name_or_path princeton-nlp/Llama-3-Base-8B-SFT \
    --data.dataset ultrafeedback_pairs \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --ckpt.output_dir saves/openrlhf/simper \
    --train.batch_size 256 \
    --train.micro_batch_size 2 \
    --train.max_epochs 1 \
    --adam.lr 6e-7 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.1 \
    --logger.logging_steps 5 \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 \
    "$@"

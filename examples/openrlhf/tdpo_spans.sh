#!/usr/bin/env bash
# TDPO on annotated spans (arXiv 2404.11999; masks of the granular fork): only tokens that are right or wrong train.
#   examples/openrlhf/tdpo_spans.sh [more flags]
# The fork's settings, but for its optimizer, RMSprop, which OpenRLHF does not have.
set -euo pipefail

deepspeed --module openrlhf.cli.train_tdpo \
    --model.model_name_or_path meta-llama/Llama-3.1-8B-Instruct \
    --tdpo.variant tdpo2 `# choices: tdpo1, tdpo2, dpo` \
    --tdpo.alpha 0.5 \
    --tdpo.masks annotated \
    --tdpo.sides one `# the response without spans does not count; two: it counts as a whole` \
    --model.beta 0.1 \
    --data.dataset tdpo_demo \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --ckpt.output_dir saves/openrlhf/tdpo_spans \
    --train.batch_size 8 \
    --train.micro_batch_size 1 \
    --train.max_epochs 1 `# not given in the fork` \
    --adam.lr 5e-4 `# 100 x 5e-6, which the fork has without masks` \
    --lr_scheduler constant_with_warmup \
    --ds.lora.rank 16 `# not given in the fork` \
    --ds.zero_stage 2 \
    "$@"

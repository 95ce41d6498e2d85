#!/usr/bin/env bash
# TDPO on annotated spans (arXiv 2404.11999; masks of the granular fork): only the annotated tokens are trained on.
#   examples/openrlhf/tdpo_spans.sh [more flags]
# The fork's settings; where the recipe differs, the flag says so. What has no flag in OpenRLHF:
#   optim: released: SGD; OpenRLHF has Adam and Muon
#   warmup_steps: released: 150; OpenRLHF has a share only, lr_warmup_ratio
set -euo pipefail

deepspeed --module openrlhf.cli.train_tdpo \
    --model.model_name_or_path meta-llama/Llama-3.1-8B-Instruct \
    --tdpo.variant tdpo2 `# released: tdpo1; TDPO's authors advise tdpo2 at high rates; choices: tdpo1, tdpo2, dpo` \
    --tdpo.alpha 0.5 \
    --tdpo.masks annotated \
    --tdpo.sides one `# the response without spans does not count; two: it counts as a whole` \
    --model.beta 0.1 \
    --data.dataset tdpo_demo \
    --data.apply_chat_template \
    --data.max_len 2048 `# released: 512; longer answers fit` \
    --ckpt.output_dir saves/openrlhf/tdpo_spans \
    --train.batch_size 4 \
    --train.micro_batch_size 2 \
    --train.max_epochs 1 \
    --adam.lr 5e-4 `# 100 x the fork's 5e-6 without masks, as it advises` \
    --lr_scheduler constant_with_warmup \
    --ds.lora.rank 16 `# released: full; LoRA needs no second model as reference` \
    --max_norm 10.0 \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    "$@"

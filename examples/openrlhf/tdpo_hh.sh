#!/usr/bin/env bash
# TDPO on whole responses (arXiv 2404.11999): the paper's run on Anthropic-HH.
#   examples/openrlhf/tdpo_hh.sh [more flags]
# The settings of the authors' command. What has no flag in OpenRLHF:
#   optim: released: rmsprop; OpenRLHF has Adam and Muon
#   warmup_steps: released: 150; OpenRLHF has a share only, lr_warmup_ratio
set -euo pipefail

deepspeed --module openrlhf.cli.train_tdpo \
    --model.model_name_or_path "${MODEL:-EleutherAI/pythia-2.8b}" `# after SFT on the chosen responses` \
    --tdpo.variant tdpo2 \
    --tdpo.alpha 0.5 \
    --tdpo.masks none \
    --model.beta 0.1 \
    --data.dataset hh_pairs \
    --data.apply_chat_template `# dialogues of several turns; pythia has no template: --data.tokenizer_chat_template` \
    --data.max_len 512 \
    --ckpt.output_dir saves/openrlhf/tdpo_hh \
    --train.batch_size 64 \
    --train.micro_batch_size 8 \
    --train.max_epochs 1 \
    --adam.lr 5e-6 \
    --lr_scheduler constant_with_warmup \
    --max_norm 10.0 \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    "$@"

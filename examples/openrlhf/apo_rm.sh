#!/usr/bin/env bash
# APO (arXiv 2311.08045): Adversarial, not Anchored, Preference Optimization. The reward model's step.
#   examples/openrlhf/apo_rm.sh [more flags]     (--data.dataset apo_demo is included)
# The authors' settings; where the recipe differs, the flag says so. What has no flag in OpenRLHF:
#   warmup_steps: released: 100; OpenRLHF has a share only, lr_warmup_ratio
set -euo pipefail

deepspeed --module openrlhf.cli.train_apo_rm \
    --model.model_name_or_path huggyllama/llama-7b `# released: the base RM; the paper starts each round from the base model` \
    --apo.kl_coeff 1.0 \
    --apo.coeff 0.1 \
    --apo.sample_num 4 \
    --apo.loss ranking `# choices: ranking, wgan, plackett_luce` \
    --apo.normalization per_type `# choices: per_type, released` \
    --apo.pooling eos `# released: last; OpenRLHF's PPO and serve_rm read a reward at the end token` \
    --data.dataset apo_hh_human,apo_hh_samples \
    --data.max_len 512 \
    --eval.dataset apo_hh_test \
    --eval.steps 50 \
    --logger.logging_steps 10 \
    --ckpt.output_dir saves/openrlhf/apo_rm \
    --ckpt.max_num 10 \
    --train.batch_size 64 \
    --train.micro_batch_size 1 \
    --train.max_epochs 1 \
    --adam.lr 1e-6 `# released: 1e-7; that is from the base RM, the paper's from the base model` \
    --adam.weight_decay 0.0 \
    --lr_scheduler linear \
    --ds.zero_stage 3 \
    --ds.adam_offload \
    --ds.param_dtype bf16 `# released: float32; OpenRLHF does not have it` \
    "$@"

#!/usr/bin/env bash
# APO (arXiv 2311.08045), Adversarial and not Anchored Preference Optimization: the reward model's step.
#   examples/openrlhf/apo_rm.sh [more flags]     (--data.dataset apo_demo is there already)
# The paper's settings.
set -euo pipefail

deepspeed --module openrlhf.cli.train_apo_rm \
    --model.model_name_or_path huggyllama/llama-7b `# again in every round; with --apo.keep_value_head, a reward model` \
    --apo.kl_coeff 1.0 \
    --apo.coeff 0.1 \
    --apo.sample_num 4 \
    --apo.loss ranking `# choices: ranking, wgan` \
    --apo.normalization per_type `# choices: per_type, released` \
    --apo.pooling eos `# where OpenRLHF's own PPO and serve_rm read a reward; the paper: last` \
    --data.dataset apo_hh_human,apo_hh_samples \
    --data.max_len 512 \
    --eval.dataset apo_hh_test \
    --ckpt.output_dir saves/openrlhf/apo_rm \
    --train.batch_size 64 \
    --train.micro_batch_size 1 \
    --train.max_epochs 1 \
    --adam.lr 1e-6 \
    --lr_scheduler linear \
    --ds.zero_stage 3 \
    "$@"

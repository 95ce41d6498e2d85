#!/usr/bin/env bash
# DPO-PL: DPO of whole rankings by the Plackett-Luce model (DPO, arXiv 2305.18290, appendix A.3).
#   examples/openrlhf/dpo_pl.sh [more flags]
# The paper has no experiment with it; the settings are those of its DPO (appendix B). OpenRLHF has no RMSprop, and a
# warm-up by a share of the steps only.
set -euo pipefail

deepspeed --module openrlhf.cli.train_dpo_pl \
    --model.model_name_or_path "${MODEL:-EleutherAI/pythia-2.8b}" `# after SFT on the best responses` \
    --dpo_pl.ties apart `# or breslow: equal scores compete with each other` \
    --model.beta 0.1 \
    --data.dataset ultrafeedback_lists \
    --dpo_pl.bad_rows skip `# lists without two different ratings go to rejected.jsonl (FP052)` \
    --dpo_pl.max_bad 10% \
    --data.max_len 1024 \
    --ckpt.output_dir saves/openrlhf/dpo_pl \
    --train.batch_size 64 \
    --train.micro_batch_size 2 \
    --train.max_epochs 1 \
    --adam.lr 1e-6 \
    --lr_scheduler constant_with_warmup \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    "$@"

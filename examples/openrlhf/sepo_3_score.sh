#!/usr/bin/env bash
# SePO, step 3 of 4: one score per response token, log pi_oracle - log pi_ref, once for every ratio of step 4.
#   examples/openrlhf/sepo_3_score.sh [more flags]
# Step 4 must write the prompts with the same chat template, or be told to accept the scores (--selective.map_scores).
# Resumes after a stop. `torchrun --no-python --nproc-per-node 8 finepref sepo score ...` runs it on 8 GPUs.
set -euo pipefail

finepref sepo score dataset_info/data/ultrafeedback_pairs.jsonl \
    --output dataset_info/data/sepo_ultrafeedback.jsonl \
    --reference saves/openrlhf/sepo_ref \
    --oracle saves/openrlhf/sepo_oracle \
    --max-prompt 1900 \
    --min-response 8 \
    --max-total 2048 \
    "$@"

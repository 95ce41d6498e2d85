#!/usr/bin/env bash
# The paper's ablation without the KL term, on the first round of an existing demo run:
#   docs/reproduction/apo_run/no_kl.sh runs/apo_demo runs/apo_demo_no_kl
# The same reward model on the same data by the same steps, but for apo_kl_coeff: 0. (All rounds without the term:
# `finepref apo run examples/pipelines/apo_demo.yaml --output DIR reward.apo_kl_coeff=0`)
set -euo pipefail
run=$1 output=$2
# The command of the round's reward model, as its step.json has it, with two keys more.
mapfile -t command < <(python - "$run/round_1/reward/step.json" <<'PY'
import json, sys
print("\n".join(json.load(open(sys.argv[1]))["command"]))
PY
)
"${command[@]}" "output_dir=$output/model" apo_kl_coeff=0
finepref apo score "$run/data/test_human/test_human.jsonl" "$run/round_1/golden_pairs/golden_pairs.jsonl" \
    --model "$output/model" --base "$run/made/smollm2" --template smollm2 --cutoff-len 512 --output "$output/scored"
finepref apo eval human="$output/scored/test_human.jsonl" golden="$output/scored/golden_pairs.jsonl" \
    --output "$output/eval.json" --diagram

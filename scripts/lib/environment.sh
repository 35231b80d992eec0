# Prepares a checkout: system packages, a Python new enough, and .venv with Roost in it. Sourced by the scripts; asks nothing.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LOGS=$ROOT/.cache/logs
BIN=$ROOT/.venv/bin

say() { printf '%s\n' "$*"; }

fail() { # fail WHAT WHY FIX
    printf 'error: %s\n  why: %s\n  fix: %s\n' "$1" "$2" "$3" >&2
    exit 6
}

seconds_since() { # seconds_since START (as $EPOCHREALTIME, which the locale may write with a comma)
    awk -v start="${1/,/.}" -v now="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%.1f", now - start }'
}

# step TITLE COMMAND...: runs the command with its output in a log and shows that it goes on: a line that changes on a terminal, one line
# every 15 seconds elsewhere (its end is the last line of the log, or what the function STEP_NOTE prints). Sets STEP_SECONDS. When the command fails, its last lines are shown and the script ends with its code.
step() {
    local title=$1 start=$EPOCHREALTIME log code=0 ticks=0 pid
    shift
    mkdir -p "$LOGS"
    log=$LOGS/$(tr -cs 'a-zA-Z0-9\n' '-' <<<"$title").log
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        ticks=$((ticks + 1))
        if [ -t 1 ]; then
            printf '\r\033[K  %s ... %s s  %s' "$title" "$(seconds_since "$start")" "$(latest "$log")"
        elif [ $((ticks % 75)) -eq 0 ]; then
            printf '  %s ... %s s  %s\n' "$title" "$(seconds_since "$start")" "$("${STEP_NOTE:-latest}" "$log")"
        fi
    done
    wait "$pid" || code=$?
    trap - INT TERM
    STEP_SECONDS=$(seconds_since "$start")
    if [ -t 1 ]; then printf '\r\033[K'; fi
    if [ "$code" -ne 0 ]; then
        printf '  %s failed after %s s; the end of %s:\n' "$title" "$STEP_SECONDS" "$log" >&2
        tail -n 20 "$log" | sed 's/^/    /' >&2
        exit "$code"
    fi
    printf '  %s: %s s\n' "$title" "$STEP_SECONDS"
}

latest() { # the last thing a log says, short and without control characters
    tail -c 300 "$1" | tr '\r' '\n' | tr -cd '\n -~' | grep -v '^ *$' | tail -n 1 | cut -c 1-70 || true
}

as_root() { # as root, by sudo where needed; a password is asked by sudo itself, and only on a terminal
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo "$@"
    else
        return 126
    fi
}

may_install() { [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; }; }

missing_packages() { # those of the arguments that dpkg does not have
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s\n' "$package"
    done
}

install_packages() { # install_packages PACKAGE...: the update only happens when something is missing
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# need_packages [PACKAGE...]: installs what is missing (and what Python lacks to make a venv), or says what is.
need_packages() {
    local missing
    # shellcheck disable=SC2046 # words, not one
    set -- "$@" $(venv_package)
    command -v dpkg-query >/dev/null || { say "  not a Debian or Ubuntu: please see to these yourself: $*"; return 0; }
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    may_install || fail "system packages are missing: ${missing[*]}" "only root can install them, and sudo is not usable here" \
        "sudo apt-get install --no-install-recommends ${missing[*]}, then run this again"
    step "Installing ${#missing[@]} system packages" install_packages "${missing[@]}"
}

find_python() { # the first Python that is new enough
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

venv_package() { # what the system's Python lacks to make a venv
    local found
    found=$(find_python)
    if [ -z "$found" ] && ! command -v python3 >/dev/null; then echo python3 python3-venv; fi
    if [ -n "$found" ] && ! "$found" -c 'import ensurepip' 2>/dev/null; then echo python3-venv; fi
}

need_python() {
    python=$(find_python)
    if [ -z "$python" ] || ! "$python" -c 'import ensurepip' 2>/dev/null; then
        need_packages
        python=$(find_python)
    fi
    [ -n "$python" ] || fail "Roost needs Python 3.11 or newer" "python3 here is $(python3 --version 2>&1 | cut -d' ' -f2)" \
        "use Debian 12, Ubuntu 24.04 or newer, or name another one: PYTHON=/path/to/python3.11 $0"
}

sources_stamp() { # what .venv was made from: it is made again when this changes
    { echo "$1"; "$python" -V; cat "$ROOT/pyproject.toml"; find "$ROOT/guest" -type f \( -name '*.[chS]' -o -name '*.py' \) -exec cat {} + | sort; } | sha256sum
}

make_venv() { # make_venv EXTRAS
    local old
    old=$("$BIN/python" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true)
    if [ "$old" != "$("$python" -c 'import sys; print(sys.version_info[:2])')" ]; then "$python" -m venv --clear "$ROOT/.venv"; fi
    "$BIN/python" -m pip install --disable-pip-version-check --progress-bar off --editable "$ROOT$1"
}

# need_venv [EXTRAS]: .venv in the checkout, with Roost and the extras. Installs only when the sources of the installation changed.
need_venv() {
    local extras=${1:-} stamp
    need_python
    stamp=$ROOT/.venv/.roost$extras
    if [ -x "$BIN/roost" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(sources_stamp "$extras")" ]; then return 0; fi
    if [ -z "$extras" ] && [ -x "$BIN/roost" ] && [ "$(cat "$ROOT/.venv/.roost[test]" 2>/dev/null)" = "$(sources_stamp '[test]')" ]; then return 0; fi
    step "Installing Roost into .venv" make_venv "$extras"
    sources_stamp "$extras" >"$stamp"
}

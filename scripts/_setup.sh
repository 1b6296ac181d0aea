# Sourced by the scripts beside it: works from the checkout's root, with .venv made and on PATH.
# shellcheck shell=bash
#
# .venv/.heliotrope says what is installed: "unfinished", or the hash of all that decides it.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.heliotrope

say() { printf '%s\n' "heliotrope: $*" >&2; }

die() {
  say "$@"
  exit 1
}

# The Python to build .venv with: $PYTHON, or the first suitable one on PATH.
find_python() {
  local python suitable='' candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for python in "${candidates[@]}"; do
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null ||
      continue
    suitable=$python
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  [ -z "$suitable" ] || die "$suitable cannot make virtual environments." \
    "Run: apt-get install python$("$suitable" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13."
  die "no Python 3.11, 3.12 or 3.13 found. Run: apt-get install python3 python3-venv" \
    "(or name one: PYTHON=/path/to/python3 $0)"
}

wanted() { { pwd && cat pyproject.toml setup.py constraints.txt; } | sha256sum; }

up_to_date() { [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted)" ] && [ -x .venv/bin/python ]; }

# On a terminal, one line that says which package pip is at; otherwise only its errors.
pip_install() {
  local pip=(.venv/bin/python -m pip --disable-pip-version-check install
    --no-build-isolation --use-pep517 --constraint constraints.txt)
  if [ -t 2 ]; then
    "${pip[@]}" "$@" |
      awk '/^(Collecting|Installing)/ { printf "\r\033[K  %.60s", $0; fflush() }
           END { printf "\r\033[K" }' >&2
  else
    "${pip[@]}" --quiet "$@"
  fi
}

install() {
  local python
  trap 'exit 130' INT # pip would turn an interrupt into a plain failure
  if [ -e "$stamp" ] && { [ ! -x .venv/bin/python ] || grep -q unfinished "$stamp"; }; then
    say "the last set-up of .venv is not complete: starting again"
    find .venv -mindepth 1 ! -path "$stamp" -delete
  fi
  [ -x .venv/bin/python ] || python=$(find_python)
  mkdir -p .venv
  echo unfinished >"$stamp"
  if [ -n "${python:-}" ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  say "installing the pinned packages (once; the largest is torch)"
  pip_install setuptools
  pip_install --editable '.[dev]'
  wanted >"$stamp"
  say "installed in $SECONDS s"
}

# A second script started meanwhile waits for the first one's set-up.
if ! up_to_date; then
  (
    flock --nonblock 9 || { say "waiting for the set-up that another script is making" && flock 9; }
    up_to_date || install
  ) 9<pyproject.toml
fi
export PATH="$PWD/.venv/bin:$PATH"

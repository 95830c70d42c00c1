# Sourced by every script here: strict mode, where things are, progress lines, logged steps.
set -euo pipefail

readonly ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# What may be downloaded once and shared by every checkout: the demo model, the Python environment.
readonly CACHE="${ESPALIER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/espalier}"
readonly LOGS="$ROOT/build/logs"
# The interpreter that the Debian packages of install_dependencies.sh belong to; a `python3` that
# comes first on PATH may be another one, without the venv module.
readonly BASE_PYTHON="${ESPALIER_BASE_PYTHON:-$([[ -x /usr/bin/python3 ]] && echo /usr/bin/python3 || echo python3)}"

elapsed() {  # Seconds since the script started, one decimal.
  local us=$(( (${EPOCHREALTIME/[.,]/} - START_US) ))
  printf '%d.%d' $(( us / 1000000 )) $(( us / 100000 % 10 ))
}
START_US=${ESPALIER_START_US:-${EPOCHREALTIME/[.,]/}}
export ESPALIER_START_US=$START_US  # scripts that call each other share one clock

# Progress goes to stderr: stdout is for results (a path, a tree).
say() { printf '[%6ss] %s\n' "$(elapsed)" "$*" >&2; }
die() { printf '[%6ss] error: %s\n' "$(elapsed)" "$*" >&2; exit 1; }

# step TITLE LOG COMMAND...: runs the command with its output in build/logs/LOG. On a terminal the
# last line of output is shown while it runs, elsewhere one line a half-minute. On failure prints
# the end of the log and where the rest is, and ends the script.
step() {
  local title=$1 log=$LOGS/$2 status=0
  shift 2
  mkdir -p "$LOGS"
  say "$title"
  "$@" 2>&1 </dev/null | tee "$log" | _show_progress || status=$?
  if (( status != 0 )); then
    tail -n 40 "$log" >&2
    die "$title: failed with status $status; the whole output is in $log"
  fi
}

# Where the CUDA compiler is; fails when there is none.
find_nvcc() {
  command -v nvcc || { [[ -x /usr/local/cuda/bin/nvcc ]] && echo /usr/local/cuda/bin/nvcc; }
}
# Whether a GPU and its driver are here.
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

_show_progress() {
  local line next=$(( SECONDS + 30 ))
  while IFS= read -r line; do
    if [[ -t 2 ]]; then
      printf '\r\033[K          %s' "${line:0:$(( ${COLUMNS:-80} - 12 ))}" >&2
    elif (( SECONDS >= next )); then
      next=$(( SECONDS + 30 ))
      say "  ... ${line:0:100}"
    fi
  done
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

#!/usr/bin/env bash
# Builds everything and runs every test that this machine can run.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/test.sh [--gpu] [-- CTEST_ARGUMENTS...]
Installs packages, builds everything (with the CUDA kernels where nvcc is found), fetches the demo
model and runs the tests; those of the GPU are skipped where there is none. For example
  scripts/test.sh -- -R kvcache     only tests whose name has `kvcache` in it
  scripts/test.sh --gpu             only the tests of the GPU, which must be there
Environment:
  ESPALIER_DEMO_MODEL  the demo model's file, if it is somewhere else already
  ESPALIER_WORKLOADS   a folder of tree-workload traces; tests of the full set are skipped without
TEXT
}

ctest_arguments=()
gpu=false
while (( $# > 0 )); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --gpu) gpu=true ;;
    --) shift; ctest_arguments=("$@"); break ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done

if find_nvcc >/dev/null; then preset=cuda; else preset=cpu; fi
if $gpu; then
  [[ $preset == cuda ]] || die "--gpu needs nvcc, which is neither on PATH nor in /usr/local/cuda/bin"
  has_gpu || die "--gpu needs a GPU: nvidia-smi names none"
  ctest_arguments+=(--label-regex '^gpu$')
fi

build() { cmake --preset "$preset" && cmake --build --preset "$preset"; }

cd "$ROOT"
"$ROOT/scripts/install_dependencies.sh"
"$ROOT/scripts/setup_python.sh" >/dev/null
step "build the server and the tests (preset $preset)" build.log build

if [[ -z ${ESPALIER_DEMO_MODEL:-} ]]; then
  if model=$("$ROOT/scripts/get_demo_model.sh"); then
    export ESPALIER_DEMO_MODEL=$model
  else
    say "the demo model cannot be had here: tests that need it are SKIPPED"
  fi
fi
[[ -n ${ESPALIER_WORKLOADS:-} ]] ||
  say "ESPALIER_WORKLOADS is not set: tests of the full trace set are SKIPPED"

say "run the tests"
# The tests' own threads use the cores as well: more than one test at a time would fight over them.
ctest --test-dir "build/$preset" --output-on-failure "${ctest_arguments[@]}"

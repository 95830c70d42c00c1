#!/usr/bin/env bash
# Builds everything and runs every test that this machine can run.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/test.sh [-- CTEST_ARGUMENTS...]
Installs packages, builds the preset `cpu`, fetches the demo model and runs the tests, for example
  scripts/test.sh -- -R kvcache     only tests whose name has `kvcache` in it
Environment:
  ESPALIER_DEMO_MODEL  the demo model's file, if it is somewhere else already
  ESPALIER_WORKLOADS   a folder of tree-workload traces; tests of the full set are skipped without
TEXT
}

ctest_arguments=()
while (( $# > 0 )); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --) shift; ctest_arguments=("$@"); break ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done

build() { cmake --preset cpu && cmake --build --preset cpu; }

cd "$ROOT"
"$ROOT/scripts/install_dependencies.sh"
"$ROOT/scripts/setup_python.sh" >/dev/null
step "build the server and the tests" build.log build

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
ctest --test-dir build/cpu --output-on-failure "${ctest_arguments[@]}"

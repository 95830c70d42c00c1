#!/usr/bin/env bash
# Makes what the Python clients need and prints the path of their interpreter:
#   a virtual environment with requirements.txt, in the cache, one for each content of that file;
#   build/python/venv, a link to it;
#   build/python/stubs, the message and service classes generated from proto/.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

readonly REQUIREMENTS=$ROOT/scripts/requirements.txt
readonly OUT=$ROOT/build/python

digest() { cat "$@" | sha256sum | cut -c1-16; }

make_venv() {  # $1: where. Marked complete last, so an interrupted installation is done again.
  local venv=$1
  [[ -e $venv/complete ]] && return
  rm -rf "$venv"
  step "make a Python environment" venv.log "$BASE_PYTHON" -m venv "$venv"
  step "install the Python packages" pip.log \
    "$venv/bin/python" -m pip install --requirement "$REQUIREMENTS"
  touch "$venv/complete"
}

make_stubs() {
  local protos=("$ROOT"/proto/espalier/v1/*.proto)
  local stamp=$OUT/stubs/from-$(digest "${protos[@]}")
  [[ -e $stamp ]] && return
  rm -rf "$OUT/stubs"
  mkdir -p "$OUT/stubs"
  step "generate the Python stubs" stubs.log \
    protoc --proto_path="$ROOT/proto" --python_out="$OUT/stubs" --grpc_python_out="$OUT/stubs" \
    --plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" "${protos[@]}"
  touch "$stamp"
}

venv=$CACHE/python/$(digest "$REQUIREMENTS")
make_venv "$venv"
mkdir -p "$OUT"
ln -sfn "$venv" "$OUT/venv"
make_stubs
echo "$OUT/venv/bin/python"

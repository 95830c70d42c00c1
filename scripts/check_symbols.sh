#!/bin/sh
# Fails when a binary takes protobuf from a shared library: it would then not run on a machine with
# another version, and could bind to the protobuf that some other library brings.
# Usage: check_symbols.sh BINARY
set -eu

symbols=$(nm -DC "$1")
if printf '%s\n' "$symbols" | grep ' U google::protobuf'; then
  echo "$1 takes the protobuf symbols above from a shared library"
  exit 1
fi
echo "$1 has its own protobuf"

#!/bin/sh
# Fails when a binary takes protobuf from a shared library. libsentencepiece.so exports an old
# protobuf of its own; one symbol bound to it, and the process dies or, worse, does not.
# Usage: check_symbols.sh BINARY
set -eu

symbols=$(nm -DC "$1")
if printf '%s\n' "$symbols" | grep ' U google::protobuf'; then
  echo "$1 takes the protobuf symbols above from a shared library"
  exit 1
fi
echo "$1 has its own protobuf"

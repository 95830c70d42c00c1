#!/bin/sh
# Fails when an object that was compiled for a newer instruction set defines a function which the
# linker may share with other objects: a processor without that instruction set would then run it.
# Usage: check_isolated.sh libespalier_kernels.a
set -eu

# CheckFailed is shared, and harmless: it prints and aborts, without a vector.
shared=$(nm -AC "$1" 2>/dev/null | grep -E '_avx(2|512)[^:]*:[0-9a-f]+ [WVu] ' |
  grep -v 'espalier::internal::CheckFailed' || true)
if [ -n "$shared" ]; then
  echo "functions that must have internal linkage:"
  printf '%s\n' "$shared"
  exit 1
fi
# The pattern must still match how nm names members.
nm -A "$1" 2>/dev/null | grep -q 'kernels_avx2[^:]*:' || { echo "no AVX2 objects in $1"; exit 1; }

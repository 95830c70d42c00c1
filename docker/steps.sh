#!/usr/bin/env bash
# The steps that make an image, one command each. The Dockerfile runs them in containers,
# scripts/test_clean_root.sh in a chroot: what the test passes is what the images do.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib/common.sh"

usage() {
  cat <<'TEXT'
Usage: docker/steps.sh STEP PRESET [DIRECTORY]
  install PRESET           packages that the build needs
  build PRESET             server and tests, into build/PRESET
  test PRESET              every test that this machine can run
  stage PRESET DIRECTORY   the server with the shared libraries that a bare system lacks
  check DIRECTORY          starts what was staged there, probes it, stops it
PRESET is `cpu`, `cuda` or `cuda-all`.
TEXT
}

# Of glibc, which every image has, and of the GPU: the driver comes from the host, the toolkit's
# libraries from the runtime image.
readonly SYSTEM_LIBRARIES='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|cuda|cudart|cublas|cublasLt|nccl))\.so'

install_packages() { "$ROOT/scripts/install_dependencies.sh"; }

build() { cmake --preset "$1" && cmake --build --preset "$1"; }

run_tests() { ctest --test-dir "build/$1" --output-on-failure; }

stage() {  # $1: preset, $2: where
  local name arrow path rest
  cmake --install "build/$1" --prefix "$2" --strip
  mkdir -p "$2/lib"
  ldd "$2/bin/espalier-server" | while read -r name arrow path rest; do
    [[ $arrow == '=>' && ! $name =~ $SYSTEM_LIBRARIES ]] || continue
    [[ -e $path ]] || die "$name of the server is not to be found here"
    cp --dereference "$path" "$2/lib/$name"
  done
}

# In a system without anything but what was staged, so without cmake, Python or a model's weights.
check() {
  source "$ROOT/scripts/lib/server.sh"
  trap stop_server EXIT
  say "start $1/bin/espalier-server"
  start_server "$1/bin/espalier-server" --device cpu --random-weights 1 --kv-memory 64MiB \
    --model "$ROOT/tests/golden/tiny/llama-mha" --port 0
  say "probe $SERVER_ADDRESS"
  "$1/bin/espalier-server" --probe "$SERVER_ADDRESS"
  local address=$SERVER_ADDRESS
  stop_server
  ! "$1/bin/espalier-server" --probe "$address" 2>/dev/null || die "a stopped server still serves"
}

(( $# >= 2 )) || { usage >&2; exit 2; }
cd "$ROOT"
case $1 in
  install) step "install packages for $2" docker-install.log install_packages ;;
  build) step "build the preset $2" docker-build.log build "$2" ;;
  test) run_tests "$2" ;;
  stage) step "stage the preset $2 in $3" docker-stage.log stage "$2" "$3" ;;
  check) check "$2" ;;
  *) usage >&2; exit 2 ;;
esac

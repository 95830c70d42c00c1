#!/usr/bin/env bash
# From a clean Debian machine to an answered tree.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
source "$ROOT/scripts/lib/server.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/quickstart.sh [--keep] [--port N] [--model PATH]
Installs packages, builds the server, fetches the demo model, starts the server on this machine's
loopback, sends it a few-shot tree and prints the answer.
  --keep        leave the server running
  --port N      port to listen on (default: any free one)
  --model PATH  a GGUF file or a Hugging Face folder instead of the demo model
TEXT
}

keep=false port=0 model=
while (( $# > 0 )); do
  case $1 in
    --keep) keep=true ;;
    --port) port=${2:?--port needs a number}; shift ;;
    --model) model=${2:?--model needs a path}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift
done
[[ -z $model || -e $model ]] || die "--model: there is no $model"

preset=cpu
if has_gpu; then
  if find_nvcc >/dev/null; then
    preset=cuda
  else
    say "a GPU is here but no nvcc: the server is built for the CPU"
  fi
fi

build_server() {
  { [[ -e build/$preset/build.ninja ]] || cmake --preset "$preset"; } &&
    cmake --build --preset "$preset" --target espalier-server
}

cd "$ROOT"
"$ROOT/scripts/install_dependencies.sh"
step "build the server (preset $preset)" build.log build_server
python=$("$ROOT/scripts/setup_python.sh")
[[ -n $model ]] || model=$("$ROOT/scripts/get_demo_model.sh")

trap stop_server EXIT
say "start the server on $(basename "$model")"
start_server "build/$preset/server/espalier-server" --model "$model" --host 127.0.0.1 --port "$port"

"$python" scripts/client.py health --address "$SERVER_ADDRESS" --wait --timeout 60 >/dev/null || die "the server is not healthy; its log is $SERVER_LOG"

say "send configs/examples/few_shot.json to $SERVER_ADDRESS"
"$python" scripts/client.py generate --address "$SERVER_ADDRESS" --file configs/examples/few_shot.json ||
  die "the request failed; the server's log is $SERVER_LOG"

if $keep; then
  say "the server stays up at $SERVER_ADDRESS as process $SERVER_PID (kill $SERVER_PID stops it)"
  say "ask it more: scripts/client.py generate --address $SERVER_ADDRESS --chat --prompt 'Hello!' --n 3"
  trap - EXIT
else
  stop_server
fi
say "done"

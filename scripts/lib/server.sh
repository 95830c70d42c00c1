# Sourced after common.sh: one espalier-server, started in the background and stopped by its pid.
SERVER_PID=
SERVER_ADDRESS=
readonly SERVER_LOG=$LOGS/server.log

# start_server BINARY ARGUMENTS...: returns when the server says where it listens and sets
# SERVER_PID and SERVER_ADDRESS. Ends the script when the server ends or is silent for a minute.
start_server() {
  local deadline=$(( SECONDS + 60 ))
  mkdir -p "$LOGS"
  # A session of its own: the terminal's interrupt reaches this script alone, which then drains it.
  setsid "$@" >"$SERVER_LOG" 2>&1 </dev/null &
  SERVER_PID=$!
  until SERVER_ADDRESS=$(_listening_address) && [[ -n $SERVER_ADDRESS ]]; do
    if ! kill -0 "$SERVER_PID" 2>/dev/null; then
      local status=0
      wait "$SERVER_PID" || status=$?
      SERVER_PID=
      tail -n 20 "$SERVER_LOG" >&2
      die "the server ended with status $status before it listened; its log is $SERVER_LOG"
    fi
    (( SECONDS < deadline )) ||
      die "the server does not listen after a minute; its log is $SERVER_LOG"
    sleep 0.05
  done
}

_listening_address() { sed -n 's/.*listening on \([^ ]*:[0-9]*\).*/\1/p' "$SERVER_LOG" | tail -n 1; }

stop_server() {  # Does nothing when none runs.
  [[ -n $SERVER_PID ]] || return 0
  kill -TERM "$SERVER_PID" 2>/dev/null || true
  wait "$SERVER_PID" 2>/dev/null || true
  SERVER_PID=
}

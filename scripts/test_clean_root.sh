#!/usr/bin/env bash
# Makes the image's steps (docker/steps.sh) in a fresh Debian 12 root instead of a container: install,
# build and test a clone of HEAD, stage the server, and start it in a second root that has nothing
# else. Needs root, debootstrap, and some 6 GB under the temporary folder.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

readonly SUITE=bookworm

usage() {
  cat <<'TEXT'
Usage: scripts/test_clean_root.sh [--keep]
  --keep   leave the roots (the folder is printed)
Packages come from the mirror that this machine's apt uses for Debian 12. TMPDIR says where the roots
are made.
TEXT
}

# The rest runs in a mount namespace of its own: when it ends, however it ends, no mount is left, and
# removing the roots cannot reach anything outside.
if [[ ${ESPALIER_IN_NAMESPACE:-} != yes ]]; then
  keep=false
  case ${1:-} in
    '') ;;
    --keep) keep=true ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  (( EUID == 0 )) || die "debootstrap and chroot need root"
  command -v debootstrap >/dev/null || die "debootstrap is not installed"
  work=$(mktemp -d)
  remove() { if $keep; then say "the roots are left in $work"; else rm -rf --one-file-system "$work"; fi; }
  trap remove EXIT
  ESPALIER_IN_NAMESPACE=yes unshare --mount --propagation private "${BASH_SOURCE[0]}" "$work"
  say "done"
  exit 0
fi

readonly WORK=$1 BUILD_ROOT=$1/build RUNTIME_ROOT=$1/runtime

mirror() {  # Of this machine's apt, for the suite.
  apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
    awk -v suite="$SUITE" '$2 == suite && $3 == "main" { print $1; exit }'
}

make_roots() {
  local uri
  uri=$(mirror)
  [[ -n $uri ]] || die "this machine's apt has no mirror of $SUITE"
  debootstrap --variant=minbase "$SUITE" "$BUILD_ROOT" "$uri"
  echo '127.0.0.1 localhost' >"$BUILD_ROOT/etc/hosts"  # as installers and container engines write it
  cp -a "$BUILD_ROOT" "$RUNTIME_ROOT"
  # How to reach the mirror: proxies and the like.
  apt-config dump Acquire::http Acquire::https >"$BUILD_ROOT/etc/apt/apt.conf.d/90acquire"
  cp -L /etc/resolv.conf "$BUILD_ROOT/etc/resolv.conf"
  git clone --quiet --no-local "$ROOT" "$BUILD_ROOT/src"
}

in_root() {  # $1: root, then the command. Nothing of this machine's environment but proxies.
  local root=$1
  shift
  chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 ${http_proxy:+http_proxy="$http_proxy"} \
    ${https_proxy:+https_proxy="$https_proxy"} ESPALIER_START_US="$START_US" "$@"
}

mount_kernel_folders() {
  local root
  for root in "$BUILD_ROOT" "$RUNTIME_ROOT"; do
    mount -t proc proc "$root/proc"
    mount --rbind --make-rslave /dev "$root/dev"
  done
}

cd "$ROOT"
step "make two Debian roots in $WORK" clean-root.log make_roots
mount_kernel_folders
in_root "$BUILD_ROOT" /src/docker/steps.sh install cpu
in_root "$BUILD_ROOT" /src/docker/steps.sh build cpu
in_root "$BUILD_ROOT" /src/docker/steps.sh test cpu
in_root "$BUILD_ROOT" /src/docker/steps.sh stage cpu /opt/espalier

# What a runtime image holds, and the script that checks it with the model that it starts on.
mkdir -p "$RUNTIME_ROOT/src/docker" "$RUNTIME_ROOT/src/scripts" "$RUNTIME_ROOT/src/tests/golden/tiny"
cp -a "$BUILD_ROOT/opt/espalier" "$RUNTIME_ROOT/opt/espalier"
cp docker/steps.sh "$RUNTIME_ROOT/src/docker/"
cp -a scripts/lib "$RUNTIME_ROOT/src/scripts/"
cp -a tests/golden/tiny/llama-mha "$RUNTIME_ROOT/src/tests/golden/tiny/"
in_root "$RUNTIME_ROOT" /src/docker/steps.sh check /opt/espalier

#!/usr/bin/env bash
# Installs the Debian packages of lib/packages.txt that are missing. Says and does nothing when
# none is. Needs root or sudo only when there is something to install.
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

missing_packages() {
  local package
  while read -r package; do
    [[ -z $package || $package == \#* ]] && continue
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      echo "$package"
  done <"$ROOT/scripts/lib/packages.txt"
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  die "no apt-get here: install what $ROOT/scripts/lib/packages.txt names by other means," \
    "then run: cmake --preset cpu && cmake --build --preset cpu"
fi

mapfile -t missing < <(missing_packages)
(( ${#missing[@]} == 0 )) && exit 0

as_root=()
if (( EUID != 0 )); then
  command -v sudo >/dev/null || die "these packages are missing, and neither root nor sudo is here" \
    "to install them: ${missing[*]}"
  as_root=(sudo)
fi
step "refresh the package lists" apt-update.log "${as_root[@]}" apt-get update
step "install ${#missing[@]} packages" apt-install.log \
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install --yes --no-install-recommends "${missing[@]}"

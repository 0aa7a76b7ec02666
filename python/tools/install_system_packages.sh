#!/usr/bin/env bash
# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#
# Checks for Swift and Python, and installs the Debian packages that the build needs and this machine lacks.
# Usage: install_system_packages.sh PYTHON
set -euo pipefail
python=$1

fail() {
  echo "$*" >&2
  exit 1
}

command -v swift >/dev/null ||
  fail 'lowrank_swift is built with Swift 6.2 or newer, but no `swift` was found: install it from' \
    'https://www.swift.org/install/linux and put `swift` on PATH.'
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "lowrank_swift needs Python 3.10 or newer, which \`$python\` is not: name another with \`make PYTHON=...\`."

packages=()
# Debian's packages serve Debian's Python only; another brings its own headers.
if [[ $("$python" -c 'import sys; print(sys.base_prefix)') == /usr ]]; then
  "$python" -c 'import sysconfig, os; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
    packages+=(python3-dev)
  "$python" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
fi
command -v pkg-config >/dev/null || packages+=(pkg-config)
pkg-config --exists openblas 2>/dev/null || packages+=(libopenblas-dev)
[[ ${#packages[@]} -gt 0 ]] || exit 0

echo "Installing the missing system packages: ${packages[*]}"
command -v apt-get >/dev/null || fail "There is no apt-get here: install what they provide by other means."
as_root=()
if [[ $(id -u) != 0 ]]; then
  command -v sudo >/dev/null || fail "There is no sudo here: run \`apt-get install ${packages[*]}\` as root."
  as_root=(sudo)
fi
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"

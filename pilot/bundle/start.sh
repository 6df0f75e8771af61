#!/bin/sh
# Pilotage @VERSION@ for @ARCH@ and Python @PYTHONS@: this start script, with an archive behind it that Python reads.
# The script finds a Python on this node and becomes it (exec), so that signals reach the pilot.
# PILOTAGE_PYTHON=FILE names the Python to try first, PILOTAGE_PYTHON_MODULE=NAME an environment module that brings one.

pythons='@PYTHONS@'
arch='@ARCH@'
python=''
tried=''

note() {
  tried="$tried
  $*"
}

# What a Python is asked: it must be of a version that this file brings packages for, and have its standard library
# whole (Debian's python3-minimal has not).
question='
import sys
from importlib.util import find_spec
names = ("_ctypes", "_ssl", "_hashlib", "_posixsubprocess", "email", "json", "logging", "zlib")
full, short = "%d.%d.%d" % sys.version_info[:3], "%d.%d" % sys.version_info[:2]
lacks = [name for name in names if not find_spec(name)]
if short not in sys.argv[1:]:
    print("is Python %s, and this file is for %s" % (full, ", ".join(sys.argv[1:])))
elif sys.implementation.name != "cpython" or sys.maxsize < 2**32 or "t" in getattr(sys, "abiflags", ""):
    print("is not the usual 64-bit CPython")
elif lacks:
    print("is Python %s without its modules %s: install all of it" % (full, ", ".join(lacks)))
else:
    print("usable")
'

# try FILE: whether it is a Python that will do; it is $python then.
try() {
  answer=$("$1" -I -S -c "$question" $pythons 2>/dev/null </dev/null) || answer='does not run here'
  if [ "$answer" = usable ]; then
    python=$1
    return 0
  fi
  note "$1: ${answer:-does not run here}"
  return 1
}

try_named() {
  [ -n "${PILOTAGE_PYTHON:-}" ] || return 1
  try "$PILOTAGE_PYTHON" && return 0
  echo "pilotage: PILOTAGE_PYTHON is of no use on this node, looking for another:$tried" >&2
  return 1
}

try_path() {
  for version in $(for one in $pythons; do echo "$one"; done | sort -t . -k 2,2nr) ''; do
    found=$(command -v "python${version:-3}" 2>/dev/null) || continue
    try "$found" && return 0
  done
  return 1
}

try_cvmfs() {
  [ -d /cvmfs ] || return 1
  for found in \
    /cvmfs/software.eessi.io/versions/*/compat/linux/"$arch"/usr/bin/python3 \
    /cvmfs/atlas.cern.ch/repo/ATLASLocalRootBase/"$arch"/python/*/bin/python3 \
    /cvmfs/sft.cern.ch/lcg/releases/Python/3.*/"$arch"-*-opt/bin/python3; do
    if [ -x "$found" ]; then try "$found" && return 0; fi
  done
  return 1
}

try_modules() {
  if ! command -v module >/dev/null 2>&1; then
    for init in "${MODULESHOME:-/usr/share/modules}/init/sh" "${LMOD_PKG:-/usr/share/lmod/lmod}/init/sh" \
      /etc/profile.d/modules.sh /etc/profile.d/lmod.sh; do
      # Tried in a shell of its own first: a script that fails would end this one.
      if [ -r "$init" ] && (. "$init") >/dev/null 2>&1; then
        . "$init" >/dev/null 2>&1
        break
      fi
    done
  fi
  command -v module >/dev/null 2>&1 || return 1
  before=$(command -v python3)
  for name in ${PILOTAGE_PYTHON_MODULE:-} python3 python Python; do
    module load "$name" >/dev/null 2>&1
    found=$(command -v python3) || continue
    if [ "$found" != "$before" ]; then try "$found" && return 0; fi
    before=$found
  done
  return 1
}

machine=$(uname -m)
if [ "$machine" != "$arch" ]; then
  echo "pilotage: this file is for $arch and this node is $machine: make one by pilotage pilot bundle --arch $machine" >&2
  exit 1
fi
if try_named || try_path || try_cvmfs || try_modules; then
  exec "$python" -I -X utf8 "$0" "$@"
fi
{
  echo "pilotage: no Python on $(uname -n) will do: this file runs on $pythons. Tried:${tried:-
  nothing: there is no python3 on the search path ($PATH), in /cvmfs or in an environment module}"
  echo "Install one, mount CVMFS, or name one by PILOTAGE_PYTHON or PILOTAGE_PYTHON_MODULE."
} >&2
exit 1

#!/usr/bin/env bash
# Print the path of the first interpreter, of the names given, that is Python 3.11 or later.
set -u
probe='import sys; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)'
for name in "$@"; do
  "$name" -c "$probe" 2>/dev/null && exit 0
  # pyenv puts every name on the PATH but runs only the versions that are switched on.
  if command -v pyenv >/dev/null 2>&1; then
    for candidate in "$(pyenv root)"/versions/*/bin/"$name"; do
      "$candidate" -c "$probe" 2>/dev/null && exit 0
    done
  fi
done
echo "no Python 3.11 or later among: $*. Install one and name it: make PYTHON=python3.12 ..." >&2
exit 1

#!/usr/bin/env bash
# Print the versions installed beside the interpreter given, as a constraints file.
set -euo pipefail
echo "# Versions that the tests pass with on Python $("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); written by 'make constraints'."
"$1" -m pip list --format freeze | grep -v '^pyrocell==' | sed 's/+cpu$//'

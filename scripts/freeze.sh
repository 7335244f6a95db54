#!/usr/bin/env bash
# Print the versions installed beside the interpreter given, as a constraints file.
set -euo pipefail
version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "# What the tests pass with on Python $version; written by 'make constraints'."
# torch itself pins the CUDA packages of its build
"$1" -m pip list --disable-pip-version-check --format freeze 2>/dev/null |
  grep -v -E '^(pyrocell|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' | sed 's/+[a-z0-9]*$//'

#!/bin/sh
# Runs the packaged tests on a machine with a GPU. Usage: run.sh [NAME ...] (default: every test binary).
# Ends with 1 when one of them fails.
here=$(cd "$(dirname "$0")" && pwd)
# A test that finds no usable GPU fails instead of skipping.
export STEM_ATTN_REQUIRE_GPU=1
export STEM_BIN="$here/bin/stem"
[ $# -gt 0 ] || set -- $(ls "$here/tests")
echo "== stem info"
"$here/bin/stem" info || exit 1
failed=
for name in "$@"; do
    echo "== $name"
    "$here/tests/$name" --test-threads=1 || failed="$failed $name"
done
if [ -n "$failed" ]; then
    echo "FAILED:$failed"
    exit 1
fi
echo "all passed: $*"

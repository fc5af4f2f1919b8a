#!/bin/sh
# usage: run.sh BUILD NAME...   Runs the test programs BUILD/NAME, then the scripts [0-9]*.sh, and adds up their last lines.
build=$1; shift
passed=0 failed=0 skipped=0
run() {   # name, command...
    name=$1; shift
    "$@" >"$build/log" 2>&1; code=$?
    cat "$build/log"
    counts=$(tail -n 1 "$build/log" | sed -nE 's/^[a-z0-9_]+: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    if [ -z "$counts" ]; then echo "FAIL $name ended without a count (exit $code)"; failed=$((failed + 1)); return; fi
    set -- $counts
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ $code -ne 0 ] && [ "$2" -eq 0 ]; then echo "FAIL $name: exit $code"; failed=$((failed + 1)); fi
}
for name in "$@"; do run "$name" "./$build/$name"; done
for script in [0-9]*.sh; do
    if [ -f "$script" ]; then run "$script" sh "$script" "./$build/wrpo"; fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

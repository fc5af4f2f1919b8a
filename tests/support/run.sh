#!/bin/sh
# usage: run.sh one BUILD NAME COMMAND...   Runs one test. When it ends, prints what was skipped and the last line,
#                                           or everything if it failed. All that it printed is in BUILD/log/NAME.
#                                           Always exits 0: `sum` decides.
#        run.sh sum BUILD NAME...           Adds up the counts of these tests: "N passed, N failed, N skipped".
#                                           Exits 1 if one failed.
what=$1 build=$2; shift 2
mkdir -p "$build/log"
case $what in
one)
    name=$1; shift
    log=$build/log/$name
    begin=$(date +%s)
    "$@" >"$log" 2>&1; code=$?
    seconds=$(($(date +%s) - begin))
    last=$(tail -n 1 "$log")
    counts=$(echo "$last" | sed -nE 's/^[a-z0-9_]+: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    failed=$(echo "$counts" | cut -d ' ' -f 2)
    if [ -z "$counts" ]; then
        echo "FAIL $name ended without a count (exit $code)" >>"$log"
        counts="0 1 0"
    elif [ $code -ne 0 ] && [ "$failed" -eq 0 ]; then
        echo "FAIL $name: exit $code" >>"$log"
        counts=$(echo "$counts" | awk '{ print $1, $2 + 1, $3 }')
    fi
    echo "$counts" >"$build/log/$name.counts"
    case $counts in
    *" 0 "*) text=$(grep '^skip' "$log"; tail -n 1 "$log") ;;
    *) text=$(cat "$log") ;;
    esac
    printf '%s   (%d s)\n' "$text" "$seconds" ;;
sum)
    for name in "$@"; do cat "$build/log/$name.counts" || echo "0 1 0"; done |
        awk '{ p += $1; f += $2; s += $3 }
             END { print p + 0 " passed, " f + 0 " failed, " s + 0 " skipped"; exit f > 0 || p == 0 }' ;;
esac

#!/bin/sh
# usage: sh bench/bench_tile.sh [OBJECT...]      from tests/; without objects it compiles wrpo.h with gcc and clang
# Counts the instructions of the products' inner loop in the object code: four steps of k of a whole tile of C. Fewest
# are, for a step, one load for a vector of B, one broadcast for a row of A where the multiply-add does not load it
# itself (AVX2), and the multiply-adds. The rest is the loop: pointers, prefetches, the test at its end. It fails where
# that rest is more than a tenth.
cd "$(dirname "$0")/.." || exit 1
command -v objdump >/dev/null || { echo "skipped: no objdump"; exit 0; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
if [ $# -eq 0 ]; then
    for cc in gcc clang; do
        command -v $cc >/dev/null || { echo "skipped: no $cc"; continue; }
        $cc -std=c11 -O2 -fopenmp -I.. -c support/wrpo.c -o "$work/$cc.o" && set -- "$@" "$work/$cc.o"
    done
fi
code=0
for object in "$@"; do
    # level, rows, vectors, and whether a multiply-add loads its row of A
    while read -r level rows vectors inside; do
        objdump -d --no-show-raw-insn "$object" | awk -v object="${object##*/}" -v level="$level" -v rows="$rows" \
            -v vectors="$vectors" -v inside="$inside" '
            function number(hex,    i, n) {
                for (i = 1; i <= length(hex); i++) n = n * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
                return n
            }
            /^[0-9a-f]+ <.*>:$/ { on = index($2, "wrpo__tile_" level) == 2 && $2 !~ /_(of|amx|write|step)/; next }
            on && /^ +[0-9a-f]+:/ {
                at = $1
                sub(/:/, "", at)
                address[++n] = number(at)
                text[n] = $0
                fma[n] = fma[n - 1] + ($2 ~ /^vfmadd/)
                if ($2 ~ /^j/ && $3 ~ /^[0-9a-f]+$/) target[n] = number($3)
            }
            END {
                want = 4 * rows * vectors
                fewest = want + 4 * vectors + (inside ? 0 : 4 * rows)
                for (i = 1; i <= n; i++) {
                    if (!(i in target) || target[i] > address[i] || target[i] < address[1]) continue
                    for (j = i; j > 1 && address[j] > target[i]; j--);
                    if (fma[i] - fma[j - 1] != want) continue
                    if (!best || i - j + 1 < best) best = i - j + 1
                }
                if (!best) { print object ", " level ": no loop with " want " multiply-adds"; exit 1 }
                printf "%s, %s: %d instructions for %d multiply-adds (%.2f each), %d would be the fewest\n", object,
                    level, best, want, best / want, fewest
                exit best > 1.1 * fewest
            }' || code=1
    done <<EOF
avx2 6 2 0
avx512 14 2 0
EOF
done
exit $code

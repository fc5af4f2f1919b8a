#!/bin/sh
# How time and memory of a training step grow, beside what the arithmetic says.
# usage: sh bench/bench_growth.sh [length|vocabulary|responses|kept ...]
# One process per point (build/bench step: SmolLM2's widths, few layers, one
# record, the fastest of 3 steps). Exponents are least-squares lines through log-log points: of the measured time, of
# the time that its operations and bytes would take at the ceilings measured first, of the peak resident memory and of
# the memory predicted before the run. DTYPE=bf16, THREADS=n. About a minute an axis. Exits 1 if time grows faster than
# the arithmetic by more than 0.1 (on a machine that was ours), or memory than predicted by more than 0.1.
cd "$(dirname "$0")/.." || exit 1
[ $# -gt 0 ] || set -- length vocabulary responses kept
${MAKE:-make} --no-print-directory build/bench >&2 || exit 1
common="--dtype ${DTYPE:-f32} --threads ${THREADS:-2} --records 1 --equal --steps 3"
ceilings=$(OMP_WAIT_POLICY=passive ./build/bench ceilings --threads "${THREADS:-2}" 2>/dev/null) || exit 1
fma=$(echo "$ceilings" | sed -n 's/.*multiply-adds \([0-9]*\) GFLOP.*/\1/p')
if [ "${DTYPE:-f32}" = bf16 ]; then fma=$(echo "$ceilings" | sed -n 's/.*bf16 \([0-9]*\) GFLOP.*/\1/p'); fi
memory=$(echo "$ceilings" | sed -n 's/.* \([0-9]*\) | [0-9]* | [0-9]* | [0-9]*$/\1/p')
echo "ceilings: $fma GFLOP/s, $memory GB/s"
bad=0
point() {   # value, options of bench step; twice if need be, until the machine was ours
    value=$1 busy=1; shift
    for try in 1 2; do
        line=$(OMP_WAIT_POLICY=passive ./build/bench step $common "$@" 2>build/growth.err) ||
            { cat build/growth.err >&2; exit 1; }
        grep -q 'DO NOT TRUST' build/growth.err || { busy=0; break; }
    done
    [ $busy = 0 ] || { echo "(others were busy at $value)" >&2; disturbed=1; }
    echo "$value $line" >>build/growth
}
for axis in "$@"; do
    : >build/growth
    disturbed=0
    case $axis in
    length)
        what="prompt + response, of each of 3 responses"
        for n in 256 512 1024 2048 4096; do
            point $n --layers 4 --vocab 8192 --prompt $((n / 4)) --response $((n - n / 4))
        done ;;
    vocabulary)
        what="vocabulary"
        for n in 32768 65536 131072 262144; do point $n --layers 4 --prompt 64 --response 256 --vocab $n; done ;;
    responses)
        what="responses a record, a shared prompt of as many tokens"
        for n in 1 2 3 4 6 8; do
            point $n --layers 4 --vocab 8192 --prompt 256 --response 256 --responses $n
        done ;;
    kept)
        what="layers kept, of 12"
        for n in 12 9 6 3 0; do
            point $n --layers 12 --vocab 8192 --prompt 256 --response 512 --recompute $((12 - n))
        done ;;
    *) echo "no such axis: $axis" >&2; exit 2 ;;
    esac
    awk -v axis="$axis" -v what="$what" -v fma="$fma" -v memory="$memory" -v disturbed=$disturbed '
        # slope of y over x: both in logarithms, except over layers kept
        function line(y,   i, sx, sy, sxx, sxy, X, Y) {
            sx = sy = sxx = sxy = 0
            for (i = 1; i <= n; i++) {
                X = axis == "kept" ? x[i] : log(x[i])
                Y = axis == "kept" ? y[i] : log(y[i])
                sx += X; sy += Y; sxx += X * X; sxy += X * Y
            }
            return (n * sxy - sx * sy) / (n * sxx - sx * sx)
        }
        {
            for (i = 2; i < NF; i += 2) f[$i] = $(i + 1)
            n++
            x[n] = $1; rows[n] = f["rows"]; t[n] = f["least"]; at[n] = f["attention"]
            m[n] = f["peak_mib"]; p[n] = f["predicted_mib"]
            ideal[n] = f["gflop"] / fma + f["gbyte"] / memory
        }
        END {
            printf "\n| %s | rows | s a step | at the ceilings | share | of it attention ", what
            print "| peak MiB | predicted MiB |\n|---|---|---|---|---|---|---|---|"
            for (i = 1; i <= n; i++)
                printf "| %d | %d | %.3f | %.3f | %.0f %% | %.0f %% | %.0f | %.0f |\n", x[i], rows[i], t[i],
                    ideal[i], 100 * ideal[i] / t[i], 100 * at[i] / t[i], m[i], p[i]
            if (axis == "kept") {
                printf "kept: %+.4f s a step and %+.1f MiB for every layer more that is kept; ", line(t), line(m)
                printf "arithmetic %+.4f s, predicted %+.1f MiB\n", line(ideal), line(p)
                exit
            }
            a = line(t); b = line(ideal); c = line(m); d = line(p); bad = (a > b + 0.1 && !disturbed) || c > d + 0.1
            note = disturbed ? "  (others were busy: the time is not judged)" : ""
            if (bad) note = "  FAIL: faster than the arithmetic"
            printf "%s: exponent of time %.2f, arithmetic %.2f; ", axis, a, b
            printf "of memory %.2f, predicted %.2f%s\n", c, d, note
            exit bad
        }' build/growth || bad=1
done
exit $bad

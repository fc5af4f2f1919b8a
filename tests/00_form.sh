#!/bin/sh
# The form of the source: warnings, C++ declarations, two translation units, symbols, words that do not belong into a
# library, its size, its width.
# usage, in this folder: sh 00_form.sh [BUILD/wrpo]      uses what `make` left of BUILD/wrpo.o and its warnings
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAIL form: $*"; }
CC=${CC:-cc}
B=build/form built=$(dirname "${1:-build/wrpo}")
mkdir -p $B
cat >$B/impl.c <<'X1'
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
X1
cat >$B/user.c <<'X1'
#include "wrpo.h"
#include <stdio.h>
int main(void) {
    wrpo_ctx *ctx;
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 1;
    wrpo_close(ctx);
    return 0;
}
X1
cat >$B/both.c <<'X1'
#define WRPO_API static
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
int main(void) { wrpo_ctx *ctx; return wrpo_open(0, &ctx) ? 1 : (wrpo_close(ctx), 0); }
X1

# ---- compilers
warn="-std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I.."
version() { "$1" --version | head -n 1 | sed 's/^[^ ]* //'; }
# `make` has compiled the library with these warnings, -O2 and -fopenmp: its compiler need not do so again.
already() { [ "$CFLAGS" = -O2 ] && [ -f "$built/wrpo.warnings" ] && [ "$(version "$1")" = "$(version "$CC")" ]; }
has_openmp() { echo 'int main(void) { return 0; }' | $1 -x c -fopenmp - -o $B/omp 2>/dev/null; }
skip() { skipped=$((skipped + $1)); echo "skip: $2"; }
for cc in gcc clang; do
    if ! command -v $cc >/dev/null; then skip 1 "$cc is not installed"; continue; fi
    if ! has_openmp $cc; then skip 1 "$cc has no OpenMP"
    elif already $cc; then if [ ! -s "$built/wrpo.warnings" ]; then ok; else bad "$cc -O2 -fopenmp: warnings"; fi
    elif $cc $warn -O2 -fopenmp -c $B/impl.c -o $B/impl.o; then ok
    else bad "$cc -O2 -fopenmp: warnings"; fi
    for flags in -O2 -O0; do
        if $cc $warn $flags -c $B/impl.c -o $B/impl.o; then ok; else bad "$cc $flags: warnings"; fi
    done
    if $cc $warn $B/user.c $B/impl.o -o $B/user -lm && $B/user; then ok; else bad "$cc: two translation units"; fi
    if $cc $warn -Wno-unused-function $B/both.c -o $B/both -lm && $B/both; then ok; else bad "$cc: WRPO_API static"; fi
    for flags in "" -DWRPO_CUDA; do
        if $cc $warn $flags -fsyntax-only ../example.c; then ok; else bad "$cc $flags example.c: warnings"; fi
    done
done
for f in bench/*.c; do               # which `make` alone does not build
    compiler=$CC
    if grep -q '<mpi.h>' $f; then    # where there is an MPI
        compiler=$(command -v mpicc || true)
        export OMPI_CC="$CC" MPICH_CC="$CC"
        if [ -z "$compiler" ]; then continue; fi
    fi
    if $compiler $warn -fopenmp -Wno-unused-function -fsyntax-only $f; then ok; else bad "$f: warnings"; fi
done
# stb_ds.h under another path; a header of another name, which must not lose its vectors in silence
mkdir -p $B/flat/stb
stb=$(echo '#include <stb/stb_ds.h>' | $CC -E - | sed -n 's/^# 1 "\(.*stb_ds\.h\)".*/\1/p' | head -1)
cp "$stb" $B/flat/other_ds.h
cp $B/flat/other_ds.h $B/flat/stb/stb_ds.h
if $CC -std=c11 -fsyntax-only -DWRPO_STB_DS_H='"other_ds.h"' -I.. -I$B/flat $B/impl.c; then ok
else bad "WRPO_STB_DS_H"; fi
cp ../wrpo.h $B/renamed.h
printf '#define WRPO_IMPLEMENTATION\n#include "renamed.h"\n' >$B/renamed.c
case "$($CC --version | head -1) $(uname -m)" in
*clang*) skip 2 "clang always knows the name of a file" ;;
*x86_64)
    renamed="-std=c11 -O0 -Wno-builtin-macro-redefined -U__FILE_NAME__ $B/renamed.c"
    $CC $renamed -fsyntax-only 2>$B/renamed.txt
    if grep -q 'AVX-512 and AVX2 are left out' $B/renamed.txt; then ok
    else bad "a renamed header loses its vectors in silence"; fi
    $CC $renamed -DWRPO_FILE='"renamed.h"' -c -o $B/renamed.o 2>$B/renamed.txt
    if [ ! -s $B/renamed.txt ] && nm $B/renamed.o | grep -q '_avx512$'; then ok
    else bad "WRPO_FILE: $(cat $B/renamed.txt)"; fi ;;
*) skip 2 "no AVX on this machine" ;;
esac
if command -v x86_64-w64-mingw32-gcc >/dev/null; then
    for flags in "" "-DWRPO_NO_SIMD"; do
        if x86_64-w64-mingw32-gcc -std=c11 -Wall $flags -I.. -I$B/flat $B/user.c $B/impl.c -o $B/user.exe -lm; then ok
        else bad "Windows $flags"; fi
    done
    if x86_64-w64-mingw32-gcc -std=c11 -Wall -fsyntax-only -DWRPO_STB_DS_H="\"$stb\"" -I.. ../example.c; then ok
    else bad "Windows: example.c"; fi
else skip 3 "x86_64-w64-mingw32-gcc is not installed"; fi
# WebAssembly: a tiny model is trained in node (support/cut.c); its mathematics library rounds otherwise than this one
if command -v emcc >/dev/null && command -v node >/dev/null; then
    if emcc -O1 -std=c11 -I.. -I$B/flat support/cut.c $B/impl.c -o $B/cut.js &&
        node --no-experimental-fetch $B/cut.js | grep -q '^loss 0.6931 to 0.0003'; then ok
    else bad "emcc: no training in WebAssembly"; fi
else skip 1 "emcc or node is not installed"; fi
cat >$B/version.c <<'X1'
#include "wrpo.h"
#if WRPO_VERSION_NUMBER < 100
#error version
#endif
#include <stdio.h>
static const char version[] = WRPO_VERSION;
int main(void) {
    int a, b, c;
    return sscanf(version, "%d.%d.%d", &a, &b, &c) != 3 || a * 10000 + b * 100 + c != WRPO_VERSION_NUMBER;
}
X1
if $CC -std=c11 -I.. $B/version.c -o $B/version && $B/version; then ok
else bad "WRPO_VERSION and WRPO_VERSION_NUMBER differ"; fi
if command -v g++ >/dev/null; then
    if g++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -I.. -x c++ -fsyntax-only $B/user.c; then ok
    else bad "declarations as C++17"; fi
else skip 1 "g++ is not installed"; fi

# ---- symbols and words
object=$built/wrpo.o
[ -f "$object" ] || { object=$B/impl.o; $CC -std=c11 -O1 -I.. -c $B/impl.c -o $object; }
names=$(nm "$object" | awk '$2 ~ /[A-TV-Z]/ && $2 != "U" { print $3 }' | grep -v -e '^wrpo_' -e '^__odr_asan')
if [ -z "$names" ]; then ok; else bad "symbols outside wrpo_: $names"; fi
private=$(nm "$object" | awk '$2 ~ /[A-TV-Z]/ { print $3 }' | grep '^wrpo__' | grep -v '^wrpo__stbds_')
if [ -z "$private" ]; then ok; else bad "private names that are not static: $private"; fi
names=$(nm "$object" | grep -iE 'mpi_|nccl')
if [ -z "$names" ]; then ok; else bad "without WRPO_MPI the object has $names"; fi
words=$(grep -nE '\b(exit|abort|printf|puts)\(' ../wrpo.h | grep -vE '^[0-9]+: *(\*|//|/\*)')
if [ -z "$words" ]; then ok; else bad "library code that exits or prints: $words"; fi
words=$(grep -nE '\bgetenv *\(' ../wrpo.h)
if [ -z "$words" ]; then ok; else bad "the library reads the environment: $words"; fi
top=$(cd .. && ls -A | grep -vE '^(wrpo\.h|wrpo_cuda\.cu|example\.c|tests|LICENSE|README\.md|wrpo|report\.html|\..*)$')
if [ -z "$top" ]; then ok; else bad "the top level holds $top"; fi
folders=$(ls -d */ | grep -vE '^(bench|build|fuzz|golden|support|tmp.*)/$')
if [ -z "$folders" ]; then ok; else bad "tests/ holds $folders"; fi

# ---- size and width
bytes=$(wc -c <../wrpo.h)
limit=938000
if [ "$bytes" -le $limit ]; then ok; else bad "wrpo.h has $bytes bytes, want at most $limit"; fi
wide() {   # files: how many lines are too wide; the bytes that continue a character of UTF-8 are no columns
    LC_ALL=C awk '{ gsub(/[\200-\277]/, "") } length($0) > 120 { n++; if (!first) first = FNR }
                  END { if (n) print n " (the first is line " first ")" }' "$@"
}
for file in ../*.h ../*.c ../*.cu ../.ci/run Makefile *.sh *.c support/* bench/*.sh bench/*.c fuzz/*.sh fuzz/*.c; do
    [ -f "$file" ] || continue
    lines=$(wide "$file")
    if [ -z "$lines" ]; then ok; else bad "${file#../}: lines over 120 columns: $lines"; fi
done
# ---- README.md and the two that it points to
bytes=$(wc -c <../README.md)
limit=16384
if [ "$bytes" -le $limit ]; then ok; else bad "README.md has $bytes bytes, want at most $limit"; fi
for file in ../README.md bench/README.md golden/README.md; do
    # prose: neither tables nor blocks of code
    lines=$(awk '/^ *```/ { code = !code; print ""; next } { print code || /^(\||    )/ ? "" : $0 }' $file | wide)
    if [ -z "$lines" ]; then ok; else bad "${file#../}: lines over 120 columns: $lines"; fi
    # a file or test that it names is there: from the top, from tests/ or from its own folder
    lost=
    for name in $(grep -oE '[A-Za-z0-9_./-]+\.(sh|py|c|cu|h|md)\b' $file | sort -u); do
        case $name in program.c | stdio.h | stb_ds.h | stb/stb_ds.h) continue ;; esac   # the user's, the system's
        [ -f "../$name" ] || [ -f "$name" ] || [ -f "${file%/*}/$name" ] || lost="$lost $name"
    done
    for name in $(grep -oE '\bmake -C tests [0-9]+_[a-z_]+' $file | sed 's/.* //' | sort -u); do
        [ -f "$name.c" ] || [ -f "$name.sh" ] || lost="$lost $name"
    done
    if [ -z "$lost" ]; then ok; else bad "${file#../} names what is not there:$lost"; fi
done
awk '/^```c$/ { code = 1; next } /^```/ { code = 0 } code' ../README.md >$B/readme.c
if grep -q 'int main' $B/readme.c && $CC $warn -fsyntax-only $B/readme.c; then ok; else bad "README.md: its C"; fi
echo "form: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]

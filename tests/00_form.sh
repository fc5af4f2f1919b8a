#!/bin/sh
# The form of the library: warnings, C++ declarations, two translation units, symbols, words that do not belong into a library.
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAIL form: $*"; }
mkdir -p build/form
cat >build/form/impl.c <<'X'
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
X
cat >build/form/user.c <<'X'
#include "wrpo.h"
#include <stdio.h>
int main(void) {
    wrpo_ctx *ctx;
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 1;
    wrpo_close(ctx);
    return 0;
}
X
cat >build/form/both.c <<'X'
#define WRPO_API static
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
int main(void) { wrpo_ctx *ctx; return wrpo_open(0, &ctx) ? 1 : (wrpo_close(ctx), 0); }
X
warn="-std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I.."
for cc in gcc clang; do
    if ! command -v $cc >/dev/null; then skipped=$((skipped + 1)); echo "skip: $cc is not installed"; continue; fi
    for flags in "-O2" "-O2 -fopenmp" "-O0"; do
        case "$cc $flags" in "clang "*fopenmp*) echo 'int main(void){return 0;}' | clang -x c -fopenmp - -o build/form/omp 2>/dev/null || { skipped=$((skipped + 1)); echo "skip: clang has no OpenMP"; continue; } ;; esac
        if $cc $warn $flags -c build/form/impl.c -o build/form/impl.o; then ok; else bad "$cc $flags: warnings"; fi
    done
    if $cc $warn -O1 build/form/user.c build/form/impl.o -o build/form/user -lm && build/form/user; then ok; else bad "$cc: two translation units"; fi
    if $cc $warn -Wno-unused-function -O1 build/form/both.c -o build/form/both -lm && build/form/both; then ok; else bad "$cc: WRPO_API static"; fi
done
# stb_ds.h under another path; a header of another name, which must not lose its vectors in silence
mkdir -p build/form/flat
cp "$(echo '#include <stb/stb_ds.h>' | ${CC:-cc} -E - | sed -n 's/^# 1 "\(.*stb_ds\.h\)".*/\1/p' | head -1)" build/form/flat/other_ds.h
if ${CC:-cc} -std=c11 -O1 -DWRPO_STB_DS_H='"other_ds.h"' -I.. -Ibuild/form/flat -c build/form/impl.c -o build/form/flat.o; then ok; else bad "WRPO_STB_DS_H"; fi
cp ../wrpo.h build/form/renamed.h
printf '#define WRPO_IMPLEMENTATION\n#include "renamed.h"\n' >build/form/renamed.c
case "$(${CC:-cc} --version | head -1) $(uname -m)" in
*clang*) skipped=$((skipped + 2)); echo "skip: clang always knows the name of a file" ;;
*x86_64)
    ${CC:-cc} -std=c11 -O0 -Wno-builtin-macro-redefined -U__FILE_NAME__ -c build/form/renamed.c -o build/form/renamed.o 2>build/form/renamed.txt
    if grep -q 'AVX-512 and AVX2 are left out' build/form/renamed.txt; then ok; else bad "a renamed header loses its vectors in silence"; fi
    ${CC:-cc} -std=c11 -O0 -Wno-builtin-macro-redefined -U__FILE_NAME__ -DWRPO_FILE='"renamed.h"' -c build/form/renamed.c -o build/form/renamed.o 2>build/form/renamed.txt
    if [ ! -s build/form/renamed.txt ] && nm build/form/renamed.o | grep -q '_avx512$'; then ok; else bad "WRPO_FILE: $(cat build/form/renamed.txt)"; fi ;;
*) skipped=$((skipped + 2)); echo "skip: no AVX on this machine" ;;
esac
printf '#include "wrpo.h"\n#if WRPO_VERSION_NUMBER < 100\n#error version\n#endif\nstatic const char version[] = WRPO_VERSION;\n#include <stdio.h>\nint main(void) { int a, b, c; return sscanf(version, "%%d.%%d.%%d", &a, &b, &c) != 3 || a * 10000 + b * 100 + c != WRPO_VERSION_NUMBER; }\n' >build/form/version.c
if ${CC:-cc} -std=c11 -I.. build/form/version.c -o build/form/version && build/form/version; then ok; else bad "WRPO_VERSION and WRPO_VERSION_NUMBER differ"; fi
if command -v g++ >/dev/null; then
    if g++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -I.. -x c++ -fsyntax-only build/form/user.c; then ok; else bad "declarations as C++17"; fi
else skipped=$((skipped + 1)); echo "skip: g++ is not installed"; fi
${CC:-cc} -std=c11 -O1 -I.. -c build/form/impl.c -o build/form/impl.o
names=$(nm build/form/impl.o | awk '$2 ~ /[A-TV-Z]/ && $2 != "U" { print $3 }' | grep -v '^wrpo_')
if [ -z "$names" ]; then ok; else bad "symbols outside wrpo_: $names"; fi
private=$(nm build/form/impl.o | awk '$2 ~ /[A-TV-Z]/ { print $3 }' | grep '^wrpo__' | grep -v '^wrpo__stbds_')
if [ -z "$private" ]; then ok; else bad "private names that are not static: $private"; fi
words=$(grep -nE '\b(exit|abort|printf|puts)\(' ../wrpo.h | grep -vE '^[0-9]+: *(\*|//|/\*)')
if [ -z "$words" ]; then ok; else bad "library code that exits or prints: $words"; fi
top=$(cd .. && ls -A | grep -vE '^(wrpo\.h|wrpo_cuda\.cu|example\.c|tests|LICENSE|README\.md|wrpo|report\.html|\..*)$')
if [ -z "$top" ]; then ok; else bad "the top level holds $top"; fi
lines=$(wc -l <../wrpo.h)
if [ "$lines" -lt 11200 ]; then ok; else bad "wrpo.h has $lines lines"; fi
echo "form: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]

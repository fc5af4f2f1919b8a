#!/bin/sh
# The order of wrpo.h. The cuts: what is above "Stop here if you only want the algorithm" compiles alone; with >>setup
# below it, which makes what a step works on, it trains a model to the bits of the whole header. And no section uses a
# private name of a section below it.
# usage, in this folder: sh 02_order.sh BUILD/wrpo      BUILD/wrpo.o is the whole header, as `make` compiles it
passed=0 failed=0
CC=${CC:-cc} CFLAGS=${CFLAGS:--O2}
built=$(dirname "${1:-build/wrpo}")
B=$built/order
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAIL order: $*"; }

# ---- the cuts: up to a mark, and an #endif for each conditional that is open there
warn="-std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -Wno-unused-function -Wno-unused-variable"
cut() {   # $1: the mark; $2: the folder
    mark="^/[*] -* Stop here if you only want $1"
    mkdir -p "$B/$2"
    if [ "$(grep -c "$mark" ../wrpo.h)" -eq 1 ]; then ok; else bad "wrpo.h has not one line: Stop here ... $1"; fi
    awk -v mark="$mark" '$0 ~ mark { exit }
        /^ *# *if/ { open++ } /^ *# *endif/ { open-- } { print }
        END { while (open-- > 0) print "#endif" }' ../wrpo.h >"$B/$2/wrpo.h"
}
cut "the algorithm" algorithm
cut "to train on token ids" cut
printf '#define WRPO_IMPLEMENTATION\n#include "wrpo.h"\n' >"$B/algorithm/impl.c"
if $CC $warn -fopenmp -O0 -c "$B/algorithm/impl.c" -o "$B/algorithm/impl.o"; then ok
else bad "the algorithm does not compile alone"; fi
if $CC $warn -fopenmp -I.. $CFLAGS support/cut.c "$built/wrpo.o" -o "$B/whole" -lm && "$B/whole" >"$B/whole.txt"
then ok
else bad "the whole header does not train: $(tail -n 1 "$B/whole.txt")"; fi
begin=$(date +%s%N)
if $CC $warn $CFLAGS -DCUT -I"$B/cut" support/cut.c -o "$B/cut/train" -lm; then ok
else bad "the cut does not compile"; fi
end=$(date +%s%N)
"$B/cut/train" >"$B/cut.txt" || bad "the cut does not train: $(tail -n 1 "$B/cut.txt")"
if [ -s "$B/cut.txt" ] && cmp -s "$B/cut.txt" "$B/whole.txt"; then ok
else bad "the cut and the whole header differ:"; diff "$B/cut.txt" "$B/whole.txt" | head -n 4; fi
echo "the algorithm ends at line $(wc -l <"$B/algorithm/wrpo.h")"
echo "the cut: $(wc -l <"$B/cut/wrpo.h") lines, compiled in $(((end - begin) / 1000000)) ms; $(tail -n 1 "$B/cut.txt")"

# ---- sections. C wants a name declared before its use. Left to see are a static function or a struct that is declared
# in one section and defined in a later one, and a macro that uses a name of a later section. One check per private
# name.
cat >"$B/order.awk" <<'X1'
# The line without comments and strings
function code(s,   out, at) {
    out = ""
    if (comment) {
        at = index(s, "*/")
        if (!at) return ""
        comment = 0
        s = substr(s, at + 2)
    }
    while (match(s, /"([^"\\]|\\.)*"|'([^'\\]|\\.)*'|\/\*|\/\//)) {
        out = out substr(s, 1, RSTART - 1) " "
        at = RSTART + RLENGTH
        if (substr(s, RSTART, 2) == "//") return out
        if (substr(s, RSTART, 2) == "/*") {
            s = substr(s, at)
            at = index(s, "*/")
            if (!at) { comment = 1; return out }
            at += 2
        }
        s = substr(s, at)
    }
    return out s
}
function defined(name) {
    if (name in definition) return
    definition[name] = section
    definition_line[name] = NR
}
# A declaration at the left margin is complete: a function with a body, or a struct with its fields, is defined here.
function declared(s,   head) {
    head = s
    sub(/[{;].*/, "", head)
    if (s !~ /;/ || index(s, "{") && index(s, "{") < index(s, ";")) {
        if (head !~ /^typedef/ && match(head, /wrpo__[a-z0-9_]+\(/)) defined(substr(head, RSTART, RLENGTH - 1))
        if (match(head, /(struct|union|enum) wrpo__[a-z0-9_]+ *$/)) {
            head = substr(head, RSTART, RLENGTH)
            gsub(/^[a-z]+ | *$/, "", head)
            defined(head)
        }
    }
}
BEGIN { section = 0; names[0] = "top" }
/^\/\* -+ >>[a-z]+/ {
    section++
    names[section] = $0
    sub(/.*>>/, "", names[section])
    sub(/[^a-z].*/, "", names[section])
}
{
    line = code($0)
    macro = more || line ~ /^ *# *define/
    if (match(line, /^ *# *define +(wrpo|WRPO)__[A-Za-z0-9_]+/)) {
        name = substr(line, RSTART, RLENGTH)
        sub(/.* /, "", name)
        if (!(name in plain)) { plain[name] = section; plain_line[name] = NR }
    }
    if (macro && match(line, /^ *wrpo__[a-z0-9_]+ wrpo__[a-z0-9_]+;/)) {   # a variable that the macro declares
        name = substr(line, RSTART, RLENGTH - 1)
        sub(/.* /, "", name)
        if (!(name in plain)) { plain[name] = section; plain_line[name] = NR }
    }
    more = macro && $0 ~ /\\$/
    # every private name on the line
    rest = line
    while (match(rest, /(wrpo|WRPO)__[A-Za-z0-9_]+/)) {
        name = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        if (!(name in first)) { first[name] = section; first_line[name] = NR }
        if (!macro && !(name in plain)) { plain[name] = section; plain_line[name] = NR }
    }
    if (macro || line ~ /^ *#/) next
    if (line ~ /^[A-Za-z]/ && !head) head = 1
    if (head) {
        text = text " " line
        if (line ~ /[{;]/) { sub(/^ */, "", text); declared(text); head = 0; text = "" }
    }
}
END {
    for (name in first) {
        where = first[name]
        if (name in plain) { where = plain[name]; line = plain_line[name] }
        if (name in definition) { where = definition[name]; line = definition_line[name] }
        if (where <= first[name]) { passed++; continue }
        failed++
        printf "FAIL order: %s is used in >>%s, line %d, but belongs to >>%s, line %d\n",
            name, names[first[name]], first_line[name], names[where], line
    }
    print passed + 0, failed + 0
}
X1
LC_ALL=C awk -f "$B/order.awk" ../wrpo.h >"$B/order.txt"
grep '^FAIL' "$B/order.txt" | sort
set -- $(tail -n 1 "$B/order.txt")
passed=$((passed + $1)) failed=$((failed + $2))
if [ "$1" -lt 500 ]; then bad "only $1 private names were found"; fi
want="api base loss ops layout model step setup files json tensors checkpoint token chat data generate reward run"
want="$want recipe mpi cpu end"
found=$(sed -nE 's/^\/\* -+ >>([a-z]+).*/\1/p' ../wrpo.h | tr '\n' ' ')
if [ "$found" = "$want " ]; then ok; else bad "want the sections $want, found $found"; fi
echo "order: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]

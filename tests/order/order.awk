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
    if (match(line, /^ *# *define +WRPO__[A-Z0-9_]+/)) {
        name = substr(line, RSTART, RLENGTH)
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

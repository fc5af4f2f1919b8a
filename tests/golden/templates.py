"""Expected output of chat-template snippets, by jinja2 in the environment that transformers renders with.

    python templates.py                 recomputes "text" / "error" of every snippet in templates.json, in place
    python templates.py FILE.jinja...   counts what templates use: filters, tests, methods, statements, operators

A snippet is {"template": ..., and "text" or "error": true}; all see the same "context" of the file. "refused" beside it is
kept: what the library names in place of that text. So are the parts of Jinja that no template of two surveys used (86 and
195 published ones: raw blocks, ** and % on strings, the filters abs, batch, center, escape, max, round, sum, unique, the
arguments of dictsort, dots in attribute=, the tests divisibleby, ge, gt, le and lt, methods such as partition or zfill,
...): an interpreter of half the size, which says so where it meets one of them."""
import collections
import copy
import json
import os
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

    def text(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: None
    return env


def survey(paths):
    env, count, n = environment(), collections.Counter(), jinja2.nodes
    for path in paths:
        with open(path, encoding="utf-8") as f:
            tree, used = env.parse(f.read()), set()
        for x in tree.find_all(n.Node):
            names = [k.key for k in getattr(x, "kwargs", None) or [] if isinstance(k, n.Keyword)]
            kind = type(x).__name__ + " " + " ".join([str(getattr(x, "name", ""))] + names)
            if isinstance(x, n.Call) and isinstance(x.node, n.Getattr):
                kind = "Method " + x.node.attr
            used.add(kind if not isinstance(x, n.Name) else "Name")
        count.update(used)
    for kind, files in sorted(count.items()):
        print(files, kind)


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates.json")
    with open(path, encoding="utf-8") as f:
        golden = json.load(f)
    env = environment()
    for snippet in golden["snippets"]:
        snippet.pop("text", None), snippet.pop("error", None)
        try:
            snippet["text"] = env.from_string(snippet["template"]).render(**copy.deepcopy(golden["context"]), bos_token="<s>")
        except Exception:
            snippet["error"] = True
    with open(path, "w", encoding="utf-8") as f:
        head = json.dumps(golden["context"], ensure_ascii=False)
        rows = ",\n".join(json.dumps(s, ensure_ascii=False) for s in golden["snippets"])
        f.write('{"context": ' + head + ',\n"snippets": [\n' + rows + "\n]}\n")


if __name__ == "__main__":
    survey(sys.argv[1:]) if len(sys.argv) > 1 else main()

"""Expected output of chat-template snippets, by jinja2 in the environment that transformers renders with.

    python templates.py            recomputes "text" / "error" of every snippet in templates.json, in place

A snippet is {"template": ..., and "text" or "error": true}; all see the same "context" of the file."""
import copy
import json
import os

import jinja2
import jinja2.ext
import jinja2.sandbox


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


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
    main()

"""The answers that `wrpo answer` writes, through the judges' own programs, with a stand-in for the judge (a key).

    python judges.py alpacaeval ANSWERS.json REFERENCE.json
    python judges.py mtbench    DATA ANSWERS.jsonl [ANSWERS.jsonl]
    python judges.py arenahard  ARENA_HARD BENCH ANSWERS.jsonl        BENCH: arena-hard-v0.1 or arena-hard-v2.0

What to install and to fetch (nothing of it is kept here):

    pip install alpaca_eval==0.6.6 fschat==0.2.36 anthropic torch transformers boto3 shortuuid
    alpacaeval  questions: the data set's alpaca_eval.json, or example/outputs.json of github.com/tatsu-lab/alpaca_eval;
                REFERENCE: results/gpt4_1106_preview/model_outputs.json there
    mtbench     DATA: fastchat/llm_judge/data of github.com/lm-sys/FastChat; questions: mt_bench/question.jsonl in it
    arenahard   ARENA_HARD: a work tree of github.com/lmarena/arena-hard-auto (196f6b8);
                questions: data/BENCH/question.jsonl in it

What runs is theirs: AlpacaEval's evaluate with the annotator of AlpacaEval 2 (its prompt, its order of the two answers,
its parser), FastChat's gen_judgment and show_result, Arena-Hard's add_markdown_info, gen_judgment and show_result, the
last with style control as well. Ours is only the function that would ask the judge: the stand-in prefers the longer of
two answers, and rates an answer by its length. So the numbers say that every file was read and every pair judged, and
nothing about the model. Absent: the judges themselves (keys), AlpacaEval's length-controlled win rate (it downloads
df_gamed.csv from the Hub), and, without a network, tiktoken's vocabulary of gpt-4o (words are counted in its place, and
a line says so). The counts of Markdown in Arena-Hard's files are compared with those of add_markdown_info.
"""
import builtins
import collections
import glob
import json
import os
import re
import runpy
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OPENAI_API_KEY"] = "none"
asked = collections.Counter()      # of the stand-in: what it said, how often


def say(*text):
    print("judges.py:", *text, flush=True)


def read_lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


def write_lines(path, records):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in records)


def run_as_program(start, name, *options):
    """start: runpy.run_path or run_module. Their programs have no functions to call, so the files are run."""
    sys.argv = [name, *options]
    say("runs", name, *options)
    start(name, run_name="__main__")


def answered(questions, files, key):
    """The questions that all of these files answer: `answer --limit N` leaves the rest out."""
    have = [{r[key] for r in read_lines(f)} for f in files]
    left = [q for q in questions if all(q[key] in ids for ids in have)]
    say("%d of %d questions are answered" % (len(left), len(questions)))
    return left


def copy_answers(folder, path, key):
    """Both readers take the name of the file for the model's."""
    name = read_lines(path)[0][key].split("/")[-1]
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(path, os.path.join(folder, name + ".jsonl"))
    return name


def alpacaeval(answers, reference):
    import alpaca_eval
    import alpaca_eval.decoders.openai

    def stand_in(prompts, model_name, **settings):
        completions = []
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            first, second = re.findall(r'"output": """(.*?)"""\n    }', text, re.S)
            best = "m" if len(first) >= len(second) else "M"
            asked[best] += 1
            top = [{"token": t, "logprob": 0.0 if t == best else -20.0} for t in ("m", "M")]
            completions.append({"text": best, "logprobs": {"content": [{"top_logprobs": top}]}})
        none = [0.0] * len(prompts)
        return {"completions": [c["text"] for c in completions], "completions_all": completions,
                "price_per_example": none, "time_per_example": none}

    alpaca_eval.decoders.openai.openai_completions = stand_in
    board, annotations = alpaca_eval.evaluate(
        answers, reference, annotators_config="weighted_alpaca_eval_gpt4_turbo", fn_metric="get_winrate",
        sort_by="win_rate", precomputed_leaderboard=None, output_path=None, is_return_instead_of_print=True,
        caching_path=None)
    print(board.to_string())
    with open(answers) as f:
        want = len(json.load(f))
    say("alpacaeval: %d answers, %d pairs judged, the stand-in was asked %d times: %s"
        % (want, len(annotations), sum(asked.values()), dict(asked)))
    return len(annotations) == want and sum(asked.values()) > 0


def mtbench(data, *answers):
    import fastchat.llm_judge.common as common

    def stand_in(model, conv, temperature, max_tokens, api_dict=None):
        text = conv.messages[-2][1]
        pair = re.findall(r"\[The Start of Assistant [AB]'s Answer\]\n(.*?)\n\[The End of", text, re.S)
        pair += re.findall(r"<\|The Start of Assistant [AB]'s Conversation with User\|>\n(.*?)"
                           r"<\|The End of", text, re.S)
        if len(pair) == 2:
            said = "[[A]]" if len(pair[0]) > len(pair[1]) else "[[B]]" if len(pair[0]) < len(pair[1]) else "[[C]]"
        else:
            said = "Rating: [[%d]]" % min(10, 1 + len(text) // 400)
        asked[said if len(pair) == 2 else "rating"] += 1
        return said

    common.chat_completion_openai = stand_in
    builtins.input = lambda *text: ""
    questions = answered(read_lines(data + "/mt_bench/question.jsonl"), answers, "question_id")
    write_lines("data/mt_bench/question.jsonl", questions)
    shutil.copytree(data + "/mt_bench/reference_answer", "data/mt_bench/reference_answer")
    shutil.copyfile(data + "/judge_prompts.jsonl", "data/judge_prompts.jsonl")
    names = [copy_answers("data/mt_bench/model_answer", a, "model_id") for a in answers]
    turns = sum(len(q["turns"]) for q in questions)
    whole = True
    for mode in ("single", "pairwise-all")[:len(names)]:
        asked.clear()
        for program in ("fastchat.llm_judge.gen_judgment", "fastchat.llm_judge.show_result"):
            run_as_program(runpy.run_module, program, "--mode", mode, "--model-list", *names)
        judged = read_lines("data/mt_bench/model_judgment/gpt-4_%s.jsonl" % mode.split("-")[0].replace("wise", ""))
        bad = [r for r in judged if "error" in (r.get("g1_winner"), r.get("g2_winner")) or r.get("score") == -1]
        say("mtbench, %s: %d matches of %d turns judged, %d without a verdict; the stand-in was asked %d times: %s"
            % (mode, len(judged), turns, len(bad), sum(asked.values()), dict(asked)))
        whole &= len(judged) == turns * (len(names) if mode == "single" else 1) and not bad
    return whole


def arenahard(repository, bench, answers):
    sys.path.insert(0, repository)
    import tiktoken
    import yaml
    from utils import completion, judge_utils

    try:
        tiktoken.encoding_for_model("gpt-4o")
    except Exception as error:
        say("tiktoken cannot fetch its vocabulary (%s): words in its place" % type(error).__name__)

        class Words:
            def encode(self, text, **settings):
                return text.split()
        tiktoken.encoding_for_model = lambda name: Words()

    def stand_in(messages, **settings):
        text = messages[-1]["content"]
        pair = re.findall(r"<\|The Start of Assistant [AB]'s Answer\|>\n(.*?)\n<\|The End", text, re.S)
        longer = len(pair[0]) - len(pair[1])
        said = "[[A=B]]" if not longer else "[[A>>B]]" if longer > 500 else "[[A>B]]" if longer > 0 else \
            "[[B>>A]]" if longer < -500 else "[[B>A]]"
        asked[said] += 1
        return {"answer": "My final verdict is: " + said}

    completion.registered_api_completion["openai"] = stand_in
    questions = answered(read_lines("%s/data/%s/question.jsonl" % (repository, bench)), [answers], "uid")
    baselines = {name: {r["uid"]: r for r in read_lines(path)} for path in
                 glob.glob("%s/data/%s/model_answer/*.jsonl" % (repository, bench))
                 for name in [os.path.basename(path)[:-6]]}
    categories = {}
    for q in questions:
        base = judge_utils.JUDGE_SETTINGS[q["category"]]["baseline"]
        categories.setdefault(q["category"], base in baselines)
    for category, there in categories.items():
        if not there:
            say("%s: its baseline's answers are not in the work tree; left out" % category)
    questions = [q for q in questions if categories[q["category"]]]
    write_lines("data/%s/question.jsonl" % bench, questions)
    kept = {judge_utils.JUDGE_SETTINGS[q["category"]]["baseline"] for q in questions}
    for base in kept:
        have = baselines[base]
        write_lines("raw/%s.jsonl" % base, [have[q["uid"]] for q in questions if q["uid"] in have])
    name = copy_answers("raw", answers, "model")
    run_as_program(runpy.run_path, repository + "/utils/add_markdown_info.py", "--dir", "raw", "--output-dir",
                   "data/%s/model_answer" % bench)
    ours = {r["uid"]: r["metadata"] for r in read_lines(answers)}
    theirs = {r["uid"]: r["metadata"] for r in read_lines("data/%s/model_answer/%s.jsonl" % (bench, name))}
    other = [u for u in ours if ours[u] != {k: v for k, v in theirs[u].items() if k != "token_len"}]
    marks = sum(n for m in ours.values() for kind in m.values() for n in kind.values())
    say("arenahard: Markdown counted in %d answers (%d marks), %d of them not as add_markdown_info counts"
        % (len(ours), marks, len(other)))
    with open("%s/config/%s.yaml" % (repository, bench)) as f:
        settings = yaml.safe_load(f)
    settings["model_list"] = [name]
    with open("settings.yaml", "w") as f:
        yaml.safe_dump(settings, f)
    run_as_program(runpy.run_path, repository + "/gen_judgment.py", "--setting-file", "settings.yaml",
                   "--endpoint-file", repository + "/config/api_config.yaml")
    judged = read_lines("data/%s/model_judgment/%s/%s.jsonl" % (bench, settings["judge_model"], name))
    for control in ([], ["--control-features", "length", "markdown"]):
        run_as_program(runpy.run_path, repository + "/show_result.py", "--benchmark", bench, "--judge-names",
                       settings["judge_model"], "--category", *sorted(c for c in categories if categories[c]), *control)
    games = [g for r in judged for g in r["games"]]
    bad = [g for g in games if g is None or g["score"] is None]
    say("arenahard: %d answers, %d questions judged in %d games, %d without a verdict; the stand-in was asked %d "
        "times: %s" % (len(ours), len(judged), len(games), len(bad), sum(asked.values()), dict(asked)))
    return len(judged) == len(questions) and len(games) == 2 * len(questions) and not bad and not other


def main():
    benches = {"alpacaeval": (alpacaeval, 2, 2), "mtbench": (mtbench, 2, 3), "arenahard": (arenahard, 3, 3)}
    if len(sys.argv) < 2 or sys.argv[1] not in benches:
        sys.exit(__doc__)
    judge, least, most = benches[sys.argv[1]]
    given = sys.argv[2:]
    if not least <= len(given) <= most:
        sys.exit(__doc__)
    given = [os.path.abspath(p) if os.path.exists(p) else p for p in given]
    with tempfile.TemporaryDirectory() as folder:
        here = os.getcwd()
        os.chdir(folder)
        whole = judge(*given)
        os.chdir(here)
    say("whole" if whole else "NOT WHOLE")
    sys.exit(not whole)


main()

#!/bin/sh
# The habits of a run: settings in a file, a dry run, a held-out part, the best model, checkpoints that stay, events for
# TensorBoard, tables and pictures; help and completion.
# usage, in this folder: sh 91_tools.sh PATH_TO_WRPO      PYTHON is one that has tensorboard, if there is any
case $1 in /*) W=$1 ;; *) W=$PWD/$1 ;; esac
G=$PWD/golden
PYTHON=${PYTHON:-python3}
[ -x "$W" ] || { echo "usage: sh 91_tools.sh PATH_TO_WRPO"; exit 1; }
FIXTURES=$PWD/90_cli.sh
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
cd "$T" || exit 1
passed=0 failed=0 skipped=0
LC_ALL=C; export LC_ALL
sed -n '/^run() {/,/^# ---- fixtures/p; /^mkdir tok/,/^# ---- help/p' "$FIXTURES" >fixtures.sh && . ./fixtures.sh
"$W" init --config config.json --tokenizer tok --out tiny --seed 3 >/dev/null || exit 1
i=0
while [ $i -lt 40 ]; do
    i=$((i + 1)); record "p$i" "question number $i" "an answer $i" "good $i" "bad $i"
done >many.jsonl
says() { grep -q -e "$1" "${2:-out.txt}"; }
timeless() { sed 's/, "[a-z_]*tokens_per_second": [^,}]*, "[a-z_]*seconds": [^,}]*//' "$1/metrics.jsonl" >"$2"; }
same_run() { # what, two directories
    timeless "$2" a.txt; timeless "$3" b.txt
    check "$1: the same weights" cmp -s "$2/model.safetensors" "$3/model.safetensors"
    check "$1: the same metrics" cmp -s a.txt b.txt
}
TINY="train --model tiny --data many.jsonl --batch-size 4 --learning-rate 1e-3"

# ---- help and completion
"$W" --help >a.txt; "$W" train --help >b.txt
good "help" help; check "help is --help" cmp -s out.txt a.txt
good "help train" help train; check "help train is train --help" cmp -s out.txt b.txt
bad "help of what is no command" 2 'unknown command "trian"' help trian
bad "help of two" 2 'unexpected argument "eval"' help train eval
good "completion" completion
cp out.txt complete.bash
if command -v bash >/dev/null; then
    complete() { # words of a command line; what is offered for the last of them, on one line
        bash -c '. ./complete.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _wrpo; echo ${COMPREPLY[*]}' wrpo "$@"
    }
    check "completion: a command" test "$(complete wrpo tr)" = train
    check "completion: all commands" test "$(complete wrpo '' | wc -w)" -eq "$("$W" help | grep -c '^  [a-z]')"
    check "completion: help's" test "$(complete wrpo help log)" = logprob
    check "completion: an option of the command" test "$(complete wrpo train --save-b)" = --save-best
    check "completion: none of another" test -z "$(complete wrpo eval --save-b)"
    check "completion: its words" test "$(complete wrpo train --method s)" = "simpo sft"
    mkdir -p folder; : >folder.txt
    check "completion: directories" test "$(complete wrpo train --model fold)" = folder
    check "completion: files are left to the shell" test -z "$(complete wrpo train --data fold)"
    check "completion: as a shell reads it" bash -c 'eval "$("$0" completion)"; complete -p wrpo' "$W" >/dev/null
else
    skipped=$((skipped + 9)); echo "skip: completion: bash is absent"
fi

# ---- run.json, and --config, which reads it
good "a run" $TINY --out first --epochs 1.5 --alpha-schedule power:2.5 --beta 0.1 --no-shuffle --log-steps 3
for line in '"command": "train"' '"alpha_schedule": "power:2.5"' '"beta": 0.1' '"batch_size": 4' '"epochs": 1.5' \
    '"no_shuffle": true' '"seed": 42' '"label_smoothing": 0' '"warmup_ratio": 0.1' '"log_steps": 3' '"out": "first"'; do
    check "run.json: $line" says "^ $line[,}]*\$" first/run.json
done
check "run.json: no option that says nothing here" test -z \
    "$(grep -E 'gamma_ratio|ipo_sum|max_steps|resume|config|keep' first/run.json)"
good "--config" train --config first/run.json --out second
same_run "--config" first second
check "--config: its own run.json, but for the directory" test \
    "$(diff first/run.json second/run.json | grep -c '^[<>]')" -eq 2
good "the command line comes after the file, wherever it stands" train --seed 7 --max-steps 2 --config=first/run.json \
    --out third --alpha-schedule linear
check "what is given wins" grep -q '"seed": 7' third/run.json
check "--max-steps, then no epochs" says '^step 2/2 '
check "linear is not of power 2.5" says '"alpha_schedule": "linear"' third/run.json
check "the rest is the file's" says '"beta": 0.1' third/run.json
good "--epochs over a file's max_steps" train --config third/run.json --out fourth --epochs 0.5
check "--epochs over a file's max_steps: 5 steps" says '^step 5/5 '
good "a run that begins where another ended" train --model first --data many.jsonl --out fourth --max-steps 1 --beta 0.2
check "run.json is its own" says '"beta": 0.2' fourth/run.json
check "run.json stays where the run is" test -z "$(find . -path '*/checkpoint-*' -name run.json)"
settings() { printf '%s\n' "$1" >settings.json; }
SET="train --config settings.json --model tiny --data many.jsonl --out new"
settings '{"method": "simpo", "learning-rate": 1e-5, "ref": null, "no_shuffle": false, "max_steps": 1,
    "warmup_ratio": 0}'
good "settings by hand: - for _, null, false, 0" $SET
check "settings by hand: the rate of the first step" says 'rate 1.00e-05'
check "settings by hand: no warning" test ! -s err.txt
rm -rf new
while IFS='|' read -r text want; do
    settings "$text"
    bad "settings $text" 1 "^wrpo: settings.json.*$want" $SET
done <<'X'
{"no_such": 1}|1:13: want an option of train, found "no_such"
{"config": "x"}|want an option of train, found "config"
{"help": true}|want an option of train, found "help"
{"tau": 1}|want an option of train, found "tau"
{"command": "eval"}|command: want "train"
{"beta": "0.1"}|1:10: beta: want a number
{"beta": -1}|beta: want a number in (0, inf)
{"epochs": 0}|epochs: want a number in (0, inf)
{"batch_size": 1.5}|batch_size: want a whole number, found "1.5"
{"batch_size": [4]}|batch_size: want a number
{"no_shuffle": "yes"}|no_shuffle: want true or false
{"no_shuffle": 1}|no_shuffle: want true or false
{"method": "ppo"}|method: want one of wrpo, dpo, .*found "ppo"
{"method": 1}|method: want a string
{"alpha_schedule": "power:x"}|want a number after "power:"
{"eval_data": ""}|eval_data: want a FILE, found an empty text
[1]|want an object
{"beta": 0.1|want
X
settings ''; bad "no settings" 1 '^wrpo: settings.json:' $SET
bad "settings that are not there" 1 'nowhere.json: cannot be opened' train --config nowhere.json
bad "settings in a directory" 1 'tiny: cannot be opened' train --config tiny
settings '{"model": "tiny"}'
bad "settings without the data" 2 '\-\-data is missing' train --config settings.json --out new
good "--config with --resume" $TINY --out first --epochs 1 --save-steps 4
good "--config with --resume" train --config first/run.json --resume first/checkpoint-8 --out second
same_run "--config with --resume" first second

# ---- --eval-split
good "--eval-split" $TINY --out new --eval-split 0.25 --eval-steps 5
N=$(sed -n 's/^data .*: \([0-9]*\) records.*/\1/p' out.txt)
E=$(sed -n 's/^eval data .*: \([0-9]*\) records.*/\1/p' out.txt)
check "--eval-split: the two parts are the file" test "$((N + E))" -eq 40 -a "$E" -ge 3 -a "$E" -le 20
check "--eval-split: evaluated" grep -q '"step": 5, "eval_loss"' new/metrics.jsonl
check "--eval-split: on these records" grep -q "\"eval_records\": $E," new/metrics.jsonl
rm -rf new
bad "--eval-split and --eval-data" 1 'either --eval-data or --eval-split' $TINY --out new --eval-split 0.1 \
    --eval-data many.jsonl
bad "--eval-split 0" 1 '\-\-eval-split: want a number in (0, 1)' $TINY --out new --eval-split 0
bad "--eval-split 1" 1 '\-\-eval-split: want a number in (0, 1)' $TINY --out new --eval-split 1
bad "--eval-split of nothing" 1 'eval_split: want a share that leaves records in both parts of many.jsonl' $TINY \
    --out new --eval-split 1e-9
bad "--eval-steps without either" 1 '\-\-eval-data or --eval-split is missing' $TINY --out new --eval-steps 5

# ---- --save-best and --keep
good "--save-best, --keep" $TINY --out new --eval-split 0.25 --eval-steps 2 --save-best rewards/margins --save-steps 2 \
    --keep 3 --max-steps 11
check "--keep: the last three stay" test "$(echo new/checkpoint-*)" = \
    "new/checkpoint-10 new/checkpoint-6 new/checkpoint-8"
check "--save-best: said" says '^best .* highest eval_rewards/margins, in new/best$'
best=$(sed -n 's/.*"step": \([0-9]*\), .*"eval_rewards\/margins": \([^,]*\),.*/\2 \1/p' new/metrics.jsonl | sort -g |
    tail -n 1 | cut -d ' ' -f 2)
said=$(sed -n 's/.*new\/best: step \([0-9]*\),.*/\1/p' err.txt | tail -n 1)
check "--save-best: of the best evaluation" test "$said" = "$best"
good "--save-best: it is a model" eval --model new/best --data many.jsonl --ref tiny
run "$W" train --model new/best --data many.jsonl --out new >out.txt 2>err.txt; code=$?
check "--save-best: it is not written while it is read" says 'found new/best in it, which --model reads' err.txt
check "--save-best: exit code 1" test $code -eq 1
rm -rf new
bad "--save-best alone" 1 '\-\-save-best: --eval-data or --eval-split is missing' $TINY --out new --save-best loss
bad "--save-best without steps" 1 '\-\-save-best: --eval-steps is missing' $TINY --out new --save-best loss \
    --eval-split 0.25
bad "--save-best by what there is not" 1 'save_best: want loss, .* found bleu' $TINY --out new --save-best bleu \
    --eval-split 0.25 --eval-steps 2
bad "--save-best by what SFT has not" 1 'save_best: want loss, found rewards/margins' $TINY --method sft --out new \
    --save-best rewards/margins --eval-split 0.25 --eval-steps 2
bad "--keep alone" 1 '\-\-keep: --save-steps is missing' $TINY --out new --keep 2
bad "--keep 0" 1 '\-\-keep: want a whole number in' $TINY --out new --keep 0 --save-steps 2

# ---- time left
good "time left" $TINY --out new --max-steps 2
check "time left" test "$(grep -c '^step .*  [0-9]*:[0-9][0-9] left$' out.txt)" -eq 2
rm -rf new

# ---- --dry-run: the run's own sentences and numbers, and no file
find . -type f ! -name '???.txt' -exec cksum {} + | sort >before.txt
good "--dry-run" $TINY --out new --eval-split 0.25 --eval-steps 3 --tensorboard --save-steps 2 --dry-run
cp out.txt dry.out
rm -f dry.out.tmp; find . -type f ! -name '???.txt' ! -name dry.out -exec cksum {} + | sort >after.txt
grep -v ' ./before.txt$' before.txt >b.txt; grep -v ' ./before.txt$' after.txt | grep -v after.txt >a.txt
check "--dry-run: nothing is written" cmp -s a.txt b.txt
check "--dry-run: nothing is made" test ! -e new
check "--dry-run: says so" says '^dry run  *nothing is written$' dry.out
check "--dry-run: memory" says '^memory  *[0-9.]* MiB: weights' dry.out
check "--dry-run: time" says \
    '^time  *about .*: [0-9]* steps of .* s, the reference .* s, [0-9]* evaluations of .* s' dry.out
good "what --dry-run foresaw" $TINY --out new --eval-split 0.25 --eval-steps 3
steps=$(sed -n 's/^step .*\/\([0-9]*\)  loss.*/\1/p' out.txt | tail -n 1)
check "--dry-run: the steps" test "$(sed -n 's/^time .*: \([0-9]*\) steps of.*/\1/p' dry.out)" = "$steps"
mib() { sed -n "s/^$1  *\([0-9.]*\) MiB.*/\1/p; s/.*$1 \([0-9.]*\) MiB\$/\1/p"; }
check "--dry-run: the peak, within a fifth" awk "BEGIN { a = $(mib peak <dry.out); b = $(mib "memory peak" <out.txt)
    exit !(a > 0.8 * b && a < 1.25 * b) }"
check "--dry-run: the evaluations" test "$(sed -n 's/.*, \([0-9]*\) evaluations of.*/\1/p' dry.out)" -eq \
    "$(grep -c '^eval [0-9]' out.txt)"
rm -rf new
for o in "--method sft" "--method simpo" "--method dpo --max-steps 3" "--epochs 0.3 --accumulation 2" "--lora-r 2" \
    "--batch-size 999" "--dtype bf16 --recompute -1" "--resume first/checkpoint-8"; do
    good "--dry-run $o" $TINY $o --out new --dry-run
    check "--dry-run $o: says how long" says '^time  *about [0-9]*:[0-9][0-9]: '
    check "--dry-run $o: nothing" test ! -e new
done
good "--dry-run into an empty place below others" $TINY --out new/a/b/ --dry-run
check "--dry-run: nothing is made there" test ! -e new
bad "--dry-run of bad records" 1 'config.json:1:' train --model tiny --data config.json --out new --dry-run
echo '{"prompt":"a","chosen":"b","rejected":"c"}' >pair.jsonl
bad "--dry-run of pairs under wrpo" 1 'record "line 1" (line 1): .*; pairs are for dpo and the like' \
    train --model tiny --data pair.jsonl --out new --dry-run
bad "--dry-run of an impossible option" 1 'accumulation' $TINY --accumulation 3 --out new --dry-run
bad "--dry-run into a file" 1 'many.jsonl/x: cannot be made: Not a directory' $TINY --out many.jsonl/x --dry-run
bad "--dry-run from no state" 1 'tiny/trainer_state.wrpo: cannot be opened' $TINY --out new --resume tiny --dry-run
if [ "$(id -u)" -ne 0 ]; then
    mkdir -p closed; chmod 500 closed
    bad "--dry-run into a closed directory" 1 'closed/: cannot be written to' $TINY --out closed/new --dry-run
else
    skipped=$((skipped + 1)); echo "skip: root may write everywhere"
fi

# ---- --tensorboard
rm -rf first second
good "--tensorboard" $TINY --out first --eval-split 0.25 --eval-steps 2 --save-steps 2 --keep 9 --tensorboard
E=$(echo first/events.out.tfevents.*)
check "--tensorboard: one file" test -s "$E"
check "--tensorboard: its tags" grep -q 'train/loss' "$E"
good "--tensorboard: a run that goes on" train --config first/run.json --out second --resume first/checkpoint-4
good "--tensorboard: and again, in the same place" train --config first/run.json --resume first/checkpoint-4
check "--tensorboard: one file still" test "$(ls first/events.out.tfevents.* | wc -l)" -eq 1
: >first/events.out.tfevents.1.other
good "--tensorboard: over an older run" train --config first/run.json
check "--tensorboard: what others wrote stays" test "$(ls first/events.out.tfevents.* | wc -l)" -eq 2
rm first/events.out.tfevents.1.other
cp first/run.json run.json; E=$(echo first/events.*); cp "$E" old.events
"$W" train --config first/run.json --beta 0.7 --epochs 999 >out.txt 2>err.txt & pid=$!
i=0; while [ $i -lt 200 ] && ! grep -q '^step 5' out.txt; do sleep 0.1; i=$((i + 1)); done
kill -KILL $pid; wait $pid 2>/dev/null
check "a killed run over a finished one: its settings stay" cmp -s run.json first/run.json
check "and its events" cmp -s old.events "$E"
good "--config after it" train --config first/run.json
check "then there is one file again" test "$(ls first/events.out.tfevents.* | wc -l)" -eq 1
good "without it" $TINY --out third
check "without it: no events" test ! -e "$(echo third/events.*)"
"$PYTHON" "$G/tb_events.py" read first >out.txt 2>err.txt; code=$?
if [ $code -eq 77 ] || [ $code -eq 127 ]; then
    skipped=$((skipped + 3)); echo "skip: $PYTHON has no tensorboard"
else
    for run in first second; do
        "$PYTHON" "$G/tb_events.py" read $run >out.txt 2>err.txt; code=$?
        check "--tensorboard: $run as TensorBoard reads it" test $code -eq 0
        check "--tensorboard: $run: all of it" says "^[1-9][0-9]* scalars of 4[0-9] tags"
    done
    "$W" $TINY --out killed --tensorboard --epochs 1000 >out.txt 2>err.txt & pid=$!
    i=0; while [ $i -lt 100 ] && ! grep -q '^step 5' out.txt; do sleep 0.1; i=$((i + 1)); done
    kill -KILL $pid; wait $pid 2>/dev/null
    tail -c 300 killed/metrics.jsonl | grep -q '}$' || sed -i '$d' killed/metrics.jsonl
    for i in 1 2; do                 # the event of the last line may be missing, no other
        "$PYTHON" "$G/tb_events.py" read killed >out.txt 2>err.txt; code=$?
        [ $code -eq 0 ] || sed -i '$d' killed/metrics.jsonl
    done
    check "--tensorboard: a run that was killed has its steps" test $code -eq 0
fi

# ---- report --csv: every number of metrics.jsonl, in its row and column
mkdir -p "a, \"b\""; cp first/metrics.jsonl "a, \"b\""
good "report --csv" report --csv first "a, \"b\"" third --out table.csv
check "--csv: a row for each step, and the head" test "$(wc -l <table.csv)" -eq \
    $((1 + $(cat first/metrics.jsonl first/metrics.jsonl third/metrics.jsonl | grep -vc eval_loss)))
check "--csv: the head" says '^run,step,loss,grad_norm,.*,eval_loss,eval_epoch,' table.csv
check "--csv: a name in quotes" test "$(grep -c '^"a, ""b""",' table.csv)" -eq "$(grep -c '^first,' table.csv)"
# run by run, the table's numbers one after the other are those of the lines; an evaluation's are in its step's row
numbers() { awk '{ for (i = 1; i <= NF; i++) printf "%.14g\n", $i }'; }
for run in first third; do
    grep "^$run," table.csv | cut -d , -f 2- | tr -s , ' ' | numbers >a.txt
    awk '/"eval_loss"/ { sub(/^\{"step": [0-9]*, /, ", "); n = n $0; next }
         { if (NR > 1) print n; n = $0 } END { print n }' $run/metrics.jsonl |
        sed 's/"[^"]*": //g' | tr -d '{}' | tr -s ', ' ' ' | numbers >b.txt
    check "--csv: $run: the numbers" cmp -s a.txt b.txt
    check "--csv: $run: there are numbers" test "$(wc -l <a.txt)" -gt 100
done
good "report --csv into its own name" report --csv first
check "report --csv into its own name" test -s metrics.csv
bad "report --csv of no run" 1 'nowhere/metrics.jsonl: cannot be opened' report --csv nowhere --out new

echo "tools: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]

#!/bin/sh
# The program from outside: exit codes, help, results, one clear sentence for every bad input, nothing half-written.
# usage, in this folder: sh 90_cli.sh PATH_TO_WRPO        TMPDIR is where the scratch files go
case $1 in /*) W=$1 ;; *) W=$PWD/$1 ;; esac
G=$PWD/golden
[ -x "$W" ] || { echo "usage: sh 90_cli.sh PATH_TO_WRPO"; exit 1; }
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
cd "$T" || exit 1
passed=0 failed=0 skipped=0
LC_ALL=C; export LC_ALL
run() { if command -v timeout >/dev/null; then timeout 120 "$@"; else "$@"; fi; }
pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAIL $1"
    [ -s out.txt ] && sed 's/^/  out: /' out.txt | tail -3
    [ -s err.txt ] && sed 's/^/  err: /' err.txt | tail -5
    return 0
}
check() { what=$1; shift; if "$@"; then pass; else fail "$what"; fi; }
good() { # what, command line: exit 0
    what=$1; shift
    run "$W" "$@" >out.txt 2>err.txt </dev/null; code=$?
    if [ $code -eq 0 ]; then pass; else fail "$what: exit code $code, want 0"; fi
}
# what, exit code, pattern of the sentence, command line. The sentence is the last of stderr before the hint; the path
# "new" must not exist afterwards and no .part file may lie anywhere.
bad() {
    what=$1 want=$2 pattern=$3; shift 3
    rm -rf new
    run "$W" "$@" >out.txt 2>err.txt </dev/null; code=$?
    if [ $code -ne "$want" ]; then fail "$what: exit code $code, want $want"
    elif ! grep -q '^wrpo: ' err.txt; then fail "$what: no sentence on stderr"
    elif ! grep -q -e "$pattern" err.txt; then fail "$what: the sentence does not say \"$pattern\""
    elif [ "$want" -eq 2 ] && ! grep -q '^Try: wrpo.*--help$' err.txt; then fail "$what: no hint"
    elif [ "$(grep -vc -e warning -e '^Try: ' err.txt)" -ne 1 ]; then fail "$what: more than one sentence"
    elif [ -e new ]; then fail "$what: something is left of the output: $(find new)"
    elif [ -n "$(find . -name '*.part')" ]; then fail "$what: a half-written file is left: $(find . -name '*.part')"
    else pass; fi
}

# ---- fixtures: a tiny checkpoint with a byte tokenizer, records
mkdir tok
awk 'BEGIN {
    printf "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    split("<|endoftext|> <|im_start|> <|im_end|>", a, " ")
    for (i = 1; i <= 3; i++) {
        printf "%s{\"id\":%d,\"content\":\"%s\",", (i > 1 ? "," : ""), 255 + i, a[i]
        printf "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}"
    }
    printf "],\"normalizer\":null,\"post_processor\":null,\"pre_tokenizer\":"
    printf "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
    printf "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    printf "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
    printf "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,"
    printf "\"merges\":[],\"vocab\":{"
    for (b = 0; b < 256; b++) {
        shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174
        printf "%s\"\\u%04x\":%d", (b ? "," : ""), (shown ? b : 256 + n++), b
    }
    print "}}}"
}' >tok/tokenizer.json
{
    printf '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", '
    printf '%s' '"chat_template": "{% for m in messages %}'
    printf '%s' "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    printf '%s' "<|im_start|>{{ m['role'] + '\\n' + m['content'] }}<|im_end|>\\n{% endfor %}"
    printf '%s\n' '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}'
} >tok/tokenizer_config.json
cat >config.json <<'X'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259, "hidden_size": 16,
 "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
 "max_position_embeddings": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
 "initializer_range": 0.05, "tie_word_embeddings": false, "torch_dtype": "float32", "bos_token_id": 256,
 "eos_token_id": 258}
X
record() { # id, prompt, source, target, rejected
    printf '{"prompt_id": "%s", "prompt": {"role": "user", "content": "%s"}, ' "$1" "$2"
    printf '"chosen": [{"role": "assistant", "content": "%s"}, {"role": "assistant", "content": "%s"}], ' "$3" "$4"
    printf '"rejected": [{"role": "assistant", "content": "%s"}]}\n' "$5"
}
for i in 1 2 3 4 5; do record "r$i" "question $i" "a good answer $i" "good $i" "bad $i"; done >quads.jsonl
cp quads.jsonl before.jsonl

# ---- help and wrong usage
good "--help" --help
COMMANDS="init inspect tokenize logprob train merge eval generate sample answer score select split winrate fuse report"
COMMANDS="$COMMANDS demo"
for c in $COMMANDS; do
    check "--help lists $c" grep -q "^  $c " out.txt
done
good "--version" --version
for c in $COMMANDS; do
    good "$c --help" $c --help
    check "$c --help: usage" grep -q "^usage: wrpo $c" out.txt
    check "$c --help: stderr" test ! -s err.txt
    bad "$c: unknown option" 2 'unknown option "--no-such"' $c --no-such
done
bad "unknown command" 2 'unknown command "trian"' trian
bad "unknown option of the program" 2 'unknown option "--foo"' --foo
bad "a command's option in front of it" 2 'unknown option "--model"' --model x train
for o in init:--config init:--tokenizer init:--out tokenize:--model logprob:--model logprob:--data train:--model \
    train:--data train:--out eval:--model eval:--data generate:--model sample:--model sample:--prompts sample:--out \
    answer:--model answer:--questions answer:--out; do
    c=${o%%:*} o=${o#*:} args=
    for x in --config --tokenizer --model --data --prompts --questions --out; do
        [ $x = $o ] || "$W" $c --help | grep -q "^usage:.* $x" && [ $x != $o ] && args="$args $x new/x"
    done
    bad "$c without $o" 2 "$o is missing" $c $args
done
bad "inspect without a path" 2 'missing' inspect
bad "inspect with two" 2 'unexpected argument "b"' inspect a b
bad "a stray argument" 2 'unexpected argument "stray"' train stray
bad "an option without its value" 2 '\-\-out wants a value' train --model m --data d --out
bad "an option for a value" 2 '\-\-out wants a value' train --out --model m --data d
bad "a flag with a value" 2 'takes no value' train --no-shuffle=yes
TRAIN="train --model tiny --data quads.jsonl --out new"
for o in --alpha=x --alpha= --beta=1e --batch-size=1.5 --batch-size=9999999999999999999999 --seed=-x --max-steps=ten \
    --learning-rate=3e-7x; do
    bad "malformed $o" 2 "${o%%=*}: want a" $TRAIN $o
done
METHODS="wrpo, dpo, ipo, hinge, simpo, dpo-norm, sft, infifpo, infifpo-wrpo, infifpo-ipo"
bad "unknown method" 2 "want one of $METHODS, found \"ppo\"" $TRAIN --method ppo
bad "unknown pair" 2 'want one of target, source, both' $TRAIN --method dpo --pair all
bad "unknown ramp" 2 'want one of linear, constant, power' $TRAIN --alpha-schedule square
bad "a power for linear" 2 'linear:2' $TRAIN --alpha-schedule linear:2
bad "malformed power" 2 'power:' $TRAIN --alpha-schedule power:x
bad "unknown schedule" 2 'want one of cosine, linear, constant' $TRAIN --lr-scheduler poly
bad "unknown tokenization" 2 'want one of clean, authors' $TRAIN --tokenization mine
bad "unknown dtype" 2 'want one of f32, bf16' $TRAIN --save-dtype f8

# ---- a healthy round: init, inspect, tokenize, logprob, train, eval
good "init" init --config config.json --tokenizer tok --out tiny --seed 3
for f in config.json model.safetensors tokenizer.json tokenizer_config.json; do check "init: $f" test -s tiny/$f; done
check "init: the tokenizer is copied unchanged" cmp -s tok/tokenizer.json tiny/tokenizer.json
good "inspect a config.json alone" inspect config.json
check "a config.json alone: parameters" grep -q '^parameters   12,208 ' out.txt
check "a config.json alone: memory" grep -q '^memory ' out.txt
good "init again" init --config=config.json --tokenizer=tok --out=tiny2 --seed=3
check "init: the same seed, the same bytes" cmp -s tiny/model.safetensors tiny2/model.safetensors
good "init with another seed" init --config config.json --tokenizer tok --out tiny2 --seed 4
check "init: another seed, other bytes" sh -c '! cmp -s tiny/model.safetensors tiny2/model.safetensors'
good "init --save-dtype bf16 in shards" init --config config.json --tokenizer tok --out shards --save-dtype bf16 \
    --max-shard-size 4000
check "init: shards" test -s shards/model.safetensors.index.json
good "inspect a directory" inspect tiny
check "inspect: parameters" grep -q '^parameters   12,208 ' out.txt
check "inspect: memory" grep -q '^memory ' out.txt
good "inspect shards" inspect shards --tensors
check "inspect: BF16" grep -q 'BF16' out.txt
good "inspect a file" inspect tiny/model.safetensors
check "inspect: a tensor" grep -q '^lm_head.weight  *F32  *\[259, 16\]' out.txt
printf '%s\n' '{"text": "Hi \u00e9\n"}' '{"text": "<|im_end|>", "special": true}' '{"ids": [72, 105, 32, 195, 169]}' \
    '{"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": true}' \
    '{"messages": [{"role": "tool", "content": "x"}]}' '{"text": ""}' >lines.jsonl
good "tokenize" tokenize --model tok --in lines.jsonl --out ids.jsonl
cat >want.jsonl <<'X'
{"ids": [72, 105, 32, 195, 169, 10]}
{"ids": [258]}
{"text": "Hi é"}
X
{
    printf '%s' '{"text": "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", "ids": [257, 117, 115, 101, 114, '
    echo '10, 120, 258, 10, 257, 97, 115, 115, 105, 115, 116, 97, 110, 116, 10]}'
} >>want.jsonl
check "tokenize: six lines" test "$(wc -l <ids.jsonl)" -eq 6
check "tokenize: the first four" sh -c 'head -4 ids.jsonl | cmp -s - want.jsonl'
check "tokenize: a template that raises" sh -c 'sed -n 5p ids.jsonl | grep -q "^{\"error\": \".*no tools here"'
check "tokenize: an empty text" sh -c 'sed -n 6p ids.jsonl | grep -q "^{\"ids\": \[\]}$"'
run "$W" tokenize --model tok <lines.jsonl >piped.jsonl 2>err.txt
check "tokenize: standard input and output" cmp -s ids.jsonl piped.jsonl
good "logprob" logprob --model tiny --data quads.jsonl --out lp.jsonl
check "logprob: five lines" test "$(wc -l <lp.jsonl)" -eq 5
head -1 lp.jsonl >first.txt
logps='\[-[0-9.]*, -[0-9.]*, -[0-9.]*\]' counts='\[[0-9]*, [0-9]*, [0-9]*\]'
check "logprob: the line" \
    grep -q "^{\"prompt_id\": \"r1\", \"logps\": $logps, \"tokens\": $counts, \"prompt_tokens\": [0-9]*}$" first.txt
good "logprob to standard output" logprob --model tiny --data quads.jsonl
check "logprob: the same" cmp -s lp.jsonl out.txt
good "train" train --model tiny --data quads.jsonl --out run --batch-size 2 --learning-rate 1e-2 --epochs 2 --beta 0.1 \
    --eval-data quads.jsonl --warmup-ratio 0 --threads 1
check "train: a line per step" test "$(grep -c '^step ' out.txt)" -eq 6
check "train: the last line says where" grep -q '^run: trained, 6 steps' out.txt
for f in config.json model.safetensors tokenizer.json tokenizer_config.json metrics.jsonl; do
    check "train: $f" test -s run/$f
done
check "train: metrics" test "$(grep -c '"loss"' run/metrics.jsonl)" -eq 6
check "train: ln 2 at step 0" sh -c 'head -1 run/metrics.jsonl | grep -q "\"loss\": 0.69314718"'
check "train: alpha 0 at step 0" sh -c 'head -1 run/metrics.jsonl | grep -q "\"cur_alpha\": 0[,.]"'
check "train: the data is untouched" cmp -s quads.jsonl before.jsonl
good "train: the same again" train --model tiny --data quads.jsonl --out run2 --batch-size 2 --learning-rate 1e-2 \
    --epochs 2 --beta 0.1 --eval-data quads.jsonl --warmup-ratio 0 --threads 2
check "train: the same bytes" cmp -s run/model.safetensors run2/model.safetensors
good "eval" eval --model run --ref tiny --data quads.jsonl --beta 0.1
check "eval: one line" test "$(wc -l <out.txt)" -eq 1
check "eval: names" grep -q '"eval_rewards/margins"' out.txt
good "eval against itself" eval --model run --data quads.jsonl --alpha 0
check "eval against itself: it is said" grep -q '^wrpo: warning: --ref is missing' err.txt
check "eval: ln 2" grep -q '"eval_loss": 0.69314718' out.txt
check "eval: alpha 0 means zero" grep -q '"eval_cur_alpha": 0[,.]' out.txt
for m in dpo ipo hinge simpo dpo-norm sft; do
    good "train --method $m" train --method $m --model tiny --data quads.jsonl --out run-$m --batch-size 5 --max-steps 2
done
good "train --pair both" train --method dpo --pair both --model tiny --data quads.jsonl --out run-both --batch-size 5 \
    --max-steps 1 --save-dtype bf16
for i in 1 2 3; do printf '{"prompt": "question %d", "chosen": "good %d", "rejected": "bad"}\n' $i $i; done >pairs.jsonl
printf '{"messages": [{"role": "user", "content": "question"}, {"role": "assistant", "content": "an answer"}]}\n' \
    >messages.jsonl
good "dpo on pairs" train --method dpo --model tiny --data pairs.jsonl --out run-pairs --batch-size 3
good "wrpo at alpha 0 on pairs" train --alpha 0 --model tiny --data pairs.jsonl --out run-pairs --batch-size 3
good "sft on messages" train --method sft --model tiny --data messages.jsonl --out run-messages
# ---- what source models think of the responses, and InfiFPO on it
good "as-source" logprob --model tiny --data quads.jsonl --as-source tiny --out known.jsonl
check "as-source: every record has a pair for each response" \
    test "$(grep -c '"source_logps": {"tiny": \[\[-[0-9.]*, [0-9]*\], \[-[0-9.]*, [0-9]*\], \[-[0-9.]*, [0-9]*\]\]}}$' \
        known.jsonl)" -eq 5
good "as-source, another file's too" logprob --model tiny --data quads.jsonl --as-source again --with known.jsonl \
    --out both.jsonl
check "as-source: two models" test "$(grep -c '"source_logps": {"tiny": .*, "again": ' both.jsonl)" -eq 5
for m in infifpo infifpo-wrpo infifpo-ipo; do
    rm -rf run
    good "train, $m" train --model tiny --data both.jsonl --out run --method $m --fusion mean --sft-weight 0.1 \
        --batch-size 2 --max-steps 2
    check "train, $m: its settings" grep -q "method  *$m, .*beta 2.5, .*fusion mean, sft weight 0.1" out.txt
done
rm -rf run
good "preset" train --model tiny --data both.jsonl --out run --preset infifpo --max-steps 1 --beta 3
check "preset: said in full" grep -q 'preset  *infifpo (Gu et al. 2025): --method infifpo --beta 2.5' out.txt
check "preset: an option wins" grep -q 'method  *infifpo, pair target, beta 3,' out.txt
rm -rf run
for p in wrpo-paper simpo-on-policy fusechat3; do
    good "preset $p" train --model tiny --data quads.jsonl --out run --max-steps 1 --preset=$p --max-length 256 \
        --max-prompt-length 128
    check "preset $p: said in full" grep -q "^preset  *$p (.*): --method " out.txt
    rm -rf run
done
printf '{"messages": [{"role": "user", "content": "question %s"}, {"role": "assistant", "content": "good"}]}\n' \
    1 2 3 4 5 6 7 8 >talks.jsonl
good "preset sft-paper" train --model tiny --data talks.jsonl --out run --max-steps 1 --preset sft-paper \
    --max-length 64 --batch-size 1
check "preset sft-paper: said in full" grep -q '^preset  *sft-paper (.*): --method sft --sft-on all --packing ' out.txt
bad "a preset of another command" 2 'want one of simpo-eval, found "infifpo"' answer --model tiny --bench alpacaeval \
    --questions q.json --out new --preset infifpo
bad "an unknown preset" 2 'preset: want one of wrpo-paper, sft-paper, .*, found "best"' train --model tiny \
    --data quads.jsonl --out new --preset best
bad "infifpo without source_logps" 1 'record "r1" (line 1): the method needs "source_logps"' train --model tiny \
    --data quads.jsonl --out new --method infifpo
bad "as-source twice" 1 'found "tiny" again' logprob --model tiny --data known.jsonl --as-source tiny --out new
bad "as-source without --out" 1 'as-source: want --out' logprob --model tiny --data quads.jsonl --as-source t
bad "as-source, truncated" 1 'responses of at most 30 tokens, found' logprob --model tiny --data quads.jsonl \
    --as-source t --max-length 30 --out new
bad "as-source with a limit" 1 'want no --max-prompt-length, --limit' logprob --model tiny --data quads.jsonl \
    --as-source t --limit 2 --out new
bad "with, but no name" 1 'with: want --as-source' logprob --model tiny --data quads.jsonl --with known.jsonl --out new
good "an idle option" train --model tiny --data quads.jsonl --out run --fusion mean --max-steps 1
check "an idle option is named" grep -q 'warning: --fusion says nothing to --method wrpo' err.txt
rm -rf run
good "logprob of pairs" logprob --model tiny --data pairs.jsonl
check "logprob of pairs: two log-probs, an id from the line" grep \
    -q '^{"prompt_id": "line 3", "logps": \[-[0-9.]*, -[0-9.]*\], "tokens"' out.txt
bad "wrpo on pairs" 1 'line 1.*source response' train --model tiny --data pairs.jsonl --out new
bad "dpo on messages" 1 'line 1.*rejected response' train --method dpo --model tiny --data messages.jsonl --out new
bad "two new folders above the output, and a failure" 1 'nope' train --model tiny --data nope --out new/a/b
# ---- adapters
TRAIN_TINY="train --model tiny --data quads.jsonl --batch-size 2"
LORA="train --model tiny --data quads.jsonl --batch-size 2 --learning-rate 1e-2 --beta 0.1 --no-shuffle"
good "train an adapter" $LORA --out lora --lora-r 4 --lora-alpha 8 --lora-dropout 0.1 --lora-target q_proj,v_proj
check "the adapter is what is saved" [ -f lora/adapter_model.safetensors -a -f lora/adapter_config.json \
    -a ! -f lora/model.safetensors ]
check "what is trained is said" grep -q 'adapter .*new, r 4, alpha 8, dropout 0.1' out.txt
good "inspect an adapter" inspect lora --tensors
check "its rank" grep -q '^r  *4$' out.txt
check "its tensors" grep -q 'q_proj.lora_A.weight' out.txt
printf '{"prompt_id":"a","prompt":"hi"}\n' >one.jsonl
for c in "logprob --model tiny --data quads.jsonl" \
    "generate --model tiny --in one.jsonl --max-tokens 5 --temperature 0" "eval --model tiny --data quads.jsonl"; do
    good "$c without" $c
    mv out.txt without.txt
    good "$c" $c --adapter lora
    if cmp -s out.txt without.txt; then fail "$c: the adapter changes nothing"; else pass; fi
    mv out.txt with.txt
done
good "merge" merge --model tiny --adapter lora --out merged
cp -r tiny base
printf '{\n  "eos_token_id": 256\n}\n' >base/generation_config.json   # as a base model has it: no answer ends so
BASE="train --model base --data quads.jsonl --batch-size 5"
good "a base model" $BASE --out ended
check "a base model: the warning" grep -q \
    'warning: "<|im_end|>" (id 258) ends answers, but is no eos_token_id of base.*--save-eos adds it' err.txt
check "a base model: its eos is kept" cmp -s base/generation_config.json ended/generation_config.json
good "--save-eos" $BASE --save-eos --out ended
check "--save-eos: no warning" sh -c "! grep -q "warning:.*save-eos" err.txt"
check "--save-eos: all of them" grep -q '^  "eos_token_id": \[256, 258\]$' ended/generation_config.json
good "a model that was so saved" train --model ended --data quads.jsonl --batch-size 5 --out ended2
check "a model that was so saved: no warning" sh -c "! grep -q "warning:.*save-eos" err.txt"
good "merge --save-eos" merge --model base --adapter lora --save-eos --out ended
check "merge --save-eos: all of them" grep -q '\[256, 258\]' ended/generation_config.json
bad "--save-eos of an adapter" 1 'an adapter has no generation_config.json' $LORA --lora-r 4 --save-eos --out new
good "eval the merged model" eval --model merged --ref tiny --data quads.jsonl
check "a merged model has the adapter's loss" awk -F'[:,]' 'NR == FNR { a = $4; next } { d = a - $4; if (d < 0) d = -d }
    END { exit !(d < 1e-5) }' with.txt out.txt
run "$W" sample --model tiny --prompts one.jsonl --as target --out lora.jsonl --n 2 --max-tokens 3 >out.txt 2>&1
rm -f lora.jsonl
good "sample with an adapter" sample --model tiny --adapter lora --prompts one.jsonl --as target \
    --out lora.jsonl --n 1 --max-tokens 3
good "go on from an adapter" $LORA --out lora2 --adapter lora --epochs 2
check "the reference is the adapter as it was" grep -q '"step": 1, "loss": 0.69' lora2/metrics.jsonl
good "an adapter to go on with" $LORA --out lora3 --lora-r 3 --epochs 4 --save-steps 2
find lora3 -name trainer_state.wrpo >found.txt
good "inspect its checkpoint" inspect "$(dirname "$(head -1 found.txt)")"
cp -r tiny beside && cp lora/adapter_* beside
good "an adapter beside the model" logprob --model beside --data quads.jsonl
check "it is said" grep -q 'beside: the adapter beside the model is applied' err.txt
bad "all weights of a model with an adapter beside" 1 'an adapter: want it merged' train --model beside \
    --data quads.jsonl --out new
bad "an adapter into its own directory" 1 'want another directory than --adapter' $LORA --adapter lora --out lora
bad "an adapter into its model" 1 'want another directory than --model' $LORA --lora-r 2 --out tiny
bad "merged into its model" 1 'want another directory' merge --model tiny --adapter lora --out tiny
bad "merged into the adapter" 1 'want another directory' merge --model tiny --adapter lora --out lora
bad "a checkpoint's directory around the adapter" 1 'which --adapter reads' $LORA --adapter \
    "$(dirname "$(head -1 found.txt)")" --out lora3
bad "all weights into an adapter's directory" 1 'adapter_config.json is there' $TRAIN_TINY --out lora
bad "settings of no adapter" 1 'want --lora-r' $LORA --lora-alpha 3 --out new
bad "two adapters" 1 'either --lora-r' $LORA --lora-r 3 --adapter lora --out new
bad "a layer that is not there" 1 'target: want all-linear or names out of q_proj,.*, found "qproj"' $LORA --lora-r 2 \
    --lora-target qproj --out new
bad "no adapter there" 1 'adapter_config.json' generate --model tiny --adapter tok --prompt hi
cp -r lora wrong && sed -i 's/"use_dora": false/"use_dora": true/' wrong/adapter_config.json
bad "DoRA" 1 'wrong/adapter_config.json:.*use_dora true is not supported' $LORA --adapter wrong --out new
rm -r wrong && cp -r lora wrong && sed -i 's/layers.0.self_attn.q_proj.lora_B/layers.0.self_attn.q_proj.lora_C/' \
    wrong/adapter_model.safetensors
bad "no lora_B" 1 'layers.0.self_attn.q_proj.lora_B.weight is missing' $LORA --adapter wrong --out new
rm -r wrong && cp -r lora wrong && sed -i 's/layers.0.self_attn/layers.9.self_attn/g' wrong/adapter_model.safetensors
bad "a layer too many" 1 'want an adapter of model.layers.0.self_attn.q_proj, found none' \
    $LORA --adapter wrong --out new
rm -r wrong && cp -r lora wrong && sed -i 's/"r": 4/"r": 5/' wrong/adapter_config.json
bad "another rank" 1 'lora_A.weight: want \[5,[0-9]*\], found \[4,[0-9]*\]' $LORA --adapter wrong --out new
rm -r wrong && cp -r lora wrong && printf '\377\377\377\377' | dd of=wrong/adapter_model.safetensors bs=1 conv=notrunc \
    seek=$(($(wc -c <wrong/adapter_model.safetensors) - 4)) 2>/dev/null
bad "NaN in an adapter" 1 'lora_.*not a finite number' $LORA --adapter wrong --out new
rm -r wrong

good "an option that says nothing" train --method sft --pair both --model tiny --data quads.jsonl --out run-sft \
    --batch-size 5 --max-steps 1
check "it is named" grep -q 'warning: --pair says nothing to --method sft' err.txt

# ---- impossible options
for o in --alpha=1.5 --alpha=-0.1 --alpha=nan --beta=0 --beta=-1 --beta=inf --label-smoothing=0.5 --batch-size=0 \
    --batch-size=-3 --epochs=0 --max-steps=0 --warmup-ratio=2 \
    --learning-rate=-1 --accumulation=0 --micro-tokens=0 --recompute=-2 --max-length=0 --max-prompt-length=0 \
    --eval-steps=0 --threads=0 --alpha-schedule=power:-1 --weight-decay=-1; do
    bad "impossible $o" 1 "${o%%=*}: want" $TRAIN $o
done
bad "accumulation that does not divide" 1 'accumulation' $TRAIN --batch-size 8 --accumulation 3
bad "label smoothing of ipo" 1 'label_smoothing' $TRAIN --method ipo --label-smoothing 0.1
bad "eval steps without data" 1 'eval-data' $TRAIN --eval-steps 2
bad "eval: impossible alpha" 1 '\-\-alpha: want' eval --model tiny --data quads.jsonl --alpha 2

# ---- files that are not there or cannot be written
bad "no model" 1 'nope' train --model nope --data quads.jsonl --out new
bad "no data" 1 'nope.jsonl' train --model tiny --data nope.jsonl --out new
bad "no reference" 1 'nope' train --model tiny --data quads.jsonl --out new --ref nope
bad "no config" 1 'nope.json' init --config nope.json --tokenizer tok --out new
bad "no tokenizer" 1 'nope' init --config config.json --tokenizer nope --out new
bad "inspect: nothing there" 1 'nope: no such directory. Nothing is downloaded' inspect nope
bad "inspect: no such file" 1 'nope.safetensors: cannot be opened' inspect nope.safetensors
bad "inspect: a name of the hub" 1 'get a model of the hub with "hf download nobody/nothing --local-dir DIR"' \
    inspect nobody/nothing
bad "tokenize: no input" 1 'nope: cannot be opened' tokenize --model tok --in nope --out new
bad "logprob: no data" 1 'nope' logprob --model tiny --data nope --out new
bad "eval: no model" 1 'nope' eval --model nope --data quads.jsonl
bad "train: the output lies under a file" 1 'config.json' train --model tiny --data quads.jsonl --out config.json/new
bad "train: the output is a file" 1 'config.json' train --model tiny --data quads.jsonl --out config.json
bad "init: the output lies under a file" 1 'config.json' init --config config.json --tokenizer tok --out config.json/new
bad "logprob: the output's folder is not there" 1 'nowhere/new' logprob --model tiny --data quads.jsonl \
    --out nowhere/new
bad "tokenize: the output is a directory" 1 'tok: want a file' tokenize --model tok --in lines.jsonl --out tok
if [ -w /dev/full ]; then
    bad "tokenize: a full device" 1 'cannot be written' tokenize --model tok --in lines.jsonl --out /dev/full
    bad "logprob: a full device" 1 'cannot be written' logprob --model tiny --data quads.jsonl --out /dev/full
    run "$W" eval --model tiny --data quads.jsonl >/dev/full 2>err.txt
    check "eval: a full standard output" test $? -eq 1
else skipped=$((skipped + 3)); echo "skip: no /dev/full"; fi
full() { # what, command line, under a limit of 16 KiB a file
    what=$1; shift
    ( trap '' XFSZ; ulimit -f 16; exec "$W" "$@" ) >out.txt 2>err.txt </dev/null; code=$?
    if [ $code -ne 1 ] || ! grep -q '^wrpo: .*cannot be written' err.txt; then fail "$what: exit code $code"
    elif [ -e new/model.safetensors ] || [ -n "$(find . -name '*.part')" ]; then
        fail "$what: a half-written file is left"
    else pass; fi
    rm -rf new
}
if ( ulimit -f 16 ) 2>/dev/null; then
    full "init: a full disk" init --config config.json --tokenizer tok --out new
    full "train: a full disk" $TRAIN --batch-size 5
else skipped=$((skipped + 2)); echo "skip: no ulimit -f"; fi

# ---- checkpoints that are wrong
copy() { rm -rf wrong; cp -r "${1:-tiny}" wrong; }
for at in 0 4 8 100 2000 30000; do
    copy; head -c $at tiny/model.safetensors >wrong/model.safetensors
    bad "weights cut off after $at bytes" 1 'wrong/model.safetensors' inspect wrong
    bad "train on weights cut off after $at bytes" 1 'model.safetensors' train --model wrong --data quads.jsonl \
        --out new
done
copy; rm wrong/model.safetensors
bad "no weights" 1 'wrong' inspect wrong
copy; echo '{"model_type": "llama", }' >wrong/config.json
bad "config.json is no JSON" 1 'config.json:1:' inspect wrong
copy; head -c 100 config.json >wrong/config.json
bad "config.json is cut off" 1 'config.json' inspect wrong
copy; rm wrong/config.json
bad "no config.json" 1 'config.json' inspect wrong
edit() { copy; sed "$1" config.json >wrong/config.json; }
edit 's/"hidden_size": 16/"hidden_size": 32/';         bad "wrong shapes" 1 'want \[.*found \[' inspect wrong
edit 's/"intermediate_size": 24/"intermediate_size": 25/'
bad "wrong shapes of the mlp" 1 'want \[.*found \[' train --model wrong --data quads.jsonl --out new
edit 's/"num_hidden_layers": 2/"num_hidden_layers": 3/'; bad "missing tensors" 1 'model.layers.2' inspect wrong
edit 's/"num_hidden_layers": 2/"num_hidden_layers": 1/'; bad "extra tensors" 1 'model.layers.1' inspect wrong
edit 's/"model_type": "llama"/"model_type": "gpt9"/';  bad "an unknown architecture" 1 'gpt9' inspect wrong
edit 's/"hidden_act": "silu"/"hidden_act": "relu6"/';  bad "an unsupported activation" 1 'relu6' inspect wrong
edit 's/"hidden_size": 16/"hidden_size": -16/';        bad "a negative size" 1 'hidden_size' inspect wrong
edit 's/"hidden_size": 16/"hidden_size": "16"/';       bad "a size that is text" 1 'hidden_size' inspect wrong
edit 's/"num_key_value_heads": 1/"num_key_value_heads": 3/'
bad "heads that do not divide" 1 'num_key_value_heads' inspect wrong
for name in ../tiny/model.safetensors /etc/passwd sub/x.safetensors nope.safetensors; do
    copy shards; sed "s|\"model-00001-of-[0-9]*.safetensors\"|\"$name\"|" shards/model.safetensors.index.json \
        >wrong/model.safetensors.index.json
    bad "an index that points to $name" 1 'wrong/' inspect wrong
done
copy shards; rm "$(ls wrong/model-00002-of-*.safetensors)"
bad "a missing shard" 1 'model-00002' inspect wrong
copy; printf '\377\377\377\177' |
    dd of=wrong/model.safetensors bs=1 seek=$(($(wc -c <tiny/model.safetensors) - 4)) conv=notrunc 2>/dev/null
bad "NaN in the weights" 1 'model.safetensors: .*not a finite number' train --model wrong --data quads.jsonl --out new
bad "logprob: NaN in the weights" 1 'model.safetensors: .*not a finite number' logprob --model wrong \
    --data quads.jsonl --out new

# ---- tokenizers that are wrong
copy; rm wrong/tokenizer.json
bad "no tokenizer.json" 1 'tokenizer.json' train --model wrong --data quads.jsonl --out new
copy; echo '{' >wrong/tokenizer.json
bad "tokenizer.json is no JSON" 1 'tokenizer.json' tokenize --model wrong --in lines.jsonl --out new
copy; echo '{"version": "1.0"}' >wrong/tokenizer.json
bad "tokenizer.json without a model" 1 'tokenizer.json.*model' tokenize --model wrong --in lines.jsonl --out new
copy; sed 's/"BPE"/"Unigram"/' tok/tokenizer.json >wrong/tokenizer.json
bad "another model" 1 'Unigram' tokenize --model wrong --in lines.jsonl --out new
copy; echo '{"eos_token": "<|im_end|>"}' >wrong/tokenizer_config.json
bad "no chat template" 1 'template' train --model wrong --data quads.jsonl --out new
copy; sed "s/== 'tool'/== 'user'/" tok/tokenizer_config.json >wrong/tokenizer_config.json
bad "a template that raises" 1 'no tools here' train --model wrong --data quads.jsonl --out new
copy; sed 's/{% endfor %}//' tok/tokenizer_config.json >wrong/tokenizer_config.json
bad "a template that is no template" 1 'template' train --model wrong --data quads.jsonl --out new
sed 's/259/200/' config.json >small.json
bad "a vocabulary smaller than the tokenizer's" 1 'vocab_size' init --config small.json --tokenizer tok --out new

# ---- records that are wrong: the sentence names the line
data() { bad "$1" 1 "$2" train --model tiny --data wrong.jsonl --out new; }
{ cat quads.jsonl; echo '{"prompt": "x", '; } >wrong.jsonl
data "a record that is no JSON" 'wrong.jsonl:6:'
{ cat quads.jsonl; echo '[1]'; } >wrong.jsonl
data "a record that is no object" 'wrong.jsonl:6:'
{ cat quads.jsonl; echo '{"prompt": "x", "rejected": "y"}'; } >wrong.jsonl
data "a record without chosen" 'wrong.jsonl:6:.*chosen'
{ cat quads.jsonl; echo '{"prompt": "x", "chosen": ["a", "b"]}'; } >wrong.jsonl
data "a record without rejected" 'wrong.jsonl:6:'
{ cat quads.jsonl; echo '{"chosen": ["a", "b"], "rejected": "c"}'; } >wrong.jsonl
data "a record without prompt" 'wrong.jsonl:6:.*prompt'
{ cat quads.jsonl; record e x "" t r; } >wrong.jsonl
data "an empty source" 'wrong.jsonl:6:'
{ cat quads.jsonl; record e x s t ""; } >wrong.jsonl
data "an empty rejected response" 'wrong.jsonl:6:'
{ cat quads.jsonl; printf '{"prompt": "\377", "chosen": ["a", "b"], "rejected": "c"}\n'; } >wrong.jsonl
data "bytes that are no UTF-8" 'wrong.jsonl:6:'
{ cat quads.jsonl; echo '{"prompt": "x", "prompt": "y", "chosen": ["a", "b"], "rejected": "c"}'; } >wrong.jsonl
data "a key twice" 'wrong.jsonl:6:'
{ cat quads.jsonl; echo '{"prompt_id": "pair", "prompt": "x", "chosen": "a", "rejected": "c"}'; } >wrong.jsonl
data "a pair among quadruples" 'pair'
: >wrong.jsonl;                                                                       data "no records" 'record'
bad "no room for a response" 1 'max_prompt_length: want' $TRAIN --max-length 8 --max-prompt-length 8
good "a prompt that is cut" train --model tiny --data quads.jsonl --out cut --max-length 40 --max-prompt-length 12 \
    --batch-size 5
check "it is counted" grep -q 'cut: 5 prompts' out.txt
good "responses that are cut" train --model tiny --data quads.jsonl --out cut --max-length 44 --max-prompt-length 40 \
    --batch-size 5
check "they are counted" grep -q 'cut: 0 prompts, [1-9][0-9]* responses' out.txt
for line in '{"text": 3}' '{"text": "a", "ids": []}' '{"ids": [-1]}' '{"ids": [1.5]}' '{"ids": [99999]}' '{}' '[]' '' \
    'x' '{"messages": {}}' '{"text": "a", "special": 1}'; do
    { echo '{"text": "fine"}'; echo "$line"; echo '{"text": "fine"}'; } >wrong.jsonl
    bad "tokenize: $line" 1 '^wrpo: wrong.jsonl:2:' tokenize --model tok --in wrong.jsonl --out new
done

# ---- answers
SAMPLE="sample --model tiny --as target --max-tokens 4 --out new --prompts"
good "generate" generate --model tiny --prompt Hello --max-tokens 5 --seed 9
cp out.txt first.txt
good "generate again" generate --model tiny --prompt Hello --max-tokens 5 --seed 9 --threads 1 --batch 1
check "generate: the same seed, the same text" cmp -s first.txt out.txt
good "generate --raw" generate --model tiny --raw --prompt Hello --max-tokens 5 --temperature 0
printf '%s\n' '{"prompt": "hi"}' '' '{"prompt_id": 7, "prompt": {"role": "user", "content": "a \"b\""}}' \
    '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}' >prompts.jsonl
good "generate --in" generate --model tiny --in prompts.jsonl --max-tokens 5 --out answers.jsonl
check "generate --in: three lines" test "$(wc -l <answers.jsonl)" -eq 3
head -1 answers.jsonl >first.txt
names='"content": ".*", "tokens": [1-5], "logp": -.*, "stopped": .*}$'
check "generate --in: names" grep -q "^{\"prompt_id\": \"line 1\", \"prompt\": \"hi\", $names" first.txt
check "generate --in: a record as it was" \
    grep -qF '{"prompt_id": "7", "prompt": {"role": "user", "content": "a \"b\""}, "content": "' answers.jsonl
messages='[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]'
check "generate --in: messages" \
    grep -qF "{\"prompt_id\": \"line 4\", \"prompt\": $messages, \"content\": \"" answers.jsonl
good "sample" $SAMPLE prompts.jsonl --n 2 --name "my model"
sampled='{"model": "my model", "content": ".*"}'
check "sample: a line" \
    grep -q "^{\"prompt_id\": \"line 1\", \"prompt\": \"hi\", \"target\": \[$sampled, $sampled\]}$" new
printf '%s\n' '{"prompt": "hi"}' '{"prompt": "ho"}' '{"prompt": [{"role": "user", "content": "hi"}]}' \
    '{"prompt": "hi", "prompt_id": 9}' '{"prompt": "hi!"}' >twice.jsonl
rm -f new; good "sample --dedup" $SAMPLE twice.jsonl --n 1 --dedup
check "sample --dedup: says so" \
    grep -q '3 prompts, 1 samples each.*; 2 prompts were there before and are left out' out.txt
check "sample --dedup: the first of each" \
    test "$(sed 's/.*"prompt_id": "\([^"]*\)".*/\1/' new | tr '\n' ,)" = "line 1,line 2,line 5,"
bad "generate: neither" 1 'want either --prompt or --in' generate --model tiny
bad "generate: both" 1 'want either --prompt or --in' generate --model tiny --prompt x --in prompts.jsonl
bad "sample without --as" 2 '\-\-as is missing' sample --model tiny --prompts prompts.jsonl --out new
bad "sample as something" 2 'want one of source, target, found "sources"' sample --model tiny --prompts prompts.jsonl \
    --out new --as sources
for o in --temperature=-1 --top-p=0 --top-p=1.5 --top-k=0 --n=0 --max-tokens=0 --batch=0; do
    bad "impossible $o" 1 "${o%%=*}: want a" $SAMPLE prompts.jsonl $o
done
refused() { # what, sentence, line
    printf '%b\n' "$3" >p.jsonl
    bad "sample: $1" 1 "$2" $SAMPLE p.jsonl
}
refused "not JSON" 'p.jsonl:2:' '{"prompt": "x"}\n{"prompt"'
refused "no prompts" 'p.jsonl: want prompts, found none' ''
refused "no object" 'p.jsonl:1:1: record "line 1": JSON: want an object, found "x"' '"x"'
refused "no prompt" 'p.jsonl:1:1: record "a": want either "prompt" or "messages", found none' \
    '{"prompt_id": "a", "question": "x"}'
refused "both" 'want either "prompt" or "messages", found both' \
    '{"prompt": "x", "messages": [{"role": "user", "content": "x"}]}'
refused "an answer at the end" "another last role than the assistant's" \
    '{"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}'
refused "an id twice" 'want a prompt_id once, found "a" in the records of line 1 and line 3' \
    '{"prompt_id": "a", "prompt": "x"}\n{"prompt": "y"}\n{"prompt_id": "a", "prompt": "z"}'
refused "a template that raises" 'p.jsonl:1: record "line 1": .*no tools here' \
    '{"prompt": [{"role": "tool", "content": "x"}, {"role": "user", "content": "y"}]}'
refused "too long a prompt" 'prompt 0: want fewer tokens than max_position_embeddings, 256, found' \
    "{\"prompt\": \"$(awk 'BEGIN { while (i++ < 300) printf "x" }')\"}"
bad "sample: a raw message" 1 'raw prompt: want a string, found an object' $SAMPLE prompts.jsonl --raw
bad "sample: no such file" 1 'absent.jsonl: cannot be opened' $SAMPLE absent.jsonl
bad "sample: nowhere to write" 1 'new/x/y.part: cannot be written' sample --model tiny --as source \
    --prompts prompts.jsonl --out new/x/y
bad "generate: no prompt" 2 'prompt: want a TEXT, found an empty text' generate --model tiny --prompt ""
bad "demo: nowhere to write" 1 'new/r.html.*cannot be written' demo --quick --out new/r.html
check "demo: known before the work" test ! -s out.txt
bad "generate: no model" 1 'absent' generate --model absent --prompt x

# ---- selection, split, win rate
candidates() { # id, list, model, then text and reward of each response
    id=$1 list=$2 model=$3 sep=; shift 3
    printf '{"prompt_id": "%s", "prompt": "question %s", "%s": [' "$id" "$id" "$list"
    while [ $# -gt 0 ]; do
        printf '%s{"model": "%s", "content": "%s", "reward": %s}' "$sep" "$model" "$1" "$2"; sep=', '; shift 2
    done
    printf ']}\n'
}
printf '{"prompt_id": 1, "prompt": "x", "sources": [{"model": "m", "content": "a", "reward": NaN}]}\n' >nan.jsonl
for i in 1 2 3; do candidates $i sources s "good $i" 0.9 "worse $i" 0.8; done >sources.jsonl
candidates 4 sources s " " 1 >>sources.jsonl
for i in 1 2 3 4; do candidates $i target t "fair $i" 0.5 "bad $i" 0.$i; done >target.jsonl
good "select" select --in sources.jsonl target.jsonl --out selected.jsonl
check "select: three records" test "$(wc -l <selected.jsonl)" -eq 3
check "select: what is left out is said" grep -q '^left out  *1 without source response, .*; 1 empty responses$' out.txt
check "select: shares" grep -Eq '^s +0.8500 +6 +3 100.0 %$' out.txt
good "select: what it writes is records" logprob --model tiny --data selected.jsonl
sed 's/"sources"/"tools": [{"name": "f"}], "sources"/' sources.jsonl >with.jsonl
good "select: tools" select --in with.jsonl --form pair --out selected.jsonl
check "select: tools stay with their prompt" \
    test "$(grep -Ec "question [123]\", \"tools\": \[\{\"name\": \"f\"\}\], \"chosen\"" selected.jsonl)" -eq 3
bad "select: tools in one file only" 1 'with.jsonl:1.*want the tools as in target.jsonl:1, found another one' select \
    --in target.jsonl with.jsonl --out new
good "select, max gap" select --in sources.jsonl target.jsonl --out selected.jsonl --max-gap 1000
good "select, delta" select --in sources.jsonl target.jsonl --out selected.jsonl --form delta --strong s --weak t
bad "select, delta without models" 1 'strong, weak: want the names' select --in sources.jsonl --out new --form delta
bad "select, a key that is not there" 1 'right: want ' select --in sources.jsonl --out new --require right
good "select, min gap" select --in sources.jsonl target.jsonl --out selected.jsonl --min-gap 0.25
check "select, min gap: two records" test "$(wc -l <selected.jsonl)" -eq 2
good "select pairs" select --in sources.jsonl --out selected.jsonl --form pairs --tau=0.5
good "FuseSFT on pairs" train --model tiny --data selected.jsonl --out fused --method sft --batch-size 3
good "FusePO on pairs" train --model tiny --data selected.jsonl --out fused --method dpo --batch-size 3
bad "select without a record" 1 'no prompt gives a record: of 4, 1 have no source response, 3 no target response' \
    select --in sources.jsonl --out new
bad "select: NaN" 1 'nan.jsonl:1:' select --in nan.jsonl --out new
bad "select: two files for one option" 2 '\-\-in takes one value' tokenize --model tiny --in sources.jsonl target.jsonl
good "split" split --in target.jsonl --out parts --sft 1/4 --seed 3
check "split: parts" test "$(cat parts/sft.jsonl parts/wrpo.jsonl | sort | cksum)" = "$(sort target.jsonl | cksum)" \
    -a "$(wc -l <parts/sft.jsonl)" -eq 1
bad "split: share" 1 '\-\-sft: want a number in (0, 1), found 4/3' split --in target.jsonl --out new --sft 4/3
bad "split: no number" 2 '\-\-sft: want a number, found "1/"' split --in target.jsonl --out new --sft 1/
cat target.jsonl target.jsonl >twice.jsonl
bad "split: a prompt twice" 1 'twice.jsonl:5:1: prompt_id "1": want each once' split --in twice.jsonl --out new
# ---- score
printf '%s' '{"prompt_id": "1", "prompt": "Hi", "sources": [{"model": "m", "content": "a"}, ' >one.jsonl
echo '{"model": "m", "content": "b", "reward": 0.5}], "target": [{"model": "t", "content": "c"}]}' >>one.jsonl
printf '{"prompt": "Hi", "target": [{"content": "c", "reward": NaN}]}\n' >nan.jsonl
good "score" score --reward-model "$G/rewards/llama_f32" --in one.jsonl --out scored.jsonl
check "score: what it says" grep -q '^scored.jsonl: 1 prompts, 2 responses scored, 1 rewards kept; reward ' out.txt
check "score: a reward that was there" grep -q '"content": "b", "reward": 0.5}' scored.jsonl
check "score: one that was not" grep -q '"content": "a", "reward": -*0*.[0-9]' scored.jsonl
good "score: an adapter" score --reward-model "$G/rewards/llama_lora" --adapter "$G/rewards/llama_lora/adapter" \
    --in one.jsonl --out adapted.jsonl
bad "score: no adapter" 1 'llama_lora: a language model has no reward head' score --in one.jsonl --out new \
    --reward-model "$G/rewards/llama_lora"
good "score again" score --reward-model "$G/rewards/llama_f32" --in scored.jsonl --out again.jsonl
check "score again: nothing changes" cmp -s scored.jsonl again.jsonl
good "score anew" score --reward-model "$G/rewards/gemma2_bf16" --label 2 --rescore --in scored.jsonl --out again.jsonl
check "score anew: everything changes" sh -c '! grep -q "reward\": 0.5}" again.jsonl'
good "inspect a reward model" inspect "$G/rewards/gemma2_bf16"
check "inspect a reward model: its head" grep -q '^type  *gemma2, reward: score' out.txt
bad "score: not a reward model" 1 'a language model has no reward head' score \
    --reward-model "$G/checkpoints/llama_f32" --in one.jsonl --out new
bad "score: which label" 1 'score.weight has 3 rows' score --reward-model "$G/rewards/gemma2_bf16" --in one.jsonl \
    --out new
bad "score: two files" 2 '--in takes one value' score --reward-model "$G/rewards/llama_f32" --in one.jsonl one.jsonl \
    --out new
bad "score: no such file" 1 'nowhere.jsonl: cannot be opened' score --reward-model "$G/rewards/llama_f32" \
    --in nowhere.jsonl --out new
bad "score: NaN" 1 'nan.jsonl:1:' score --reward-model "$G/rewards/llama_f32" --in nan.jsonl --out new
bad "train a reward model" 1 'a reward model: it scores answers' train --model "$G/rewards/llama_f32" \
    --data quads.jsonl --out new
bad "winrate: an answer without text" 1 'sources.jsonl: prompt_id "4": want an answer with text' winrate \
    --a sources.jsonl --b target.jsonl
head -3 sources.jsonl >three.jsonl
good "winrate" winrate --a three.jsonl --b target.jsonl
check "winrate: the rate" grep -q '^win rate  *100.00 %' out.txt
check "winrate: what is left out" grep -q 'warning: 0 prompts are in three.jsonl only, 1 in target.jsonl only' err.txt

# with a reward model: what score and winrate give by hand, and nothing left of it
for f in a b; do
    m=29; [ $f = a ] || m=17
    for i in 1 2 3 4 5 6; do
        printf '{"prompt_id": "%d", "prompt": "question %d", "content": "answer %d"}\n' $i $i $((m * i * i % 50))
    done >answers-$f.jsonl
done
printf '{"prompt_id": "7", "prompt": "question 7", "content": "x", "reward": 0.25}\n' |
    tee -a answers-a.jsonl >>answers-b.jsonl
R="$G/rewards/llama_f32" B="winrate --a answers-a.jsonl --b answers-b.jsonl --seed 5 --resamples 200"
mkdir scratch; TMPDIR=$T/scratch; export TMPDIR
nothing() { check "$1: nothing is left" test -z "$(ls scratch)"; }
for f in a b; do good "score answers-$f" score --reward-model "$R" --in answers-$f.jsonl --out by-hand-$f.jsonl; done
good "winrate by hand" winrate --a by-hand-a.jsonl --b by-hand-b.jsonl --seed 5 --resamples 200; cp out.txt by-hand.txt
good "winrate --reward-model" $B --reward-model "$R"
check "winrate --reward-model: what was scored" \
    test "$(grep -c '^answers-[ab].jsonl 6 responses scored, 1 rewards kept$' out.txt)" -eq 2
sed '/ rewards kept$/d' out.txt >same.txt
check "winrate --reward-model: as by hand" cmp -s same.txt by-hand.txt
check "winrate --reward-model: some are won, some lost" grep -q 'won [1-9].*lost [1-9]' out.txt
nothing "winrate --reward-model"
good "winrate --rescore" $B --reward-model "$R" --rescore
check "winrate --rescore: all" test "$(grep -c '^answers-[ab].jsonl 7 responses scored, 0 rewards kept$' out.txt)" -eq 2
good "winrate --label" $B --reward-model "$G/rewards/gemma2_bf16" --label 2 --micro-tokens 64
check "winrate --label: another model, other rewards" sh -c '! cmp -s same.txt out.txt'
nothing "winrate --label"
none='reward: want a number, found no such key in this object'
bad "winrate: no reward, no model" 1 "answers-a.jsonl:1:.*$none; --reward-model DIR scores what has none" $B
bad "winrate: a reward model that is not there" 1 'absent: no such directory. Nothing is downloaded' $B \
    --reward-model absent
nothing "winrate: a reward model that is not there"
bad "winrate: not a reward model" 1 'a language model has no reward head' $B --reward-model "$G/checkpoints/llama_f32"
nothing "winrate: not a reward model"
for o in --rescore --label=1 --micro-tokens=64 --dtype=f32; do
    bad "winrate $o alone" 1 "^wrpo: ${o%%=*}: --reward-model is missing" $B $o
done
printf '{"prompt_id": "1", "content": "no prompt"}\n' >b.jsonl
bad "winrate: no prompt to score" 1 'b.jsonl:1:.*prompt: want a string' winrate --a answers-a.jsonl --b b.jsonl \
    --reward-model "$R"
nothing "winrate: no prompt to score"
printf '{"prompt_id": "1", "prompt": "Hi", "content": " "}\n' >b.jsonl
bad "winrate: an empty answer is named in its own file" 1 '^wrpo: b.jsonl: prompt_id "1": want an answer with text' \
    winrate --a answers-a.jsonl --b b.jsonl --reward-model "$R"
nothing "winrate: an empty answer"
i=0; while [ $i -lt 12 ]; do i=$((i + 1)); sed "s/\"prompt_id\": \"/&$i-/" answers-a.jsonl; done >many.jsonl; k=0
while [ $k -lt 10 ]; do
    k=$((k + 1)); sed "s/\"prompt_id\": \"/&$k-/" many.jsonl
done >more.jsonl; mv more.jsonl many.jsonl
for how in INT TERM HUP; do
    "$W" winrate --a many.jsonl --b many.jsonl --reward-model "$R" --rescore --threads 1 >out.txt 2>err.txt & pid=$!
    k=0; while [ $k -lt 200 ] && [ -z "$(ls scratch)" ]; do sleep 0.01; k=$((k + 1)); done
    kill -$how $pid; wait $pid; code=$?
    if [ $how = INT ] && [ $code -eq 0 ] || [ $how = HUP ] && (sh -c 'kill -HUP $$'; exit $?) 2>/dev/null; then
        skipped=$((skipped + 1)); echo "skip: SIG$how is ignored here"
    else check "winrate, SIG$how: a clean stop" grep -qx 'wrpo: interrupted' err.txt; fi
    nothing "winrate, SIG$how"
done
unset TMPDIR

# ---- report
good "a run to report" train --model tiny --data quads.jsonl --out new --batch-size 5 --max-steps 3 \
    --eval-data quads.jsonl
good "report" report new fused --out runs.html
check "report: one picture a metric" test "$(grep -c '<svg' runs.html)" -ge 8
check "report: two runs and the held-out data" \
    grep -q '<i class="c1"></i>fused</span><span><i class="eval"></i>held-out' runs.html
check "report: nothing to load" test -z "$(grep -oE 'https?:|src=|href=|@import|url\(' runs.html)"
for m in loss grad_norm rewards/margins eval_loss; do      # the last numbers are the file's, to 4 digits
    v=$(printf %.4g "$(sed -n "s|.*\"$m\": \([^,}]*\).*|\1|p" new/metrics.jsonl | tail -1)")
    check "report: $m is $v" grep -q "<tr><td>$m</td><td>$v</td>" runs.html
done
bad "report: no such run" 1 'nowhere/metrics.jsonl: cannot be opened' report nowhere
bad "report: no run" 2 'RUN_DIR... is missing' report
mkdir -p broken; echo '{"loss": 1}' >broken/metrics.jsonl
bad "report: no step" 1 'metrics.jsonl:1: want an object of numbers with a "step"' report broken
mkdir -p empty; : >empty/metrics.jsonl
bad "report: no metrics" 1 'empty/metrics.jsonl: want metrics, found none' report empty --out new
rm -rf fused parts new

# ---- a run that blows up keeps what was good
rm -rf new
run "$W" train --method sft --model tiny --data quads.jsonl --out new --batch-size 5 --learning-rate 999 \
    --weight-decay 999 --lr-scheduler constant --warmup-ratio 0 \
    --max-steps 50 >out.txt 2>err.txt; code=$?
check "blow-up: exit code 1" test $code -eq 1
check "blow-up: the step and the record or batch" grep -q '^wrpo: .*step .*record' err.txt
check "blow-up: no final model" test ! -e new/model.safetensors
kept=$(find new -type d -name 'checkpoint-*')
check "blow-up: a checkpoint is kept" test -n "$kept"
good "blow-up: it is valid" inspect "$kept"
good "blow-up: its numbers are finite" logprob --model "$kept" --data quads.jsonl
rm -rf new

# ---- Ctrl-C: a clean stop
"$W" train --model tiny --data quads.jsonl --out new --batch-size 1 --max-steps 100000000 --threads 1 >out.txt \
    2>err.txt & pid=$!
i=0; while [ $i -lt 100 ] && ! grep -q '^step ' out.txt; do sleep 0.1; i=$((i + 1)); done
kill -INT $pid; wait $pid; code=$?
if [ $code -eq 130 ] || [ $code -eq 0 ]; then
    skipped=$((skipped + 3)); echo "skip: background processes ignore SIGINT here"
else
    check "interrupt: exit code 1" test $code -eq 1
    check "interrupt: says where" grep -q 'is in new/checkpoint-' err.txt
    good "interrupt: the checkpoint is valid" inspect "$(find new -type d -name 'checkpoint-*')"
fi
kill -9 $pid 2>/dev/null
rm -rf new

# ---- resume: what is left of an interrupted run goes on to the bytes of one that never stopped, but for times
timeless() { sed 's/, "[a-z_]*tokens_per_second": [^,}]*, "[a-z_]*seconds": [^,}]*//' "$1/metrics.jsonl" >"$2"; }
same_run() { # what, two directories
    timeless "$2" a.txt; timeless "$3" b.txt
    check "$1: the same weights" cmp -s "$2/model.safetensors" "$3/model.safetensors"
    check "$1: the same metrics" cmp -s a.txt b.txt
}
LONG="train --model tiny --data quads.jsonl --batch-size 2 --accumulation 2 --learning-rate 1e-2 --beta 0.1"
LONG="$LONG --eval-data quads.jsonl --eval-steps 5 --max-steps 11"
for states in f32 bf16 8bit; do for dtype in f32 bf16; do for m in "wrpo --ref tiny2" "simpo --save-dtype bf16"; do
    o="--moments $states --dtype $dtype --method $m" what="resume, $states $dtype ${m%% *}"
    rm -rf whole rest
    good "$what: whole" $LONG $o --out whole --save-steps 3
    check "$what: the last checkpoint alone" test "$(echo whole/checkpoint-*)" = whole/checkpoint-9
    good "$what: its rest" $LONG $o --out rest --resume whole/checkpoint-9
    same_run "$what" whole rest
done; done; done
MANY="train --model tiny --data quads.jsonl --batch-size 1 --epochs 500 --threads 1 --out"
good "resume: whole" $MANY whole
"$W" $MANY new >steps.txt 2>err.txt & pid=$!       # a name of its own: out.txt holds the steps of the run before
i=0; while [ $i -lt 1000 ] && ! grep -qs '^step ' steps.txt; do sleep 0.01; i=$((i + 1)); done
kill -TERM $pid; wait $pid; code=$?
check "resume: interrupted" test $code -eq 1
check "resume: how to go on" grep -q 'goes on from there with --resume' err.txt
K=$(echo new/checkpoint-*)
echo '{"step": 999, "of": "steps that a kill let it write after the checkpoint"}' >>new/metrics.jsonl
good "resume: the state is a safetensors file" inspect $K/trainer_state.wrpo
check "resume: moments" grep -q '^model.norm.weight.exp_avg_sq  *F32  *\[16\]' out.txt
good "resume: the rest" $MANY new --resume $K
same_run "resume" whole new
cp -r $K kept; rm -rf new
S=kept/trainer_state.wrpo
for o in "--batch-size 2:batch_size: want 2, as this run has it, found 1" \
    "--learning-rate 1e-4:learning_rate: want 0.0001, .* found 3e-7" "--epochs 2:steps: want 10, .* found 2500" \
    "--seed 3:seed: want 3, .* found 42" "--data pairs.jsonl --method dpo:method: want dpo, .* found wrpo" \
    "--limit 4:data: want 4 records, .*, .* found 5 records" \
    "--moments 8bit:moments: want 8bit, .* found f32" "--dtype bf16:dtype: want BF16, .* found F32" \
    "--alpha-schedule cosine:alpha_schedule: want cosine"; do
    bad "resume with another ${o%%:*}" 1 "$S: ${o#*:}" $MANY new --resume kept ${o%%:*}
done
run "$W" $MANY other --ref tiny2 --resume kept >out.txt 2>err.txt; code=$?
check "resume with another reference" grep -q "^wrpo: $S: reference: want log-probs .* found log-probs" err.txt
check "resume with another reference: exit code 1, no metrics" test $code -eq 1 -a ! -e other/metrics.jsonl
bad "resume from nothing" 1 'absent/trainer_state.wrpo: cannot be opened' $MANY new --resume absent
bad "resume from weights alone" 1 'tiny/trainer_state.wrpo: cannot be opened' $MANY new --resume tiny
bad "resume from a state of the version before" \
    1 'states/trainer_state.wrpo: state_format: want 2, which this version reads, found none: version 0.1.0' $MANY new \
    --resume "$G/states"
cp $S state; size=$(wc -c <state)
cp tiny/model.safetensors $S
bad "resume from weights under its name" 1 "$S: state_format: want 2, .* found no such setting" $MANY new --resume kept
for at in 0 5 3000 $((size - 100)); do
    head -c $at state >$S; bad "resume: cut off after $at bytes" 1 "$S: .*want .*found" $MANY new --resume kept
done
{ head -c $((size - 1000)) state; printf x; tail -c 999 state; } >$S
bad "resume: a byte is another" 1 "$S: checksum: want" $MANY new --resume kept
sed 's/"step":"[0-9]/"step":"x/' state >$S
bad "resume: no step" 1 "$S: step: want a whole number up to 2500, found x" $MANY new --resume kept
sed 's/"milliseconds":"[0-9]/"milliseconds":"+/' state >$S
bad "resume: other metadata" 1 "$S: .*want" $MANY new --resume kept
bad "--save-steps 0" 1 'save-steps: want a whole number in \[1, inf)' $TRAIN --save-steps 0

# ---- midnight: the day that a template shows is the run's. Between these two zones the date always differs.
cp -r tiny dated
sed 's/"{% for m/"{{ strftime_now('"'%d %b %Y'"') }}\\n{% for m/' tok/tokenizer_config.json >dated/tokenizer_config.json
DATED="train --model dated --data quads.jsonl --eval-data quads.jsonl --eval-steps 3 --batch-size 1 --max-steps 8"
rm -rf whole
TZ=BBB12; export TZ; day=$(date +%Y-%m-%d)
good "midnight: before" $DATED --save-steps 3 --out whole
check "midnight: the date in the metrics" grep -q "\"date\": \"$day\"}" whole/metrics.jsonl
TZ=AAA-14; next=$(date +%Y-%m-%d)
good "midnight: after" $DATED --out new --resume whole/checkpoint-6
check "midnight: the date in run.json" grep -q "^ \"date\": \"$day\"," new/run.json
check "midnight: the days differ" test "$day" != "$next"
same_run "midnight" whole new
good "midnight: a run begun after it" $DATED --out other --max-steps 1
check "midnight: its date" grep -q "\"date\": \"$next\"}" other/metrics.jsonl
good "midnight: the date of before as an option" $DATED --out new --resume whole/checkpoint-6 --date $day
bad "midnight: another date" 1 "date: want $next, as this run has it, found $day: the chat template shows it (--date" \
    $DATED --out new --resume whole/checkpoint-6 --date $next
bad "no such day" 1 'date: want a day such as 2026-11-29, found "2026-02-30"' $DATED --out new --date 2026-02-30
unset TZ

# ---- what other trainers' files hold
talk() { printf '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n' "$@"; }
for i in 1 2 3 4 5; do talk "a question $i" "an answer $i"; done >talks.jsonl
SFT="train --model tiny --data talks.jsonl --method sft --batch-size 1 --max-steps 3 --out"
good "sft on all, packed" $SFT new --sft-on all --packing --max-length 64
check "sft on all, packed: the format is said" grep -q 'talks.jsonl: [0-9]* records (messages)' out.txt
good "sft on every turn" $SFT new2 --sft-on assistant
good "sft on answers" $SFT new3
check "sft on every turn of one: as on answers" cmp -s new2/model.safetensors new3/model.safetensors
good "logprob of a packed row" logprob --model tiny --data talks.jsonl --sft-on assistant --packing --max-length 64
check "logprob: scored tokens alone" test "$(head -1 out.txt | sed 's/.*"tokens": .\([0-9]*\).*/\1/')" -lt 50
bad "packed pairs" 1 'sft_on, packing: want records of one conversation' $TRAIN --packing
check "packed pairs: a warning" grep -q 'warning: --packing says nothing to --method wrpo' err.txt
bad "an unknown format" 2 'want one of auto, preference, pairs, messages, sharegpt, prompt-completion, alpaca, orca' \
    $TRAIN --data-format csv
bad "another format than forced" 1 'want conversations, the keys of format sharegpt, found "prompt_id", "prompt"' \
    $TRAIN --data-format sharegpt

# ---- the command lines in the README: each is of a command that there is, with options that it has
awk '/\\$/ { sub(/\\$/, ""); line = line $0; next } { print line $0; line = "" }' \
    "$G/../../README.md" "$G/../bench/README.md" |
    grep -oE '(\./|build/)wrpo( [^`#]*)?' | sed -E 's/"[^"]*"/TEXT/g' >lines.txt
said=0
while read -r _ name rest; do
    case $name in help | completion*) continue ;; [a-z]*) ;; *) continue ;; esac
    "$W" help "$name" >help.txt 2>&1 || { fail "README: the command \"$name\""; continue; }
    for word in $rest; do
        case $word in --*) said=$((said + 1)); grep -q -e "^  $word " help.txt || fail "README: $name $word" ;; esac
    done
done <lines.txt
check "README: options" test $said -gt 50

[ -z "$(find . -name '*.part')" ] && pass || fail "half-written files are left"
echo "cli: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]

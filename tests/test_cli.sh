#!/bin/sh
# The program as its users meet it: commands, files, messages, exit statuses.
#
#     NEOXTUNE=./neoxtune sh tests/test_cli.sh [--quick]
#
# Every refusal must be one line on standard error that says which file, where in it and why,
# leave standard output empty and nothing half-written. Works below build/, needs no other
# programs than those of POSIX.
set -u
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")/.." || exit 1
NEOXTUNE=${NEOXTUNE:-$PWD/neoxtune}
quick=
for arg in "$@"; do
    case $arg in --quick) quick=1 ;; esac
done

W=$PWD/build/scratch-cli-$$
rm -rf "$W"
mkdir -p "$W"
cd "$W" || exit 1
trap 'umount "$W/small" 2> /dev/null; cd /; rm -rf "$W"' EXIT
trap 'exit 1' INT TERM

# -- Counting ----------------------------------------------------------------------------------
passed=0 failed=0 skipped=0 reasons= name=

begin() { name=$1 reasons=; }
wrong() { reasons="$reasons    $1
"; }
end() {
    if [ -z "$reasons" ]; then
        passed=$((passed + 1))
        printf '%-52s ok\n' "$name"
    else
        failed=$((failed + 1))
        printf '%-52s FAILED\n%s' "$name" "$reasons"
        sed 's/^/    | /' err | head -5
    fi
}
skip() {
    skipped=$((skipped + 1))
    printf '%-52s skipped: %s\n' "$1" "$2"
}

# run ARGUMENTS: the program's output is in out and err, its exit status in $status.
run() {
    status=0
    "$NEOXTUNE" "$@" > out 2> err < /dev/null || status=$?
}
status_is() { [ "$status" = "$1" ] || wrong "exit status $status, expected $1"; }
says() { grep -q -e "$1" err || wrong "standard error does not say: $1"; }
prints() { grep -q -e "$1" out || wrong "standard output does not hold: $1"; }
holds() { [ -e "$1" ] || wrong "$1 is not there"; }
lacks() { [ ! -e "$1" ] || wrong "$1 is there"; }
same() { cmp -s "$1" "$2" || wrong "$1 and $2 differ"; }
no_rests() { # what a save leaves behind when it is not finished
    rests=$(find "$W" -name '*tmp-*' | head -3)
    [ -z "$rests" ] || wrong "left behind: $rests"
}

# refused NAME PATTERN ARGUMENTS: exit status 1, one line, that pattern; nothing written.
refused() {
    begin "refused: $1"
    pattern=$2
    shift 2
    rm -rf refused
    run "$@"
    status_is 1
    says "$pattern"
    [ "$(grep -c '' err)" = 1 ] || wrong "$(grep -c '' err) lines on standard error, expected 1"
    grep -q '^neoxtune: ' err || wrong "the line does not begin with the program's name"
    [ ! -s out ] || wrong "something on standard output"
    [ -z "$(ls -A refused 2> /dev/null)" ] || wrong "something in the output directory"
    no_rests
    end
}

# misused NAME PATTERN ARGUMENTS: the same with exit status 2, which is about the command line.
misused() {
    begin "usage: $1"
    pattern=$2
    shift 2
    run "$@"
    status_is 2
    says "$pattern"
    [ "$(grep -c '' err)" = 1 ] || wrong "$(grep -c '' err) lines on standard error, expected 1"
    [ ! -s out ] || wrong "something on standard output"
    end
}

# -- A small model -----------------------------------------------------------------------------
config() { # FILE MORE: members given twice count in their last form
    cat > "$1" << END
{"model_type": "gpt_neox", "vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2,
 "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
 "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0 $2}
END
}

# A byte-level tokenizer: 0 is <|endoftext|>, 1 + b the byte b, then some merges.
mkdir tok
awk 'BEGIN {
    printf "{\"added_tokens\": [{\"id\": 0, \"content\": \"<|endoftext|>\", "
    printf "\"special\": true}],\n"
    printf "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
    printf "\"add_prefix_space\": false}, \"decoder\": {\"type\": \"ByteLevel\"},\n"
    printf "\"model\": {\"type\": \"BPE\", \"vocab\": {\"<|endoftext|>\": 0"
    for (b = 0; b < 256; b++) {
        plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174
        printf ", \"\\u%04x\": %d", (plain ? b : 256 + others), b + 1
        others += !plain
    }
    n = split("\\u0120 t|h e|\\u0120t he|i n|e r|o n|\\u0120 a|a t", merge, "|")
    for (i = 1; i <= n; i++) {
        both = merge[i]
        sub(" ", "", both)
        printf ", \"%s\": %d", both, 256 + i
    }
    printf "},\n\"merges\": ["
    for (i = 1; i <= n; i++) printf "%s\"%s\"", (i > 1 ? ", " : ""), merge[i]
    print "]}}"
}' > tok/tokenizer.json
echo '{"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}' > tok/tokenizer_config.json

config config.json ''
awk 'BEGIN {
    split("cat hen rat dog fox", animal, " "); split("mat den inn bed box", place, " ")
    row = "{\"question\": \"where is the %s %d?\", \"answer\": \" in the %s\"}\n"
    for (i = 0; i < 60; i++) printf row,
        animal[i % 5 + 1], i, place[i % 5 + 1]
}' > pairs.jsonl
awk 'BEGIN { for (i = 0; i < 60; i++) printf "the cat %d sat on the mat in the inn\n", i }' \
    > text.txt

# -- Help and usage ----------------------------------------------------------------------------
begin "help"
run --help
status_is 0
for command in train eval generate tokenize info init export bench; do prints "^  $command "; done
run help
status_is 0
run
status_is 2
end

begin "help of each command"
for command in train eval generate tokenize info init export bench; do
    run "$command" --help
    status_is 0
    prints "neoxtune $command:"
    prints '--threads N'
    prints '--config-file'
    [ ! -s err ] || wrong "$command --help writes to standard error"
done
end

begin "version"
run --version
status_is 0
prints '^[0-9]*\.[0-9]*\.[0-9]*$'
end

misused "unknown command" 'unknown command "tran"' tran
misused "unknown command, nearest" 'did you mean train' tran
misused "unknown option, nearest" \
    'unknown option --learning-rat; did you mean --learning-rate?' \
    train --learning-rat 1
misused "unknown option, far" 'unknown option --zzzzzzzzzz' train --zzzzzzzzzz 1
misused "an option of another command" 'unknown option --max-steps' eval --max-steps 3
misused "one dash" 'unknown option -m' train -m x
misused "a word too many" 'unexpected "x"' train x
misused "a value is missing" 'output-dir needs a value' train --output-dir
misused "not a number" '"fast" is not a number' train --learning-rate fast
misused "not whole" '"1.5" is not a whole number' train --max-steps 1.5
misused "no model" 'model is missing' train --data text.txt --output-dir refused
misused "init without config" 'config' init --output-dir refused
misused "export without output" 'output is missing' export --model model
misused "export without model" 'model is missing' export --output refused.gguf
misused "export to no format" '"onnx" is none of gguf, safetensors' export --model model \
    --output refused.gguf --format onnx
misused "export to no type" '"q4" is none of' export --model model --output refused.gguf --dtype q4

# -- init, info, train, generate, eval ---------------------------------------------------------
begin "init"
run init --config config.json --tokenizer tok --output-dir model --seed 5
status_is 0
for f in config.json model.safetensors tokenizer.json tokenizer_config.json; do
    holds "model/$f"
done
run init --config config.json --tokenizer tok/tokenizer.json --output-dir again --seed 5
status_is 0
same model/model.safetensors again/model.safetensors
run init --config config.json --tokenizer tok --output-dir other --seed 6
cmp -s model/model.safetensors other/model.safetensors && wrong "two seeds, the same weights"
run init --config config.json --tokenizer tok --output-dir half --seed 5 --dtype f16
status_is 0
[ "$(wc -c < half/model.safetensors)" -lt "$(wc -c < model/model.safetensors)" ] ||
    wrong "f16 is not smaller"
no_rests
end

misused "no such schedule" 'linear, cosine, constant' train --model model --lr-scheduler-type \
    step

begin "info"
run info --model model
status_is 0
prints 'GPTNeoXForCausalLM'
prints '34[0-9]* parameters\|parameters'
run info --model model --tensors '*'
prints 'gpt_neox.layers.1.mlp.dense_4h_to_h.weight .*\[32, 64\]'
run info --model model --json
status_is 0
prints '"layers": 2, "hidden_size": 32, "parameters": [0-9]*'
[ "$(grep -c '' out)" = 1 ] || wrong "more than one line of JSON"
[ ! -s err ] || wrong "a note on standard error"
end

begin "train"
run train --model model --data pairs.jsonl --output-dir run --max-steps 12 --learning-rate \
    0.01 \
    --per-device-train-batch-size 8 --save-steps 5 --eval-split 0.1 --test-split 0.1 \
    --eval-strategy steps --eval-steps 6 --max-length 64
status_is 0
for f in config.json model.safetensors tokenizer.json metrics.jsonl run.json eval.jsonl \
    test.jsonl checkpoint-5/trainer_state.json checkpoint-5/optimizer.safetensors \
    checkpoint-10/config.json; do
    holds "run/$f"
done
[ ! -s out ] || wrong "train writes to standard output"
[ "$(grep -c '"loss": ' run/metrics.jsonl)" = 12 ] || wrong "not a row per step"
[ "$(grep -c '"eval_loss": ' run/metrics.jsonl)" = 2 ] || wrong "not two evaluations"
grep -q '"learning_rate": .*"num_tokens": ' run/metrics.jsonl || wrong "a row lacks members"
tail -1 run/metrics.jsonl | grep -q '"train_loss": .*"total_flos": ' || wrong "no last row"
[ "$(grep -c '' run/test.jsonl)" = 6 ] || wrong "test.jsonl does not hold a tenth"
[ "$(grep -c '' run/eval.jsonl)" = 5 ] || wrong "eval.jsonl does not hold a tenth of the rest"
sort -u run/eval.jsonl run/test.jsonl > held
[ "$(grep -c '' held)" = 11 ] || wrong "the splits overlap"
grep -v -x -F -f pairs.jsonl held > strangers && wrong "held-out rows are not rows of the file"
says 'question + answer'
no_rests
end

begin "metrics are JSON, loss falls"
run train --model model --data run/metrics.jsonl --text-column step --skip-bad-lines --dry-run
status_is 0
says 'bad lines' # the last row has no step
awk -F'"loss": ' '/"loss": /{ split($2, v, ","); if (!n++) first = v[1]; last = v[1] }
    END { exit !(last < first && last > 0) }' run/metrics.jsonl ||
    wrong "the loss does not fall"
end

begin "aliases and both spellings"
run train --model_name_or_path model --train-file text.txt --output_dir alias --max_steps=2 \
    --batch-size 4 --lr 1e-3 --evaluation_strategy no --save-strategy no --optim adamw_torch \
    --max-seq-length 32
status_is 0
holds alias/model.safetensors
lacks alias/checkpoint-2
end

begin "dry run"
run train --model model --data text.txt --output-dir refused --block-size 32 --dry-run
status_is 0
lacks refused
says 'memory: '
says 'examples, .* tokens'
end

begin "eval --json"
run eval --model run --data run/eval.jsonl --json
status_is 0
[ "$(grep -c '' out)" = 1 ] || wrong "more than one line"
prints \
    '^{"loss": .*"perplexity": .*"tokens": .*"mean_perplexity": .*"perplexities": \['
prints '"texts": .*"bits_per_byte": .*"exact_match": '
awk -F'[:,] *' '{ d = exp($2) / $4 - 1; exit !(d < 1e-6 && d > -1e-6) }' out ||
    wrong "perplexity is not exp(loss)"
awk '{ sub(/.*"perplexities": \[/, ""); sub(/\].*/, ""); exit split($0, v, ",") != 5 }' out ||
    wrong "not a perplexity per text"
cp out after
run eval --model model --data run/eval.jsonl --json
awk -F'[:,] *' 'FNR == 1 { loss[NR] = $2 } END { exit !(loss[1] < loss[2]) }' after out ||
    wrong "training has not lowered the loss of held-out rows"
run eval --model run --data run/eval.jsonl
status_is 0
prints 'perplexity'
end

begin "run.json is read back"
echo '{"b": "on the mat", "a": "the cat sat"}' > columns.jsonl
run train --model model --data columns.jsonl --output-dir record --max-steps 1 --save-strategy \
    no \
    --template '{a}\n\\nu -> {b}' --train-on all --truncation left
status_is 0
run eval --model record --data columns.jsonl --json
status_is 0
says 'from template'
says '100.0% trained'
cp out from-record
run eval --model record --data columns.jsonl --json --template '{a}\n\\nu -> {b}' --train-on all
cmp -s from-record out || wrong "the template changes on its way through run.json"
printf '{a}\\nu -> {b}' > template # a file is taken as it is: here a backslash and an n
run train --model model --data columns.jsonl --output-dir record2 --max-steps 1 \
    --save-strategy no \
    --template @template
run eval --model record2 --data columns.jsonl --json
cp out from-record
run eval --model record2 --data columns.jsonl --json --template @template
cmp -s from-record out || wrong "the template of a file changes on its way through run.json"
run eval --model record --data columns.jsonl --template 'x{a}{b}' --train-on completion
status_is 0
grep -q '100.0% trained' err && wrong "options do not win over the record"
run train --config-file record/run.json --output-dir twin
status_is 0
same record/model.safetensors twin/model.safetensors
end

begin "the record covers eos"
run train --model model --data text.txt --output-dir no-eos --max-steps 1 --save-strategy no \
    --no-append-eos --max-length 32
says ' 0.0% end in eos'
run eval --model no-eos --data text.txt
status_is 0
says ' 0.0% end in eos'
end

begin "another tokenizer goes with the model"
run init --config config.json --output-dir bare
status_is 0
run train --model bare --tokenizer tok --data text.txt --output-dir dressed --max-steps 2 \
    --save-steps 1 --max-length 32
status_is 0
for dir in dressed dressed/checkpoint-2; do
    run generate --model $dir --prompt the --max-new-tokens 2
    status_is 0
done
end

begin "export"
for type in f32 f16 bf16 q8_0; do
    run export --model model --output gguf/of/$type.gguf --dtype $type
    status_is 0
    says "the model is in gguf/of/$type.gguf"
    [ ! -s out ] || wrong "something on standard output"
    [ "$(head -c 4 gguf/of/$type.gguf)" = GGUF ] || wrong "$type: no GGUF"
done
run export --model bare --tokenizer tok --output gguf/bare.gguf
status_is 0
grep -q '<|endoftext|>' gguf/bare.gguf || wrong "the tokenizer is not in it"
run export --model bare --output gguf/ids.gguf
status_is 0
says 'no tokenizer: gguf/ids.gguf will know ids only'
run export --model model --output gguf/copy.safetensors
status_is 0
same gguf/copy.safetensors model/model.safetensors # the type of the model, and its values
run export --model model --output gguf/plain --format safetensors
same gguf/plain model/model.safetensors
run export --model model --output gguf/plain --format gguf
status_is 1
says 'gguf/plain: is there already'
same gguf/plain model/model.safetensors
no_rests
end

begin "config file"
printf '{"model": "model", "data": ["text.txt"], "max_steps": 3,\n' > c.json
printf ' "save_strategy": "no",\n' >> c.json
printf ' "block_size": 32, "learning_rate": 1e-3, "no_shuffle": true}\n' >> c.json
run train --config-file c.json --output-dir from-file
status_is 0
run train --model model --data text.txt --max-steps 3 --save-strategy no --block-size 32 \
    --learning-rate 1e-3 --no-shuffle --output-dir from-options
same from-file/model.safetensors from-options/model.safetensors
run train --config-file c.json --output-dir from-both --max-steps 2
[ "$(grep -c '"loss"' from-both/metrics.jsonl)" = 2 ] || wrong "the later option does not win"
printf '{"modle": "x"}' > c.json
run train --config-file c.json
status_is 2
says 'did you mean --model?'
end

begin "threads and kernels do not change the model"
run train --model model --data text.txt --max-steps 3 --save-strategy no --block-size 32 \
    --learning-rate 1e-3 --no-shuffle --output-dir one-thread --threads 1
same from-options/model.safetensors one-thread/model.safetensors
run eval --model model --data text.txt --cpu reference --json
status_is 0
end

# -- generate ----------------------------------------------------------------------------------
begin "generate"
run generate --model run --prompt 'where is the cat 1?' --max-new-tokens 12
status_is 0
[ ! -s err ] || wrong "a note on standard error"
cp out plain
run generate --model run --prompt 'where is the cat 1?' --max-new-tokens 12 --threads 1
same plain out
run generate --model run --prompt 'where is the cat 1?' --max-new-tokens 12 --json
status_is 0
prints \
    '^{"prompt": "where is the cat 1?", "completion": ".*", "ids": \[.*\], "tokens_per_s'
[ "$(grep -c '' out)" = 1 ] || wrong "more than one line"
printf 'where is the cat 1?' > prompt
"$NEOXTUNE" generate --model run --max-new-tokens 12 < prompt > piped 2> err || wrong \
    "no prompt from a pipe"
same plain piped
end

begin "generate: sampling is repeatable"
run generate --model model --prompt 'the' --temperature 1 --seed 3 --max-new-tokens 20 --json
sed 's/, "tokens_per_second.*//' out > first
run generate --model model --prompt 'the' --temperature 1 --seed 3 --max-new-tokens 20 --json
sed 's/, "tokens_per_second.*//' out > second
run generate --model model --prompt 'the' --temperature 1 --seed 4 --max-new-tokens 20 --json
sed 's/, "tokens_per_second.*//' out > third
same first second
cmp -s first third && wrong "two seeds, the same text"
end

begin "generate: limits"
run generate --model model --prompt 'the' --max-new-tokens 3 --json
awk '{ sub(/.*"ids": \[/, ""); sub(/\].*/, ""); n = split($0, v, ",")
    exit n < 1 || n > 3 }' out ||
    wrong "more than three tokens"
run generate --model model --prompt 'the cat sat on the mat and then' --max-input-tokens 4 \
    --json \
    --max-new-tokens 2
status_is 0
awk 'BEGIN { for (i = 0; i < 200; i++) printf "long " }' > long
run generate --model model --prompt "$(cat long)" --max-new-tokens 2
status_is 0
run generate --model model --prompt '' --max-new-tokens 2
status_is 0
end

# The bytes that a model draws need not be UTF-8; what is printed as JSON must be. The JSON
# reader of the program refuses invalid UTF-8 and invalid JSON, so it is the judge.
begin "generate --json is JSON whatever is drawn"
awk 'BEGIN { for (i = 0; i < 8; i++) print "prompt " i " \"quoted\" \\ back" }' > prompts.txt
run generate --model model --prompts prompts.txt --temperature 3 --max-new-tokens 30 --json
status_is 0
[ "$(grep -c '' out)" = 8 ] || wrong "not a line per prompt"
cp out drawn.jsonl
run train --model model --data drawn.jsonl --dry-run --no-append-eos --max-length 64
status_is 0
end

begin "generate: the prompt is kept whole as long as one token fits"
run generate --model model --prompt "the cat sat on the mat" --max-new-tokens 8 --json
status_is 0
sed 's/.*"ids": \[//; s/\].*//' out > few
run generate --model model --prompt "the cat sat on the mat" --max-new-tokens 4096 --json
status_is 0
[ ! -s err ] || wrong "a warning about a prompt that fits"
sed 's/.*"ids": \[//; s/\].*//' out > many
case "$(cat many)" in "$(cat few)"*) ;; *) wrong "other tokens with a larger limit" ;; esac
[ "$(tr ',' '\n' < many | grep -c '')" -gt 20 ] || wrong "the context was not filled"
run generate --model model --prompt "$(cat text.txt)" --max-new-tokens 5
status_is 0
says '^warning: 1 prompt was longer than the context of 64 tokens and lost the beginning$'
end

misused "no new token" 'max-new-tokens: at least 1' generate --model model --prompt x \
    --max-new-tokens 0
misused "an empty stop text" 'stop: an empty text' generate --model model --prompt x --stop ''
begin "tokenize: an id that no token has"
echo "5 99999" | "$NEOXTUNE" tokenize --model model --decode > out 2> err
[ $? = 1 ] || wrong "not refused"
says '^neoxtune: not a token id: "99999"$'
end

begin "-h is --help"
run -h
status_is 0
run train -h
status_is 0
prints '--learning-rate'
end

begin "generate: prompts from rows and lines"
printf '{"question": "where is the cat 1?"}\n{"question": "where is the hen 3?"}\n' > rows.jsonl
run generate --model run --prompts rows.jsonl --prompt-column question --completion-column \
    answer \
    --max-new-tokens 12 --json
status_is 0
[ "$(grep -c '' out)" = 2 ] || wrong "not a line per row"
prints '^{"prompt": "where is the hen 3?"'
run generate --model run --prompts pairs.jsonl --max-new-tokens 1 --json
[ "$(grep -c '' out)" = 60 ] || wrong "not a line per row with its completion"
prints '^{"prompt": "where is the cat 0?"'
# Side by side or alone: the same tokens.
run generate --model run --prompts pairs.jsonl --max-new-tokens 8 --json
sed 's/.*"ids"/"ids"/; s/, "tokens_per.*//' out > together
first=$(sed -n '20s/^{"prompt": "\(.*\)", "completion".*/\1/p' out)
run generate --model run --prompt "$first" --max-new-tokens 8 --json
sed 's/.*"ids"/"ids"/; s/, "tokens_per.*//' out > alone
[ "$(cat alone)" = "$(sed -n 20p together)" ] || wrong "neighbours change an answer"
(cat long; echo; echo short) > long-prompts.txt
run generate --model run --prompts long-prompts.txt --max-new-tokens 6 --json
status_is 0
[ "$(grep -c '' out)" = 2 ] || wrong "not a line per prompt"
awk 'NR == 1 { sub(/.*"ids": \[/, ""); sub(/\].*/, ""); exit split($0, v, ",") < 3 }' out ||
    wrong "a long prompt leaves no room for an answer"
end

begin "generate: stop texts"
run generate --model run --prompt 'where is the hen 3?' --max-new-tokens 20 --json
text=$(sed 's/.*"completion": "//; s/", "ids".*//' out)
run generate --model run --prompt 'where is the hen 3?' --max-new-tokens 20 --stop the --json
cut=$(sed 's/.*"completion": "//; s/", "ids".*//' out)
case $text in
*the*) [ "$cut" = "${text%%the*}" ] || wrong "\"$cut\" is not \"$text\" up to the stop text" ;;
*) [ "$cut" = "$text" ] || wrong "a stop text that does not occur changes the text" ;;
esac
end

# -- tokenize ----------------------------------------------------------------------------------
begin "tokenize"
printf 'the cat' > t
run tokenize --model model t
status_is 0
[ "$(cat out)" = "117 258 33 100 265" ] || [ "$(cat out)" = "117 258 33 100 264" ] || wrong \
    "ids: $(cat out)"
"$NEOXTUNE" tokenize --tokenizer tok/tokenizer.json < t > piped 2> err || wrong \
    "no ids from a pipe"
same out piped
run tokenize --model model --count t
[ "$(cat out)" = 5 ] || wrong "--count: $(cat out)"
printf 'the\n\nin' > t
run tokenize --model model --lines t
[ "$(cat out)" = "117 258

260" ] || wrong "--lines: $(cat out)"
run tokenize --model model t
[ "$(grep -c '' out)" = 1 ] || wrong "the whole input is one text"
end

begin "tokenize: every byte comes back"
awk 'BEGIN { for (b = 0; b < 256; b++) printf "%c", b
    for (b = 255; b > 0; b -= 3) printf "%c%c", b, 65
    printf "the cat in the \303\251 inn\r\n" }' > bytes
run tokenize --model model bytes
status_is 0
cp out ids
run tokenize --model model --decode ids
status_is 0
same out bytes
if [ -f ../../data/pico-neox/tokenizer.json ]; then
    printf 'Caf\303\251  \t na\303\257ve <|endoftext|> 12345   end\377\376 ' > bytes
    printf '\360\237\230\200' >> bytes
    run tokenize --tokenizer ../../data/pico-neox/tokenizer.json bytes
    status_is 0
    cp out ids
    run tokenize --tokenizer ../../data/pico-neox/tokenizer.json --decode ids
    same out bytes
fi
printf '1 2 x' > ids
run tokenize --model model --decode ids
status_is 1
says 'not a token id: "x"'
: > t
run tokenize --model model t
status_is 0
end

begin "eval --json is JSON with an empty text"
printf '{"text": ""}\n{"text": "the cat"}\n' > hollow.jsonl
run eval --model model --data hollow.jsonl --json
status_is 0
cp out numbers.jsonl
run train --model model --data numbers.jsonl --text-column loss --dry-run
status_is 0
end

if [ -w /dev/full ]; then
    begin "standard output cannot be written"
    for command in "eval --model model --data text.txt --json" \
        "generate --model model --prompt the" \
        "info --model model" "tokenize --model model text.txt"; do
        status=0
        "$NEOXTUNE" $command > /dev/full 2> err < /dev/null || status=$?
        status_is 1
        says '^neoxtune: .*cannot write'
    done
    end
else
    skip "standard output cannot be written" "there is no /dev/full"
fi

# -- What is refused: models -------------------------------------------------------------------
mkdir d.txt
awk 'BEGIN { for (i = 0; i < 90; i++) printf "x%d ", i }' > long.txt
printf PAR1 > x.parquet
echo short > short.txt
train_from() { echo train --data text.txt --output-dir refused --max-steps 1 --model; }
copy() { rm -rf "$1" && cp -r model "$1"; }

refused "no model" 'nowhere: no such model' $(train_from) nowhere
refused "a directory without config" 'tok: .*config.json' $(train_from) tok
copy broken
rm broken/model.safetensors
refused "no weights" 'broken: no weights' $(train_from) broken
copy broken
config broken/config.json ', "model_type": "bert"'
refused "model_type" 'broken/config.json: model_type "bert" is not supported' $(train_from) \
    broken
config broken/config.json ', "hidden_act": "swishy"'
refused "activation" 'broken/config.json: activation "swishy" is not supported' $(train_from) \
    broken
config broken/config.json ', "num_attention_heads": 5'
refused "heads that do not divide" 'broken/config.json: impossible sizes' $(train_from) broken
config broken/config.json ', "hidden_size": "wide"'
refused "a size that is text" 'broken/config.json: "hidden_size" is not a number' \
    $(train_from) broken
config broken/config.json ', "hidden_size": 64, "intermediate_size": 128'
refused "wrong shape" 'broken/model.safetensors: .*gpt_neox.* 32.*config.* 64' $(train_from) \
    broken
config broken/config.json ', "num_hidden_layers": 3'
refused "a tensor is missing" 'broken: .*gpt_neox.layers.2.*missing' $(train_from) broken
printf '{"model_type": "gpt_neox",\n  "vocab_size": 272,,\n}' > broken/config.json
refused "bad JSON" 'broken/config.json:2:21: ' $(train_from) broken
printf '{"model_type": "gpt_neox\377"}' > broken/config.json
refused "invalid UTF-8 in JSON" 'broken/config.json:1:25: invalid UTF-8' $(train_from) broken
copy broken
: > broken/config.json
refused "an empty config" 'broken/config.json:1:1: ' $(train_from) broken

copy broken
size=$(wc -c < model/model.safetensors)
head -c $((size - 100)) model/model.safetensors > broken/model.safetensors
refused "a truncated file" 'broken/model.safetensors: .*cut short' $(train_from) broken
head -c 200 model/model.safetensors > broken/model.safetensors
refused "a truncated header" 'broken/model.safetensors: .*cut short' $(train_from) broken
: > broken/model.safetensors
refused "an empty file" 'broken/model.safetensors: ' $(train_from) broken
(cat model/model.safetensors; printf 'xxxx') > broken/model.safetensors
refused "bytes behind the last tensor" 'model.safetensors: 4 bytes follow' $(train_from) broken

# entry NAME TYPE SHAPE BEGIN END: a member of the header
entry() {
    printf '"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%s,%s]}' "$1" "$2" "$3" "$4" "$5"
}
safetensors() { # ENTRIES: the model's file holds these tensors, and 16 bytes of data
    header="{$1}"
    n=${#header}
    {
        printf "$(printf '\\%03o\\%03o' $((n % 256)) $((n / 256)))\\0\\0\\0\\0\\0\\0"
        printf '%s' "$header"
        head -c 16 /dev/zero
    } > broken/model.safetensors
}
E=gpt_neox.embed_in.weight
safetensors "$(entry $E F32 2,2 0 16),$(entry b F32 2 8 16)"
refused "overlapping tensors" 'model.safetensors: tensor b: overlaps' $(train_from) broken
safetensors "$(entry $E F32 99999 0 399996)"
refused "a tensor beyond the file" "tensor $E: ends at byte 399996 of 16" $(train_from) broken
safetensors "$(entry $E F32 3 0 16)"
refused "a size that lies" "tensor $E: has 16 bytes where dtype and shape need 12" \
    $(train_from) broken
safetensors "$(entry $E I32 4 0 16)"
refused "a type weights do not have" "tensor \"$E\" has type I32" $(train_from) broken

# -- What is refused: tokenizers and data ------------------------------------------------------
copy broken
rm broken/tokenizer.json
refused "no tokenizer" 'broken: .*tokenizer.json' $(train_from) broken
printf '{"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "Unigram"}}' \
    > broken/tokenizer.json
refused "another tokenizer" 'broken/tokenizer.json: .*Unigram.* not supported' $(train_from) \
    broken
printf '{"model": ' > broken/tokenizer.json
refused "a tokenizer that is cut" 'broken/tokenizer.json:1:1[0-9]: ' $(train_from) broken

data() { echo train --model model --output-dir refused --max-steps 1 --data; }
refused "no data file" 'nowhere.txt: cannot open' $(data) nowhere.txt
refused "a directory as data" 'd.txt: not a regular file' $(data) d.txt --max-length 8
: > empty.txt
refused "an empty text" 'empty.txt: no data' $(data) empty.txt
printf '\n\n' > empty.jsonl
refused "an empty table" 'empty.jsonl: no data' $(data) empty.jsonl
printf '{"text": "a"}\n{"text": "b",}\n' > bad.jsonl
refused "bad JSON in a row" 'bad.jsonl:2:14: ' $(data) bad.jsonl
printf '{"text": "a"}\n{"text": "\377"}\n' > bad.jsonl
refused "invalid UTF-8 in a row" 'bad.jsonl:2:11: invalid UTF-8' $(data) bad.jsonl
refused "a column that is not there" \
    'pairs.jsonl:1: no column "body"; the columns are: question, answer' \
    $(data) pairs.jsonl --text-column body
printf '{"body": "x", "title": "y"}\n' > odd.jsonl
refused "no column that is known" 'odd.jsonl:1: .*the columns are: body, title' $(data) \
    odd.jsonl
refused "a template's column" 'no column "place"; the columns are: question, answer' \
    $(data) pairs.jsonl --template '{question} {place}'
refused "a kind of file" 'x.parquet' $(data) x.parquet
refused "too little for a block" 'do not fill one block of 60' $(data) short.txt --block-size 60
refused "too long, and not to be cut" 'pairs.jsonl:1: .* the limit is 5' $(data) pairs.jsonl \
    --max-length 5 --truncation error
config small.json ', "vocab_size": 100'
"$NEOXTUNE" init --config small.json --tokenizer tok --output-dir narrow 2> err || cat err
refused_late() { # as refused, but the report of the data comes first
    begin "refused: $1"
    pattern=$2
    shift 2
    rm -rf refused
    run "$@"
    status_is 1
    grep '^neoxtune: ' err > line
    [ "$(grep -c '' line)" = 1 ] || wrong "not one line of the program's name"
    grep -q -e "$pattern" line || wrong "the line does not say: $pattern"
    lacks refused/model.safetensors
    no_rests
    end
}
refused_late "tokens beyond the vocabulary" 'token [0-9]* .*vocabulary of 100' \
    train --model narrow --data text.txt --output-dir refused --max-steps 1
refused "a block beyond the positions" 'block-size 65: the model in model has 64 positions' $(data) text.txt \
    --block-size 65
refused_late "an example beyond the positions" 'longer than the model.s 64 positions' \
    $(data) long.txt --max-length 100
begin "refused by a dry run too"
for wrong_option in "--per-device-train-batch-size 0" "--adam-beta1 1.5" "--num-train-epochs 0" \
    "--gradient-accumulation-steps 0" "--block-size 512" "--max-length 512"; do
    text=text.txt
    case $wrong_option in --max-length*) text=long.txt ;; esac
    run train --model model --data $text --dry-run $wrong_option
    status_is 1
done
end

begin "kernels and threads of a config file"
echo '{"threads": 0}' > none.json
run info --model model --config-file none.json
status_is 2
says 'threads: a number of at least 1'
echo '{"cpu": "bogus"}' > bogus.json
run info --model model --config-file bogus.json
status_is 2
says '"bogus" is none of reference'
end

begin "the model is never the output"
cp -r model itself
run train --model itself --data pairs.jsonl --max-steps 2 --output-dir itself \
    --overwrite-output-dir
status_is 1
says 'itself: lies in the output directory'
same itself/model.safetensors model/model.safetensors
end

refused "eval: no data file" 'nowhere.txt: cannot open' eval --model model --data nowhere.txt
refused "generate: no prompts" 'nowhere.txt: cannot open' generate --model model --prompts \
    nowhere.txt
refused "tokenize: no file" 'nowhere.txt: cannot open' tokenize --model model nowhere.txt
refused "export: no model" 'nowhere: no such model directory' export --model nowhere \
    --output refused/x.gguf
refused "export: no tokenizer" 'nowhere: no tokenizer.json' export --model model --tokenizer \
    nowhere --output refused/x.gguf
refused "export: no format" 'format "" *: gguf and safetensors' export --model model \
    --output refused/x
refused "init: no config" 'nowhere.json: cannot open' init --config nowhere.json --output-dir \
    refused
refused "init: no tokenizer" 'nowhere.json: cannot open' \
    init --config config.json --tokenizer nowhere.json --output-dir refused
refused "a config file that is not there" 'nowhere.json: cannot open' train --config-file \
    nowhere.json
refused_late "resuming nothing" 'refused: no checkpoint' $(data) text.txt \
    --resume-from-checkpoint last
misused "no such kernels" 'pentium.*reference' info --model model --cpu pentium
misused "no such kernels, the other spelling" 'pentium' info --model model --cpu=pentium

if [ "$(id -u)" = 0 ]; then
    skip "refused: an unreadable file" "the superuser reads everything"
else
    cp text.txt secret.txt
    chmod 000 secret.txt
    refused "an unreadable file" 'secret.txt: cannot open: Permission denied' $(data) secret.txt
fi

# -- Where results go --------------------------------------------------------------------------
mkdir used
echo mine > used/notes.txt
cp used/notes.txt notes
begin "refused: a directory that is not empty"
run $(data) text.txt --output-dir used
status_is 1
says 'used: not empty; --overwrite-output-dir'
same used/notes.txt notes
lacks used/metrics.jsonl
run init --config config.json --output-dir used
status_is 1
says 'used: not empty'
run $(data) text.txt --output-dir used --overwrite-output-dir
status_is 0
holds used/model.safetensors
same used/notes.txt notes
end

echo x > wall
begin "refused: the model lies where results go"
from=$(ls -d run/checkpoint-* | head -1)
run $(data) text.txt --model "$from" --output-dir run --overwrite-output-dir
status_is 1
holds "$from/model.safetensors"
holds run/checkpoint-10/model.safetensors
end

begin "refused: numbers that make no sense"
for bad in "--num-train-epochs inf" "--num-train-epochs 1e300" "--num-train-epochs 0" \
    "--seed 1e300" "--warmup-ratio 7" "--eval-split -1" "--eval-split 1.5" "--eval-split nan" \
    "--per-device-train-batch-size 0" \
    "--per-device-train-batch-size 9e15 --gradient-accumulation-steps 9e15" \
    "--gradient-accumulation-steps -1" "--max-train-samples -5" "--learning-rate nan" \
    "--learning-rate -1" "--max-length -3" "--block-size -3" "--threads -1"; do
    rm -rf refused
    run train --model model --data text.txt --output-dir refused $bad
    case $status in 1 | 2) ;; *) wrong "$bad: exit status $status" ;; esac
    [ "$(grep -c '^neoxtune: ' err)" = 1 ] || wrong "$bad: not one line of the program's name"
    [ ! -s refused/metrics.jsonl ] || wrong "$bad: it trained"
done
rm -rf refused
end

begin "refused: before training, not after it"
run $(data) text.txt --dtype f8
[ $status != 0 ] || wrong "a type that is none is accepted"
[ ! -s refused/metrics.jsonl ] || wrong "it trained before it looked"
rm -rf refused
run $(data) text.txt --eval-data text.txt --per-device-eval-batch-size 0
[ $status != 0 ] || wrong "a batch of nothing is accepted"
[ ! -s refused/metrics.jsonl ] || wrong "it trained before it looked"
rm -rf refused
end

begin "refused: a file in the way"
run export --model model --output wall/deep.gguf
status_is 1
says 'wall: '
for dir in wall wall/deep; do
    run $(data) text.txt --output-dir $dir
    status_is 1
    says "wall.*: "
    [ "$(grep -c '^neoxtune: ' err)" = 1 ] || wrong "not one line of the program's name"
done
[ "$(cat wall)" = x ] || wrong "the file was changed"
run init --config config.json --output-dir wall/deep
status_is 1
end

# Files of at most 100 KB: the optimizer's is larger. XFSZ is ignored, so that write() fails.
begin "the disk refuses while saving"
(
    trap '' XFSZ
    ulimit -f 200
    "$NEOXTUNE" train --model model --data text.txt --output-dir limited --max-steps 4 \
        --save-steps 2 \
        > out 2> err < /dev/null
    echo $? > code
)
status=$(cat code)
status_is 1
says '^neoxtune: .*limited/.*cannot write: '
[ "$(grep -c '^neoxtune: ' err)" = 1 ] || wrong "not one line of the program's name"
lacks limited/checkpoint-2
lacks limited/model.safetensors
no_rests
end

# A file system with room for one checkpoint.
mkdir small
if mount -t tmpfs -o size=1000k none small 2> /dev/null; then
    begin "the disk is full while saving"
    run train --model model --data text.txt --output-dir small/run --max-steps 6 --save-steps \
        2 \
        --learning-rate 1e-3
    status_is 1
    says '^neoxtune: .*disk full'
    holds small/run/checkpoint-2/trainer_state.json
    lacks small/run/checkpoint-4
    no_rests
    cp -r small/run/checkpoint-2 saved-2
    run train --model model --data text.txt --output-dir roomy --max-steps 6 --save-steps 2 \
        --learning-rate 1e-3 --resume-from-checkpoint saved-2
    status_is 0
    run train --model model --data text.txt --output-dir straight --max-steps 6 \
        --save-strategy no \
        --learning-rate 1e-3
    same roomy/model.safetensors straight/model.safetensors
    end
    umount small
else
    skip "the disk is full while saving" "no small file system can be mounted"
fi

# The plan is larger than the address space: the first refusal ends the run.
if (ulimit -v 60000 && "$NEOXTUNE" --version) > /dev/null 2>&1; then
    config big.json ', "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8000'
    "$NEOXTUNE" init --config big.json --tokenizer tok --output-dir big --dtype f16 2> err ||
        cat err
    begin "out of memory"
    (
        ulimit -v 90000
        "$NEOXTUNE" train --model big --data text.txt --output-dir refused --max-steps 1 \
            --threads 1 \
            > out 2> err < /dev/null
        echo $? > code
    )
    status=$(cat code)
    status_is 1
    says '^neoxtune: out of memory'
    lacks refused/model.safetensors
    end
else
    skip "out of memory" "the program does not start with 60 MB of addresses"
fi

# Caches are made for what is asked, not for every position the model could have.
if (ulimit -v 600000 && "$NEOXTUNE" --version) > /dev/null 2>&1; then
    begin "eval: memory follows the data"
    config long.json ', "max_position_embeddings": 200000'
    run init --config long.json --tokenizer tok --output-dir far
    (
        ulimit -v 600000
        "$NEOXTUNE" eval --model far --data pairs.jsonl --max-eval-samples 20 --threads 1 \
            --max-new-tokens 4 > out 2> err < /dev/null
        echo $? > code
    )
    status=$(cat code)
    status_is 0
    prints 'exact match'
    end
else
    skip "eval: memory follows the data" "the program does not start with 600 MB of addresses"
fi

# -- Interrupted, and on -----------------------------------------------------------------------
# SIGINT while training saves and exits 130; resumed, the run is the one that was never stopped.
long_run() { # STEPS DIRECTORY MORE
    steps=$1 dir=$2
    shift 2
    ${background:+exec} "$NEOXTUNE" train --model half --data pairs.jsonl --output-dir "$dir" \
        --max-steps "$steps" \
        --per-device-train-batch-size 4 --gradient-accumulation-steps 4 --logging-steps 3 \
        --learning-rate 3e-3 --warmup-steps 5 --save-steps 100000 --eval-data text.txt \
        --eval-strategy steps --eval-steps 20 "$@"
}
timeless() { grep -v train_runtime "$1" | sed \
    's/"tokens_per_second": [^,]*, //; s/, "eval_runtime.*//'; }

begin "SIGINT, and resumed to the same bits"
status=0
for steps in ${quick:+60} 120 600 3000; do # until the signal comes before the end
    rm -rf stopped
    background=1 # the child shall be the program itself, or the signal would miss it
    long_run $steps stopped > out 2> err < /dev/null &
    child=$! background=
    waited=0
    while [ $waited -lt 600 ]; do # for some rows: by then it listens
        rows=$(grep -c '' stopped/metrics.jsonl 2> /dev/null)
        [ "${rows:-0}" -lt 3 ] || break
        sleep 0.05 2> /dev/null || sleep 1
        waited=$((waited + 1))
    done
    kill -INT $child 2> /dev/null
    wait $child
    status=$?
    [ $status = 0 ] || break
done
status_is 130
says 'interrupted: checkpoint-[0-9]* is saved'
[ "$(ls -d stopped/checkpoint-* | grep -c '')" = 1 ] || wrong "not one checkpoint"
lacks stopped/model.safetensors
no_rests
long_run $steps stopped --resume-from-checkpoint last > out 2> err < /dev/null || wrong \
    "cannot resume"
long_run $steps never-stopped > out 2> err < /dev/null || wrong "cannot train"
same stopped/model.safetensors never-stopped/model.safetensors
timeless stopped/metrics.jsonl > a
timeless never-stopped/metrics.jsonl > b
same a b
[ "$(grep -c '"loss"' a)" -ge $((steps / 3)) ] || wrong "rows are missing"
end

begin "resuming another run is refused"
run train --model half --data pairs.jsonl --output-dir stopped --max-steps 7 \
    --resume-from-checkpoint last
status_is 1
says 'trainer_state.json: the checkpoint was made with other data or other training options'
end

begin "best model, rotation"
run train --model model --data pairs.jsonl --output-dir best --max-steps 8 --save-steps 2 \
    --eval-split 0.2 --eval-strategy steps --eval-steps 2 --save-total-limit 2 \
    --load-best-model-at-end --learning-rate 0.3 --lr-scheduler-type constant
status_is 0
[ "$(ls -d best/checkpoint-* | grep -c '')" -le 2 ] || wrong "more than two checkpoints"
step=$(awk -F'[:,] *' '/eval_loss/ { for (i = 1; i < NF; i++) if ($i ~ /eval_loss/) l = $(i + 1)
    if (!n++ || l < best) { best = l; at = $2 } } END { print at }' best/metrics.jsonl)
same "best/checkpoint-$step/model.safetensors" best/model.safetensors
end

begin "a checkpoint knows how its data was made"
run eval --json --model run/checkpoint-5 --data pairs.jsonl
status_is 0
cp out inside
mkdir -p moved
cp -r run/checkpoint-5 moved/model
cp run/run.json moved/model
run eval --json --model moved/model --data pairs.jsonl
same out inside
end

begin "damaged optimizer state is refused"
run train --model half --data pairs.jsonl --output-dir damaged --max-steps 4 --save-steps 2
status_is 0
at=$(($(wc -c < damaged/checkpoint-2/optimizer.safetensors) - 40))
cp damaged/checkpoint-2/optimizer.safetensors whole.safetensors
printf '\001' | dd of=damaged/checkpoint-2/optimizer.safetensors bs=1 seek=$at conv=notrunc 2> /dev/null
cmp -s whole.safetensors damaged/checkpoint-2/optimizer.safetensors && wrong "nothing was changed"
run train --model half --data pairs.jsonl --output-dir damaged --max-steps 4 --save-steps 2 \
    --resume-from-checkpoint damaged/checkpoint-2
status_is 1
says 'optimizer.safetensors: damaged: its values add up to'
end

begin "what a killed save left is removed"
mkdir -p damaged/checkpoint-9.tmp-999999999-0/x damaged/checkpoint-9.tmp-$$-0 damaged/mine.tmp-x
run train --model half --data pairs.jsonl --output-dir damaged --max-steps 1 --overwrite-output-dir
status_is 0
lacks damaged/checkpoint-9.tmp-999999999-0
holds damaged/checkpoint-9.tmp-$$-0
holds damaged/mine.tmp-x
rm -r damaged
end

begin "a limit on the size of files while saving"
(ulimit -f 64; "$NEOXTUNE" train --model model --data pairs.jsonl --output-dir limited-file \
    --max-steps 2 > out 2> err)
[ $? = 1 ] || wrong "not an error"
says '^neoxtune: .*: cannot write: '
lacks limited-file/model.safetensors
no_rests
end

begin "streamed text is UTF-8 whatever is drawn"
for seed in 1 2 3 4 5 6 7 8 9 10 11 12; do
    run generate --model model --prompt Once --max-new-tokens 3 --temperature 500 --seed $seed
    status_is 0
    cat out >> streamed
done
awk '{ gsub(/["\\]/, ""); gsub(/[\001-\037\177]/, "?"); printf "{\"text\": \"x%s\"}\n", $0 }' streamed > streamed.jsonl
run train --model model --data streamed.jsonl --dry-run
status_is 0
end

begin "--top-k and --top-p draw, by seed"
run generate --model model --prompt Once --json
cp out greedy
run generate --model model --prompt Once --json --top-k 40 --seed 3
sed 's/"tokens_per_second.*//' out > one
run generate --model model --prompt Once --json --top-k 40 --seed 3
sed 's/"tokens_per_second.*//' out > two
same one two
sed 's/"tokens_per_second.*//' greedy > three
cmp -s one three && wrong "--top-k alone is greedy"
run generate --model model --prompt Once --json --top-p 0.95 --seed 3
sed 's/"tokens_per_second.*//' out > one
cmp -s one three && wrong "--top-p alone is greedy"
end

begin "--top-p draws by seed"
for seed in 1 2 3; do
    for turn in one two; do
        run generate --model model --prompt Once --json --top-p 0.95 --seed $seed
        status_is 0
        sed 's/"tokens_per_second.*//' out > $turn
    done
    same one two
    cat one >> drawn-p
done
[ "$(sort -u drawn-p | grep -c '')" = 3 ] || wrong "seeds draw the same"
run generate --model model --prompt Once --json --top-k 1 --seed 3 # one choice: greedy
sed 's/"tokens_per_second.*//' out > one
same one three
end

begin "--max-input-tokens keeps the last tokens"
ids() { sed 's/.*"ids": \[//; s/\].*//' out; }
prompt='the cat sat on the mat and then'
printf '%s' "$prompt" > t
run tokenize --model model t
tr ' ' '\n' < out | tail -5 | tr '\n' ' ' > last
run tokenize --model model --decode last
cut=$(cat out; echo x) cut=${cut%x}
run generate --model model --prompt "$prompt" --max-new-tokens 20 --max-input-tokens 5 --json
status_is 0
prints "^{\"prompt\": \"$prompt\""
ids > kept-last
run generate --model model --prompt "$cut" --max-new-tokens 20 --json
ids > short-prompt
run generate --model model --prompt "$prompt" --max-new-tokens 20 --json
ids > whole-prompt
run generate --model model --prompt "$prompt" --max-new-tokens 20 --max-input-tokens 50 --json
ids > kept-all
same kept-last short-prompt
same kept-all whole-prompt
cmp -s kept-last whole-prompt && wrong "--max-input-tokens has no effect"
end

# Two rows have nothing to train on, three completions are longer than ten tokens.
begin "examples that teach nothing and completions that are cut are counted"
awk 'BEGIN {
    for (i = 0; i < 2; i++) print "{\"question\": \"a cat\", \"answer\": \"\"}"
    for (i = 0; i < 3; i++) print "{\"question\": \"b\", \"answer\": \"0123456789012345\"}"
    for (i = 0; i < 4; i++) print "{\"question\": \"c\", \"answer\": \"xyz\"}"
}' > uneven.jsonl
for command in "train --dry-run" eval; do
    run $command --model model --data uneven.jsonl --max-length 10 --no-append-eos
    status_is 0
    label=${command%% *}
    says "^warning: $label: 2 examples have no token to train on\$"
    says "^warning: $label: 3 completions were longer than the limit and cut\$"
    [ "$(grep -c '^warning' err)" = 2 ] || wrong "$(grep -c '^warning' err) warnings, expected 2"
    run $command --model model --data uneven.jsonl --no-append-eos --max-length 40
    says '2 examples have no token'
    grep -q 'and cut' err && wrong "$label: nothing is cut at 40 tokens"
    run $command --model model --data pairs.jsonl
    grep -q '^warning' err && wrong "$label: a warning without a reason"
done
run train --dry-run --model model --data pairs.jsonl --eval-data uneven.jsonl --no-append-eos
says '^warning: eval: 2 examples have no token to train on$'
end

begin "the memory line counts evaluation"
total() { sed -n 's/^memory: \([0-9.]*\) MB .*/\1/p' err; }
run train --dry-run --model model --data pairs.jsonl
total > without
run train --dry-run --model model --data pairs.jsonl --eval-data pairs.jsonl \
    --per-device-eval-batch-size 60
total > with
awk 'NR == 1 { a = $1 } END { exit !(a > 0 && $1 > a * 1.02) }' without with ||
    wrong "evaluation costs no memory: $(cat without) and $(cat with) MB"
end

# A sparse file of a terabyte: sixteen bytes a parameter are more than any machine has.
if [ -r /proc/meminfo ]; then
    mkdir vast
    cp tok/* vast
    config vast/config.json ', "vocab_size": 1000000000, "hidden_size": 512,
 "intermediate_size": 4, "num_hidden_layers": 1, "tie_word_embeddings": true'
    at=0 header=
    while read -r tensor rows cols; do
        end=$((at + 2 * rows * ${cols:-1}))
        header="$header,\"gpt_neox.$tensor\":{\"dtype\":\"F16\",\"shape\":[$rows${cols:+,$cols}]"
        header="$header,\"data_offsets\":[$at,$end]}" at=$end
    done << END
embed_in.weight 1000000000 512
layers.0.input_layernorm.weight 512
layers.0.input_layernorm.bias 512
layers.0.attention.query_key_value.weight 1536 512
layers.0.attention.query_key_value.bias 1536
layers.0.attention.dense.weight 512 512
layers.0.attention.dense.bias 512
layers.0.post_attention_layernorm.weight 512
layers.0.post_attention_layernorm.bias 512
layers.0.mlp.dense_h_to_4h.weight 4 512
layers.0.mlp.dense_h_to_4h.bias 4
layers.0.mlp.dense_4h_to_h.weight 512 4
layers.0.mlp.dense_4h_to_h.bias 512
final_layer_norm.weight 512
final_layer_norm.bias 512
END
    header="{${header#,}}"
    n=${#header}
    {
        printf "$(printf '\\%03o\\%03o' $((n % 256)) $((n / 256)))\\0\\0\\0\\0\\0\\0"
        printf '%s' "$header"
    } > vast/model.safetensors
    if dd if=/dev/null of=vast/model.safetensors bs=1 seek=$((8 + n + at)) 2> /dev/null; then
        rm -rf refused
        pattern='this run needs 8[0-9.]* TB of memory and the machine has .* free: use a smaller'
        refused_late "more memory than there is" "$pattern" $(train_from) vast
        refused_late "more memory than there is, dry run" "$pattern" $(train_from) vast --dry-run
        begin "nothing was written before the refusal"
        lacks refused
        [ "$(grep -c '' err)" = 3 ] || wrong "more than data, memory and the refusal"
        end
    else
        skip "refused: more memory than there is" "no sparse file of a terabyte"
    fi
    rm -r vast
else
    skip "refused: more memory than there is" "the system does not say how much there is"
fi

begin "a profile of a run, which changes nothing"
run train --model model --data pairs.jsonl --output-dir unprofiled --max-steps 4 --save-strategy no
status_is 0
run train --model model --data pairs.jsonl --output-dir profiled --max-steps 4 \
    --save-strategy no --profile
status_is 0
says "^Y = X W' "
says '^attention_bwd .* GFLOP/s'
says '^adamw .* GB/s'
same unprofiled/model.safetensors profiled/model.safetensors
end

# -- Adapters and frozen weights ----------------------------------------------------------------
begin "adapters: trained, resumed, asked, merged"
lora() {
    run train --model model --data pairs.jsonl --max-steps 6 --save-steps 3 --learning-rate 1e-2 \
        --lora-r 4 --lora-dropout 0.1 --lora-target-modules dense,query_key_value "$@"
    status_is 0
}
lora --output-dir adapted
holds adapted/adapter_model.safetensors
lacks adapted/model.safetensors
says 'the adapters are in adapted'
holds adapted/checkpoint-3/optimizer.safetensors
cp -r adapted/checkpoint-3 adapted-half
lora --output-dir adapted2 --resume-from-checkpoint adapted-half
same adapted/adapter_model.safetensors adapted2/adapter_model.safetensors
run eval --json --adapter adapted --data pairs.jsonl
status_is 0
adapted=$(sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' out)
run eval --json --model model --data pairs.jsonl
plain=$(sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' out)
run merge --adapter adapted --output-dir merged --dtype f32
status_is 0
run export --model merged --output gguf/merged.gguf
run export --adapter adapted --model model --output gguf/adapted.gguf --dtype f32
status_is 0
same gguf/adapted.gguf gguf/merged.gguf
run eval --json --model merged --data pairs.jsonl
merged=$(sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' out)
awk "BEGIN { d = $adapted - $merged; exit !(d < 1e-4 && d > -1e-4 && $adapted < $plain) }" ||
    wrong "losses: base $plain, adapted $adapted, merged $merged"
run generate --adapter adapted --prompt a --max-new-tokens 2
status_is 0
run train --model model --adapter adapted --data pairs.jsonl --max-steps 1 --output-dir further
status_is 0
holds further/adapter_model.safetensors
end

begin "refused: adapters that fit nothing"
run train --model model --adapter adapted --data pairs.jsonl --output-dir adapted \
    --overwrite-output-dir --max-steps 1
status_is 1
says 'adapted: lies in the output directory'
run train --model model --data pairs.jsonl --output-dir refused --lora-r 4 \
    --lora-target-modules c_attn
status_is 1
says 'no linear layer of the model ends in any of "c_attn"'
run train --model model --data pairs.jsonl --output-dir refused --lora-dropout 0.1
status_is 2
says 'LoRA options need --lora-r'
run eval --model model --adapter model --data pairs.jsonl
status_is 1
says 'model/adapter_config.json: cannot open'
cp -r adapted other
sed 's/"use_dora": false/"use_dora": true/' adapted/adapter_config.json > other/adapter_config.json
run eval --model model --adapter other --data pairs.jsonl
status_is 1
says '"use_dora" is not supported'
run merge --model model --output-dir refused
status_is 2
lacks refused
end

begin "frozen parameters"
run train --model model --data pairs.jsonl --max-steps 2 --output-dir frozen --train-only layers.0
status_is 0
run train --model model --data pairs.jsonl --max-steps 2 --output-dir refused --freeze nonsense
status_is 1
says 'no parameter has "nonsense" in its name'
end

begin "bench"
TMPDIR=$W/tmp; export TMPDIR; mkdir -p "$TMPDIR"
run bench --json --config model/config.json --max-steps 1 --block-size 8
status_is 0
[ "$(grep -c '' out)" = 1 ] || wrong "not one line"
prints '^{"cpu": ".*", "threads": [0-9]*, "peak_f32": [0-9]*, .*"tokens_per_second": [0-9.]*, '
prints '"ops": \[{"op": ".*"share": .*"of_limit": [0-9.]*}\]}$'
run bench --model model --max-steps 1 --block-size 8 --per-device-train-batch-size 2
status_is 0
prints 'a step of 2 x 8 tokens: .* of the peak'
prints '^operation .* of limit$'
run bench --json --config model/config.json --per-device-train-batch-size 0
status_is 2
says 'a batch of 0 x 64 tokens'
[ ! -s out ] || wrong "half an object on standard output"
run bench --config nowhere.json
status_is 1
[ -z "$(ls -A "$TMPDIR")" ] || wrong "left behind: $(ls -A "$TMPDIR")"
unset TMPDIR
end

# -- Done --------------------------------------------------------------------------------------
if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ $failed = 0 ]

#!/bin/sh
# The main job on the committed pico model: fine-tune it on questions, show what changed.
# Run by `make demo`, which builds ./neoxtune first. Results stay in build/demo.
set -eu
cd "$(dirname "$0")/.."
out=build/demo
rm -rf "$out"
mkdir -p "$out"
template='### Question:\n{question}\n### Answer\n{answer}'

number() { # number KEY: that number of the JSON object on standard input
    sed -n "s/.*\"$1\": \\([-0-9.e+]*\\).*/\\1/p"
}

answers() { # answers MODEL: the first five held-out answers, one per line
    ./neoxtune generate --json --model "$1" --prompts data/qa-heldout.jsonl --max-eval-samples 5 \
        --template "$template" --max-new-tokens 12 |
        sed 's/.*"completion": "\(.*\)", "ids".*/\1/; s/\\n/ /g'
}

echo "== pico before: a model of small stories that has never seen a question"
cc -O2 -o build/stories data/stories.c -lm
./build/stories text 200 77 >"$out/stories.txt"
stories=$(./neoxtune eval --json --model data/pico-neox --data "$out/stories.txt" 2>/dev/null)
nats=$(./build/stories entropy 200 77 | number nats)
tokens=$(echo "$stories" | number tokens)
ratio=$(echo "$stories" | number loss | awk -v t="$tokens" -v n="$nats" '{ print exp($1 - n / t) }')
echo "$stories" | number loss | awk -v t="$tokens" -v n="$nats" -v ratio="$ratio" '
    { printf "held-out stories: perplexity %.3f; the generator itself: %.3f; ratio %.3f\n",
             exp($1), exp(n / t), ratio }'
before=$(./neoxtune eval --json --model data/pico-neox --data data/qa-heldout.jsonl \
    --template "$template" --max-new-tokens 12 2>/dev/null)
answers data/pico-neox >"$out/before.txt" 2>/dev/null

echo
echo "== fine-tuning on $(wc -l <data/qa-train.jsonl) questions"
start=$(date +%s)
./neoxtune train --config-file data/demo.json --output-dir "$out/tuned"
echo "trained in $(($(date +%s) - start)) s"

after=$(./neoxtune eval --json --model "$out/tuned" --data data/qa-heldout.jsonl \
    --max-new-tokens 12 2>/dev/null)
answers "$out/tuned" >"$out/after.txt" 2>/dev/null

echo
echo "== the first five held-out questions"
i=0
while [ $i -lt 5 ]; do
    i=$((i + 1))
    sed -n "${i}p" data/qa-heldout.jsonl | sed 's/{"question": "\(.*\)", "answer": "\(.*\)"}/\1\n    answer: \2/'
    echo "    before: $(sed -n "${i}p" "$out/before.txt")"
    echo "    after:  $(sed -n "${i}p" "$out/after.txt")"
done

echo
echo "== on 200 held-out questions      before     after"
printf 'perplexity of the answers      %9.3f %9.3f\n' \
    "$(echo "$before" | number perplexity)" "$(echo "$after" | number perplexity)"
score=$(echo "$after" | number exact_match)
base=$(echo "$before" | number exact_match)
awk -v a="$base" -v b="$score" 'BEGIN { printf "exact match                    %8.1f%% %8.1f%%\n", 100*a, 100*b }'
common=$(sed 's/.*"answer": "\(.*\)"}/\1/' data/qa-heldout.jsonl | sort | uniq -c | sort -rn |
    awk 'NR == 1 { n = $1 } { all += $1 } END { print n / all }')
awk -v c="$common" 'BEGIN { printf "always the most frequent answer           %8.1f%%\n", 100*c }'
awk -v a="$base" -v b="$score" -v c="$common" -v r="$ratio" 'BEGIN {
    if (b >= 0.85 && a < 0.10 && c < 0.25 && r > 0 && r <= 1.25) exit 0
    print "demo: expected a ratio of at most 1.25, under 10% before, at least 85% after, under 25% for the frequent answer"
    exit 1 }'

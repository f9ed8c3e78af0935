#!/bin/sh
# Trains data/pico-neox again from nothing: first lists of words said twice, which teach it to
# look back, then stories. About eight minutes on two cores. Run by `make pico`, which builds
# ./neoxtune first; work files stay in build/pico.
set -eu
cd "$(dirname "$0")/.."
work=build/pico
rm -rf "$work"
mkdir -p "$work"
cc -O2 -o build/stories data/stories.c -lm
./build/stories recite 20000 21 >"$work/recite.txt"
./build/stories text 120000 11 >"$work/stories.txt"
./build/stories text 300 12 >"$work/heldout.txt"
./neoxtune init --config data/pico-neox/config.json --tokenizer data/pico-neox --dtype f32 \
    --seed 1 --output-dir "$work/new"
./neoxtune train --model "$work/new" --data "$work/recite.txt" --output-dir "$work/reader" \
    --per-device-train-batch-size 32 --max-steps 500 --learning-rate 1e-3 --adam-beta2 0.95 \
    --lr-scheduler-type constant_with_warmup --warmup-steps 50 --save-strategy no
./neoxtune train --model "$work/reader" --data "$work/stories.txt" --output-dir "$work/pico" \
    --max-length 200 --per-device-train-batch-size 16 --max-steps 6000 --learning-rate 2e-3 \
    --adam-beta2 0.95 --weight-decay 0.1 --lr-scheduler-type cosine --warmup-steps 200 \
    --eval-data "$work/heldout.txt" --eval-strategy steps --eval-steps 500 --save-strategy no \
    --dtype f16
./build/stories text 60000 31 | grep -E '(hat|ho) was [a-z]+[,:]' >"$work/asked.txt"
./build/stories text 20000 32 >>"$work/asked.txt"
./neoxtune train --model "$work/pico" --data "$work/asked.txt" --output-dir "$work/final" \
    --max-length 200 --per-device-train-batch-size 16 --max-steps 3600 --learning-rate 2e-3 \
    --adam-beta2 0.95 --weight-decay 0.1 --lr-scheduler-type cosine --warmup-steps 100 \
    --eval-data "$work/heldout.txt" --eval-strategy steps --eval-steps 600 --save-strategy no \
    --dtype f16
cp "$work/final/model.safetensors" data/pico-neox/model.safetensors

/* A model small enough to train in a test, as files: the config of a GPT-NeoX of two layers and
 * a byte-level tokenizer. Used by test.c and, as C and as C++, by test_api.c. */
#ifndef NXT_TEST_MICRO_H
#define NXT_TEST_MICRO_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MICRO_VOCABULARY = 272, MICRO_POSITIONS = 64, MICRO_BYTE_A = 1 + 'A' };

static FILE *micro_open(const char *dir, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f) printf("  cannot write %s\n", path);
    return f;
}

static void micro_file(const char *dir, const char *name, const char *text) {
    FILE *f = micro_open(dir, name);
    if (!f) return;
    fputs(text, f);
    fclose(f);
}

/* more: further members of the object, each behind a comma; the last of a name counts */
static void micro_config(const char *dir, const char *more) {
    FILE *f = micro_open(dir, "config.json");
    if (!f) return;
    fprintf(f, "{\"model_type\": \"gpt_neox\", \"vocab_size\": %d, \"hidden_size\": 32, "
            "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"intermediate_size\": 64, "
            "\"max_position_embeddings\": %d, \"initializer_range\": 0.1, \"rotary_pct\": 0.5, "
            "\"bos_token_id\": 0, \"eos_token_id\": 0%s}\n", MICRO_VOCABULARY, MICRO_POSITIONS,
            more);
    fclose(f);
}

/* The letter that stands for a byte in the files of byte-level tokenizers, as UTF-8: printable
 * Latin-1 stands for itself, the other bytes take the code points from 256 on. */
static void micro_letter(int byte, char out[4]) {
    int point = byte, others = 0;
    for (int b = 0; b <= byte; b++) {
        const int plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && !plain) point = 256 + others;
        others += !plain;
    }
    memset(out, 0, 4);
    if (point < 128) {
        out[0] = (char)point;
    } else {
        out[0] = (char)(0xc0 | point >> 6);
        out[1] = (char)(0x80 | (point & 63));
    }
}

/* tokenizer.json: 0 is <|endoftext|>, 1 + b the byte b, then a few merges from 257 on. */
static void micro_tokenizer(const char *dir) {
    static const char *const merges[][2] = {
        {"\xc4\xa0", "t"}, {"h", "e"}, {"\xc4\xa0t", "he"}, {"i", "n"},
        {"e", "r"},        {"o", "n"}, {"\xc4\xa0", "a"},   {"a", "t"}};
    FILE *f = micro_open(dir, "tokenizer.json");
    char letter[4];
    if (!f) return;
    fputs(
        "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 0, \"content\": \"<|endoftext|>\", "
        "\"special\": true, \"normalized\": false}], \"normalizer\": null, \"pre_tokenizer\": "
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}, "
        "\"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"vocab\": "
        "{\"<|endoftext|>\": 0",
        f);
    for (int b = 0; b < 256; b++) {
        micro_letter(b, letter);
        fprintf(f, ", \"%s%s\": %d", b == '"' || b == '\\' ? "\\" : "", letter, 1 + b);
    }
    for (int i = 0; i < 8; i++)
        fprintf(f, ", \"%s%s\": %d", merges[i][0], merges[i][1], 257 + i);
    fputs("}, \"merges\": [", f);
    for (int i = 0; i < 8; i++)
        fprintf(f, "%s\"%s %s\"", i ? ", " : "", merges[i][0], merges[i][1]);
    fputs("]}}\n", f);
    fclose(f);
    micro_file(dir, "tokenizer_config.json",
               "{\"eos_token\": \"<|endoftext|>\", \"bos_token\": \"<|endoftext|>\"}\n");
}
#endif

/* Data: which tokens, which of them trained, which examples. The tokenizer is micro.h's: a
 * token per byte but for a few merges, among them " the" (259) and "he" (258). */

typedef struct desk { /* a tokenizer, and a directory for files */
    nxt_context *cx;
    nxt_tokenizer *tok;
    char dir[300];
} desk;

static bool desk_up(desk *k, const char *name) {
    k->cx = test_context(), k->tok = NULL;
    snprintf(k->dir, sizeof k->dir, "%s", scratch(name));
    micro_tokenizer(k->dir);
    return OK(k->cx, nxt_tokenizer_load(&k->tok, k->cx, k->dir));
}

static void desk_down(desk *k) {
    nxt_tokenizer_destroy(k->tok);
    nxt_context_destroy(k->cx);
}

static nxt_status read_rows(desk *k, const char *name, const char *text,
                            const nxt_data_config *c, nxt_dataset **d) {
    const char *path = text_of("%s/%s", k->dir, name);
    micro_file(k->dir, name, text);
    return nxt_dataset_from_files(d, k->tok, &path, 1, c);
}

/* An example as text: its tokens decoded, the trained ones in upper case; eos is '$',
 * trained '!'. */
static const char *marked(const desk *k, const nxt_dataset *d, i64 i) {
    const i32 *ids;
    const u8 *trained;
    i64 n;
    char *out = text_of("%s", ""), *p = out;
    nxt_dataset_example(d, i, &ids, &trained, &n);
    for (i64 j = 0; j < n; j++) {
        char piece[32];
        size_t bytes;
        CHECK(nxt_decode(k->tok, &ids[j], 1, piece, sizeof piece, &bytes) == NXT_OK);
        if (ids[j] == 0) piece[0] = trained[j] ? '!' : '$', bytes = 1;
        for (size_t b = 0; b < bytes && p < out + 300; b++) {
            const bool small = piece[b] >= 'a' && piece[b] <= 'z';
            *p++ = (char)(trained[j] && small ? piece[b] - 32 : piece[b]);
        }
    }
    *p = 0;
    return out;
}

static void expect_rows(desk *k, int line, const char *file, const char *rows,
                        const nxt_data_config *c, const char *want) {
    nxt_dataset *d;
    char got[2000] = "";
    if (!OK(k->cx, read_rows(k, file, rows, c, &d))) return;
    for (i64 i = 0; i < d->info.examples; i++) {
        strncat(got, marked(k, d, i), sizeof got - strlen(got) - 2);
        strcat(got, "|");
    }
    if (strcmp(got, want)) printf("  line %d: \"%s\"\n  expected \"%s\"\n", line, got, want);
    CHECK(!strcmp(got, want));
    nxt_dataset_destroy(d);
}
#define ROWS(file, rows, want) expect_rows(&k, __LINE__, file, rows, &c, want)

/* Upper case marks what is trained, '!' a trained eos. */
static void test_data_masks(void) {
    desk k;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "masks")) {
        ROWS("a.jsonl", "{\"question\":\"is it\",\"answer\":\" yes\"}\n", "is it YES!|");
        /* " the" lies across the boundary: it is trained, the token before it is not */
        ROWS("a.jsonl", "{\"prompt\":\"in t\",\"completion\":\"he sun\"}", "in THE SUN!|");
        ROWS("a.jsonl", "{\"prompt\":\"so \",\"completion\":\"the sun\"}", "so THE SUN!|");
        ROWS("a.jsonl", "{\"prompt\":\"\",\"completion\":\"ab\"}", "AB!|");
        ROWS("a.jsonl", "{\"instruction\":\"x\",\"input\":\"y\",\"output\":\"z\"}\n"
             "{\"instruction\":\"x\",\"input\":\"\",\"output\":\"z\"}", "x\nyZ!|xZ!|");
        ROWS("a.jsonl", "{\"instruction\":\"x\",\"response\":\"z\"}", "xZ!|");
        ROWS("a.jsonl", "{\"text\":\"x\",\"target\":\"z\"}", "xZ!|");
        ROWS("a.jsonl", "{\"text\":\"x\",\"other\":\"z\"}", "X!|");
        ROWS("a.jsonl",
             "{\"question\":1.50,\"answer\":true}\n{\"question\":null,\"answer\":\"q\"}",
             "1.50TRUE!|Q!|"); /* numbers as they were written */
        c.train_on_all = 1;
        ROWS("a.jsonl", "{\"question\":\"is it\",\"answer\":\" yes\"}", "IS IT YES!|");
        c.train_on_all = 0, c.append_eos = 0;
        ROWS("a.jsonl", "{\"question\":\"is it\",\"answer\":\" yes\"}", "is it YES|");
        c.append_eos = -1, c.text_column = "answer";
        ROWS("a.jsonl", "{\"question\":\"is it\",\"answer\":\" yes\"}", " YES!|");
        c.text_column = NULL, c.prompt_column = "a", c.completion_column = "b";
        ROWS("a.jsonl", "{\"question\":\"is it\",\"a\":\"m\",\"b\":\"n\",\"answer\":\"c\"}",
             "mN!|");
        c.eos = 5; /* another id to end with */
        ROWS("a.jsonl", "{\"a\":\"m\",\"b\":\"n\"}", "mN\x04|");
        c = nxt_data_config_default();
        c.prompts_only = 1, c.append_eos = 0; /* what a model is asked: no answer is needed */
        ROWS("a.jsonl", "{\"question\":\"is it\",\"answer\":\" yes\"}", "IS IT|");
        c.prompt_column = "question", c.completion_column = "answer";
        ROWS("a.jsonl", "{\"question\":\"is it\"}\n{\"question\":\"or\",\"answer\":\"x\"}",
             "IS IT|OR|");
        c = nxt_data_config_default();
        c.prompts_only = 1, c.append_eos = 0, c.template_text = "q: {q} a: {a}.";
        ROWS("a.jsonl", "{\"q\":\"is it\"}\n", "Q: IS IT A: |");
    }
    desk_down(&k);
}

static void test_data_templates(void) {
    desk k;
    nxt_dataset *d;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "templates")) {
        c.template_text = "q: {q}\na: {a}";
        ROWS("a.jsonl", "{\"q\":\"one\",\"a\":\"two\",\"z\":1}", "q: one\na: TWO!|");
        /* a brace in braces; the full stop is not trained */
        c.template_text = "{{{q}} {{x}}{a}.";
        ROWS("a.jsonl", "{\"q\":\"one\",\"a\":\"two\"}", "{one} {x}}TWO.!|");
        c.completion_column = "q";
        ROWS("a.jsonl", "{\"q\":\"one\",\"a\":\"two\"}", "{ONE} {x}}two.!|");
        c.template_text = "{a}{q}{q}"; /* the last of that name */
        ROWS("a.jsonl", "{\"q\":\"one\",\"a\":\"two\"}", "twooneONE!|");
        c.completion_column = "b";
        CHECK(read_rows(&k, "a.jsonl", "{\"q\":\"1\",\"a\":\"2\"}", &c, &d) == NXT_ARGUMENT
              && !d);
        CHECK(strstr(nxt_error_message(k.cx), "no placeholder for the completion: b"));
        c.completion_column = NULL, c.template_text = "{q} {";
        CHECK(read_rows(&k, "a.jsonl", "{\"q\":\"1\"}", &c, &d) == NXT_ARGUMENT);
        CHECK(strstr(nxt_error_message(k.cx), "'{' without '}'"));
        c.template_text = "nothing";
        CHECK(read_rows(&k, "a.jsonl", "{\"q\":\"1\"}", &c, &d) == NXT_ARGUMENT);
        c.template_text = "{q} {missing}";
        CHECK(read_rows(&k, "a.jsonl", "{\"q\":\"1\",\"a\":\"2\"}", &c, &d) == NXT_FORMAT);
        CHECK(strstr(nxt_error_message(k.cx),
                     "a.jsonl:1: no column \"missing\"; the columns are: q, a"));
    }
    desk_down(&k);
}

static void test_data_columns_refused(void) {
    static const struct {
        const char *rows, *phrase;
    } bad[] = {
        {"{\"body\":\"x\",\"title\":\"y\"}", "a.jsonl:1: no column that is known"},
        {"{\"body\":\"x\",\"title\":\"y\"}", "the columns are: body, title"},
        {"{}", "the columns are: (none)"},
        {"{\"text\":\"x\"}\n\n{\"body\":\"y\"}", "a.jsonl:3: no column \"text\""},
        {"{\"text\":\"x\"}\n{\"text\":[1]}",
         "a.jsonl:2: not a text or a number: column \"text\""},
        {"{\"text\":\"x\"}\n[1]", "a.jsonl:2: the row is not an object"},
        {"{\"text\":\"x\"}\n{\"text\":\"y\"", "a.jsonl:2:12: the text ends too early"},
        {"{\"text\":\"x\"}\n{\"text\":\"\xff\"}", "a.jsonl:2:10: invalid UTF-8"},
        {"", "no data"},
        {"\n \n", "no data"},
    };
    desk k;
    nxt_data_config c = nxt_data_config_default();
    nxt_dataset *d;
    if (desk_up(&k, "columns")) {
        for (i64 i = 0; i < COUNT(bad); i++) {
            const nxt_status status = read_rows(&k, "a.jsonl", bad[i].rows, &c, &d);
            const bool good =
                status != NXT_OK && !d && strstr(nxt_error_message(k.cx), bad[i].phrase);
            if (!good) printf("  row %d: %s\n", (int)i, nxt_error_message(k.cx));
            CHECK(good);
        }
        c.skip_bad_lines = 1;
        CHECK(OK(k.cx, read_rows(&k, "a.jsonl",
                                 "{\"text\":\"x\"}\n{\"text\":\n{\"no\":1}\nzzz\n"
                                 "{\"text\":\"y\"}\n",
                                 &c, &d)));
        CHECK(d && d->info.bad_lines == 3 && d->info.examples == 2);
        nxt_dataset_destroy(d);
        CHECK(read_rows(&k, "a.parquet", "PAR1", &c, &d) == NXT_UNSUPPORTED && !d);
        CHECK(read_rows(&k, "a.json", "{\"data\": []}", &c, &d) == NXT_FORMAT);
        const char *absent = text_of("%s/absent.txt", k.dir);
        CHECK(nxt_dataset_from_files(&d, k.tok, &absent, 1, &c) == NXT_IO && !d);
        CHECK(strstr(nxt_error_message(k.cx), "absent.txt: cannot open: No such file"));
        CHECK(nxt_dataset_from_files(&d, k.tok, &absent, 0, &c) == NXT_ARGUMENT);
        c.max_length = 1;
        CHECK(read_rows(&k, "a.txt", "x", &c, &d) == NXT_ARGUMENT);
        c.max_length = 64, c.block_size = 1;
        CHECK(read_rows(&k, "a.txt", "x", &c, &d) == NXT_ARGUMENT);
        c.block_size = 50;
        CHECK(read_rows(&k, "a.txt", "too little", &c, &d) == NXT_ARGUMENT);
        CHECK(strstr(nxt_error_message(k.cx), "10 tokens do not fill one block of 50"));
    }
    desk_down(&k);
}

/* A row that is refused leaves nothing behind, wherever it stands. */
static void test_data_bad_rows(void) {
    desk k;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "bad")) {
        c.skip_bad_lines = 1;
        /* refused before the columns are chosen */
        ROWS("a.jsonl", "{\"foo\":1}\n{\"text\":\"a b\"}\n", "A B!|");
        c.truncation = NXT_TRUNCATE_ERROR, c.max_length = 8;
        ROWS("a.jsonl",
             "{\"text\":\"ccccccccccccccccc\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}\n",
             "B!|C!|");
        c.truncation = NXT_TRUNCATE_AUTO;
        ROWS("a.json", "[{\"text\":\"a\"},{\"body\":\"x\"},7,{\"text\":\"b\"}]", "A!|B!|");
        c.skip_bad_lines = c.append_eos = 0;
        ROWS("a.jsonl", "{\"text\":\"\"}\n{\"text\":\"b\"}\n", "|B|"); /* no token at all */
    }
    desk_down(&k);
}

/* Files of several kinds at once: pairs stay pairs, plain text is trained whole. */
static void test_data_mixed(void) {
    desk k;
    nxt_data_config c = nxt_data_config_default();
    nxt_dataset *d = NULL;
    if (desk_up(&k, "mixed")) {
        const char *paths[] = {text_of("%s/a.jsonl", k.dir), text_of("%s/b.txt", k.dir),
                               text_of("%s/c.jsonl", k.dir)};
        micro_file(k.dir, "a.jsonl", "{\"question\":\"q\",\"answer\":\"w\"}\n");
        micro_file(k.dir, "b.txt", "plain\n");
        micro_file(k.dir, "c.jsonl", "{\"question\":\"k\",\"answer\":\"z\"}\n");
        CHECK(OK(k.cx, nxt_dataset_from_files(&d, k.tok, paths, 3, &c)));
        if (d && d->info.examples == 3) {
            CHECK(!strcmp(marked(&k, d, 0), "qW!") && !strcmp(marked(&k, d, 2), "kZ!"));
            CHECK(!strcmp(marked(&k, d, 1), "PLAIN!"));
            CHECK(d->info.has_completions);
        } else CHECK(!"three examples");
        nxt_dataset_destroy(d);
    }
    desk_down(&k);
}

static void test_data_files(void) {
    desk k;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "forms")) {
        ROWS("a.txt", "one\r\n\n two \nthe", "ONE!| TWO !|THE!|");
        ROWS("a.txt", "\xef\xbb\xbfone\n", "ONE!|"); /* a byte order mark is no text */
        ROWS("a.jsonl", "\xef\xbb\xbf{\"text\":\"one\"}\r\n\r\n{\"text\":\"\"}\n", "ONE!|!|");
        ROWS("a.json", "[{\"text\":\"one\"},\n{\"text\":\"two\"}]", "ONE!|TWO!|");
        ROWS("a.json",
             "{\"rows\":[{\"row_idx\":0,\"row\":{\"question\":\"q\",\"answer\":\"w\"}},"
             "{\"row\":{\"question\":\"k\",\"answer\":\"r\"}}]}",
             "qW!|kR!|");
        /* "row" may be a column's name */
        ROWS("a.json", "\xef\xbb\xbf[{\"row\": 3, \"text\": \"abc\"}]", "ABC!|");
        c.max_samples = 2;
        ROWS("a.txt", "a\nb\nc\n", "A!|B!|");
        ROWS("a.json", "[{\"text\":\"a\"},{\"text\":\"b\"},{\"text\":\"c\"}]", "A!|B!|");
    }
    desk_down(&k);
}

static void test_data_truncation(void) {
    static const char rows[] = "{\"prompt\":\"abcdef\",\"completion\":\"123\"}\n"
                               "{\"prompt\":\"ab\",\"completion\":\"12345\"}\n"
                               "{\"prompt\":\"a\",\"completion\":\"1\"}\n";
    desk k;
    nxt_dataset *d;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "cut")) {
        c.max_length = 6; /* 9, 7 and 2 tokens, and an eos each */
        ROWS("a.jsonl", rows, "ef123!|b12345|a1!|"); /* the second's end does not fit */
        CHECK(OK(k.cx, read_rows(&k, "a.jsonl", rows, &c, &d)));
        CHECK(d->info.truncated == 2 && d->info.completions_cut == 1
              && d->info.ends_in_eos == 2);
        CHECK(d->info.longest == 6 && d->info.has_completions && d->info.untrained == 0);
        nxt_dataset_destroy(d);
        c.truncation = NXT_TRUNCATE_RIGHT;
        ROWS("a.jsonl", rows, "abcdef|ab1234|a1!|");
        CHECK(OK(k.cx, read_rows(&k, "a.jsonl", rows, &c, &d)));
        CHECK(d->info.untrained == 1 && d->info.truncated == 2); /* nothing of "123" is left */
        nxt_dataset_destroy(d);
        c.truncation = NXT_TRUNCATE_LEFT;
        ROWS("a.jsonl", rows, "ef123!|12345!|a1!|");
        c.truncation = NXT_TRUNCATE_ERROR;
        CHECK(read_rows(&k, "a.jsonl", rows, &c, &d) == NXT_FORMAT && !d);
        CHECK(strstr(nxt_error_message(k.cx), "a.jsonl:1: 10 tokens, the limit is 6"));
        c.truncation = NXT_TRUNCATE_AUTO;
        ROWS("a.txt", "abcdefghij\n", "ABCDEF|"); /* plain text: its beginning */
        c.train_on_all = 1;
        ROWS("a.jsonl", rows, "ABCDEF|AB1234|A1!|");
    }
    desk_down(&k);
}

/* run_clm's group_texts: the texts one behind another, cut, the rest dropped. */
static void test_data_blocks(void) {
    static const char one[] = "the cat\nand the hat\n", two[] = "another text on the mat.";
    desk k;
    nxt_data_config c = nxt_data_config_default();
    nxt_dataset *d = NULL;
    if (desk_up(&k, "blocks")) {
        const char *paths[] = {text_of("%s/1.txt", k.dir), text_of("%s/2.txt", k.dir)};
        i32 want[200];
        size_t n = 0, more;
        micro_file(k.dir, "1.txt", one);
        micro_file(k.dir, "2.txt", two);
        for (int eos = 0; eos < 2; eos++) {
            n = 0;
            for (int f = 0; f < 2; f++) {
                const char *text = f ? two : one;
                CHECK(OK(k.cx,
                         nxt_encode(k.tok, text, strlen(text), want + n, NULL, 100, &more)));
                n += more;
                if (eos) want[n++] = 0;
            }
            c.block_size = 7, c.append_eos = eos ? 1 : -1;
            CHECK(OK(k.cx, nxt_dataset_from_files(&d, k.tok, paths, 2, &c)));
            if (!d) break;
            CHECK(d->info.examples == (i64)(n / 7) && d->info.dropped_tokens == (i64)(n % 7));
            CHECK(d->info.tokens == d->info.examples * 7 && n % 7 != 0 && n > 30);
            CHECK(d->info.trained_tokens == d->info.examples * 6 && d->info.longest == 7);
            CHECK(!memcmp(d->ids, want, (size_t)d->info.tokens * sizeof *want));
            CHECK(d->info.text_bytes == (i64)(strlen(one) + strlen(two)));
            CHECK(nxt_dataset_write_rows(d, text_of("%s/no.jsonl", k.dir)) == NXT_ARGUMENT);
            nxt_dataset_destroy(d);
        }
        c.append_eos = -1, c.block_size = 4; /* rows of pairs: each keeps its mask */
        ROWS("b.jsonl",
             "{\"question\":\"abc\",\"answer\":\"xy\"}\n{\"question\":\"d\",\"answer\":\"z\"}",
             "abcX|");
    }
    desk_down(&k);
}

static void test_data_untrained(void) {
    desk k;
    nxt_data_config c = nxt_data_config_default();
    nxt_dataset *d = NULL;
    nxt_dataset_info info;
    if (desk_up(&k, "untrained")) {
        c.append_eos = 0;
        CHECK(OK(k.cx, read_rows(&k, "a.jsonl", "{\"question\":\"ab\",\"answer\":\"\"}\n"
                                 "{\"question\":\"\",\"answer\":\"x\"}\n"
                                 "{\"question\":\"ab\",\"answer\":\"cd\"}\n", &c, &d)));
        nxt_dataset_describe(d, &info); /* the first token of a sequence is never predicted */
        CHECK(info.untrained == 2 && info.trained_tokens == 2 && info.tokens == 7);
        CHECK(info.rows == 3 && info.examples == 3
              && !strcmp(info.columns, "question + answer"));
        nxt_dataset_destroy(d);
        CHECK(OK(k.cx, read_rows(&k, "a.txt", "x", &c, &d)));
        nxt_dataset_describe(d, &info);
        CHECK(info.untrained == 1 && !strcmp(info.columns, "plain text"));
        const char *dir = micro_model(k.cx, "untrained-model", "", "f32");
        nxt_model *m = NULL;
        nxt_trainer *t;
        const nxt_train_config tc = micro_training();
        if (OK(k.cx, nxt_model_load(&m, k.cx, dir)))
            CHECK(nxt_trainer_create(&t, m, d, &tc) == NXT_ARGUMENT && !t);
        nxt_model_destroy(m);
        nxt_dataset_destroy(d);
    }
    desk_down(&k);
}

/* -- Splits and orders --------------------------------------------------------------------- */
static void test_data_split(void) {
    desk k;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "split")) {
        char rows[3000] = "";
        i32 held_before[100] = {0};
        for (int i = 0; i < 100; i++)
            snprintf(rows + strlen(rows), 32, "{\"text\": \"row %d\"}\n", i);
        for (int turn = 0; turn < 3; turn++) {
            nxt_dataset *d, *held = NULL;
            int seen[100] = {0};
            if (!OK(k.cx, read_rows(&k, "a.jsonl", rows, &c, &d))) break;
            CHECK(OK(k.cx, nxt_dataset_split(d, 0.137, turn == 2 ? 8 : 9, &held)));
            /* floor(13.7) */
            CHECK(held && held->info.examples == 13 && d->info.examples == 87);
            CHECK(held && held->info.ends_in_eos == 13 && d->info.ends_in_eos == 87);
            for (int part = 0; part < 2 && held; part++) {
                const nxt_dataset *p = part ? held : d;
                i64 tokens = 0;
                for (i64 i = 0; i < p->info.examples; i++) {
                    const int row = atoi(strpbrk(marked(&k, p, i), "0123456789"));
                    seen[row] += part ? 100 : 1;
                    tokens += p->offset[i + 1] - p->offset[i];
                    if (part && turn == 0) held_before[row] = 1;
                    if (part && turn == 1) CHECK(held_before[row] == 1); /* the same again */
                }
                CHECK(tokens == p->info.tokens);
            }
            int others = 0;
            for (int i = 0; i < 100; i++) {
                CHECK(seen[i] == 1 || seen[i] == 100); /* in one of the two, once */
                others += (seen[i] == 100) != held_before[i];
            }
            CHECK(turn < 2 ? others == 0 : others > 5); /* another seed, another choice */
            const char *path = text_of("%s/held.jsonl", k.dir);
            CHECK(OK(k.cx, nxt_dataset_write_rows(held, path)));
            nxt_dataset *back = NULL; /* what was written reads as what was held out */
            CHECK(OK(k.cx, nxt_dataset_from_files(&back, k.tok, &path, 1, &c)));
            CHECK(back && back->info.examples == 13 && back->info.tokens == held->info.tokens
                  && !memcmp(back->ids, held->ids,
                             (size_t)held->info.tokens * sizeof *held->ids));
            nxt_dataset_destroy(back);
            CHECK(nxt_dataset_split(held, 0, 1, &back) == NXT_ARGUMENT && !back);
            CHECK(nxt_dataset_split(held, 1, 1, &back) == NXT_ARGUMENT);
            CHECK(OK(k.cx, nxt_dataset_split(held, 1e-9, 1, &back))
                  && back->info.examples == 1);
            nxt_dataset_destroy(back);
            nxt_dataset_destroy(held);
            nxt_dataset_destroy(d);
        }
    }
    desk_down(&k);
}

/* Rows are written as they were read, whatever the file. */
static void test_data_write_rows(void) {
    static const struct {
        const char *file, *rows, *want;
    } forms[] = {
        {"a.jsonl", "{\"text\" : \"\\u00e9\", \"n\":1.50}\r\n\n{\"text\":\"b\"}",
         "{\"text\" : \"\\u00e9\", \"n\":1.50}\n{\"text\":\"b\"}\n"},
        {"a.txt", "one \"1\"\r\n\ntwo\n",
         "{\"text\": \"one \\\"1\\\"\"}\n{\"text\": \"two\"}\n"},
        {"a.json", "[{\"text\":\"x\"}, {\"text\":\"y\",\"k\":[1,2]}]",
         "{\"text\": \"x\"}\n{\"text\": \"y\", \"k\": [1, 2]}\n"},
        {"a.json", "{\"rows\":[{\"row\":{\"text\":\"x\"}}]}", "{\"text\": \"x\"}\n"},
        {"a.json", "\xef\xbb\xbf[{\"text\":\"x\",\"row\":1}]",
         "{\"text\": \"x\", \"row\": 1}\n"},
    };
    desk k;
    nxt_data_config c = nxt_data_config_default();
    if (desk_up(&k, "written"))
        for (i64 i = 0; i < COUNT(forms); i++) {
            nxt_dataset *d;
            buffer text = {.cx = k.cx};
            const char *path = text_of("%s/out.jsonl", k.dir);
            if (!OK(k.cx, read_rows(&k, forms[i].file, forms[i].rows, &c, &d))) continue;
            CHECK(OK(k.cx, nxt_dataset_write_rows(d, path)));
            CHECK(OK(k.cx, file_read(k.cx, path, 1 << 20, &text)));
            if (strcmp(text.p, forms[i].want)) printf("  form %d: %s", (int)i, text.p);
            CHECK(!strcmp(text.p, forms[i].want));
            buffer_free(&text);
            nxt_dataset_destroy(d);
        }
    desk_down(&k);
}

static void test_shuffle(void) {
    static const u64 sizes[] = {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097};
    static u8 hit[5000];
    for (i64 s = 0; s < COUNT(sizes); s++)
        for (u64 key = 0; key < 20; key++) {
            const u64 n = sizes[s];
            memset(hit, 0, n);
            for (u64 i = 0; i < n; i++) {
                const u64 to = permute(i, n, mix64(key));
                CHECK(to < n && !hit[to]);
                if (to < n) hit[to] = 1;
            }
        }
    /* a place is as likely as another, in small sets too; chance exceeds this once in 10^5
     * times */
    static const u64 small[] = {3, 5, 10, 40};
    for (i64 s = 0; s < COUNT(small); s++)
        for (u64 i = 0; i < small[s]; i++) {
            double count[40] = {0}, chi = 0, expected = 4000.0 / (double)small[s];
            for (u64 key = 0; key < 4000; key++) count[permute(i, small[s], mix64(key))]++;
            for (u64 to = 0; to < small[s]; to++)
                chi += (count[to] - expected) * (count[to] - expected) / expected;
            const double freedom = (double)(small[s] - 1);
            CHECK(chi < freedom + 5 * sqrt(2 * freedom) + 12);
        }
    nxt_dataset d = {.info = {.examples = 1000}};
    nxt_trainer t = {.data = &d, .c = {.shuffle = 1, .seed = 4}};
    int moved = 0, repeated = 0;
    for (i64 i = 0; i < 1000; i++) {
        moved += example_at(&t, 0, i) != i;
        repeated += example_at(&t, 0, i) == example_at(&t, 1, i); /* another epoch's order */
    }
    CHECK(moved > 980 && repeated < 20);
    t.c.shuffle = 0;
    CHECK(example_at(&t, 3, 77) == 77);
}

static void test_data_tokens(void) {
    nxt_context *cx = test_context();
    const i32 ids[] = {5, 6, 7, 8, 9};
    const u8 trained[] = {1, 0, 1, 0, 1};
    const i64 offset[] = {0, 3, 3, 5}, falling[] = {0, 3, 2};
    nxt_dataset *d = NULL;
    CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, ids, trained, offset, 3)));
    CHECK(d->info.examples == 3 && d->info.tokens == 5 && d->info.trained_tokens == 2);
    CHECK(d->info.longest == 3 && d->info.untrained == 1);
    nxt_dataset_destroy(d);
    CHECK(nxt_dataset_from_tokens(&d, cx, ids, trained, falling, 2) == NXT_ARGUMENT && !d);
    const char *dir = micro_model(cx, "tokens", "", "f32");
    nxt_model *m = NULL;
    double loss;
    i32 many[MICRO_POSITIONS + 1] = {0};
    const i64 whole[] = {0, MICRO_POSITIONS + 1};
    if (OK(cx, nxt_model_load(&m, cx, dir))) {
        many[3] = MICRO_VOCABULARY;
        CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, many, NULL, (i64[]){0, 9}, 1)));
        CHECK(nxt_forward(m, d, 0, 1, &loss) == NXT_ARGUMENT);
        CHECK(strstr(nxt_error_message(cx), "token 272 at position 3"));
        nxt_dataset_destroy(d);
        many[3] = 0;
        CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, many, NULL, whole, 1)));
        CHECK(nxt_forward(m, d, 0, 1, &loss) == NXT_ARGUMENT);
        CHECK(
            strstr(nxt_error_message(cx), "65 tokens is longer than the model's 64 positions"));
        nxt_dataset_destroy(d);
    }
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

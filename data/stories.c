/* stories - writes the small world that the pico model is trained on.
 *
 *   stories text N SEED                 N stories, one per line
 *   stories qa N SEED train|heldout     N questions as JSONL: "question", "answer"
 *   stories recite N SEED               N lists of words, each said twice, one per line
 *   stories entropy N SEED              the entropy of the same N stories, as JSON
 *
 * Build: cc -O2 stories.c -o stories -lm
 *
 * A story is made of sentences, a sentence of a template, a template of words and
 * slots. A slot is a capital and a digit, such as C1: the capital names a list of
 * words (C: colours), the digit says whose it is. A slot is drawn when it is first
 * written and stays what it is for the rest of the story; so "N1 had a C1 O1." draws
 * a name, a colour and an object, and a later "The C1 O1 belonged to N1." draws
 * nothing: whoever has read the story knows those words. That is all the model has to
 * learn, and what the questions ask for.
 *
 *   1 2 3 4   the people of the story and what is theirs
 *   8 9       the scenery
 *   x         one of the people, drawn when it is first written in a template
 *   y         another one, likewise
 *   @         everybody: "Mia and Tom", "Mia, Tom and Anna"
 *
 * Entropy. Every draw is uniform over n possibilities and adds log(n) nats. No two
 * lists of choices lead to the same text: words in a list differ, a word is not drawn
 * twice in a story (of n words, the k-th draw has n - k + 1 possibilities), and within
 * a list of templates no two are the same once the slots are taken out, which main
 * checks. So the sum of the log(n) of a story is exactly -log p(story). A model that is
 * scored on every token but the first loses nothing by that: all stories start with the
 * same word, "One", which costs no nats. The end is free as well: a story ends after
 * its closing sentence, and closing sentences stand nowhere else.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (int)(sizeof(a) / sizeof((a)[0]))

/* ---- words ---------------------------------------------------------------------- */

static const char *const names[] = {
    "Mia",   "Tom",  "Lily", "Ben",  "Anna",  "Max",   "Rosa", "Sam",  "Ella", "Leo",
    "Nora",  "Finn", "Ida",  "Jack", "Ruby",  "Otto",  "Emma", "Hugo", "Clara", "Theo",
    "Lucy",  "Adam", "Maya", "Noah", "Alma",  "Karl",  "Zoe",  "Paul", "Vera", "Owen",
    "Nina",  "Luke", "June", "Eric", "Tess",  "Ivan",  "Lena", "Dan",  "Amy",  "Peter",
    "Sara",  "Felix", "Kate", "Hans", "Olga", "Milo",  "Eva",  "Bruno",
};
static const char *const colours[] = {
    "red",   "blue",  "green", "yellow", "pink",   "purple", "white",
    "black", "brown", "grey",  "golden", "silver", "violet", "scarlet",
};
static const char *const objects[] = {
    "kite",  "boat",  "ball",  "drum",   "lamp",   "bell",  "hat",   "book",
    "cup",   "doll",  "flute", "ring",   "rope",   "scarf", "coat",  "spoon",
    "clock", "bike",  "wagon", "kettle", "mirror", "key",   "coin",  "blanket",
    "map",   "flag",  "broom", "pillow", "ladder", "pencil", "button", "candle",
};
static const char *const places[] = {
    "mill",   "river",  "barn",  "market", "forest", "beach",   "hill",    "garden",
    "lake",   "bridge", "school", "farm",  "castle", "park",    "pond",    "village",
    "meadow", "harbour", "tower", "cave",  "bakery", "station", "library", "orchard",
};
static const char *const foods[] = {
    "bread", "cheese", "soup", "cake", "honey", "jam",     "rice",   "pie",
    "nuts",  "plums",  "figs", "corn", "beans", "berries", "apples", "pancakes",
};
static const char *const animals[] = {
    "dog",  "cat",   "duck",   "goat",  "hen", "fox",    "owl",   "pig",  "pony",
    "frog", "mouse", "rabbit", "sheep", "cow", "donkey", "goose", "crow", "bear",
};
static const char *const tempers[] = {
    "shy",  "brave", "sleepy", "clever", "gentle", "noisy",
    "tiny", "proud", "hungry", "lazy",   "quick",  "plump",
};
static const char *const jobs[] = {
    "baker",  "farmer",   "painter", "singer", "sailor", "teacher", "doctor",
    "dancer", "gardener", "writer",  "pilot",  "tailor", "cook",    "builder",
};
static const char *const hideouts[] = {
    "tree",  "bush",    "fence", "gate", "shed", "wall",     "stairs",
    "curtain", "stove", "sofa",  "door", "rock", "haystack", "bench",
};
static const char *const weathers[] = {
    "sunny", "rainy", "windy", "cold",  "warm", "snowy",
    "foggy", "cloudy", "bright", "misty", "quiet", "fine",
};
static const char *const times[] = {"morning", "day", "afternoon", "evening"};
static const char *const moods[] = {
    "happy", "glad", "cheerful", "calm", "thankful", "merry", "pleased", "tired",
};

/* What leads to a fact that somebody asked for. */
static const char *const knowing[] = {
    "Everyone knew",
    "They all remembered",
    "Nobody forgot",
    "It was easy to see",
};
static const char *const wondering[] = {"asked", "wondered", "wanted to know"};
static const char *const telling[] = {
    "everyone could tell", "they could all say", "nobody had to ask",
};

/* The lists by their capital. The first BINDING of them are facts of somebody or of
 * something; the others are scenery, and no question is asked about them. */
enum { BINDING = 9 };
static const struct list {
    char letter;
    const char *const *word;
    int words;
} lists[] = {
    {'N', names, COUNT(names)},       {'C', colours, COUNT(colours)},
    {'O', objects, COUNT(objects)},   {'P', places, COUNT(places)},
    {'F', foods, COUNT(foods)},       {'A', animals, COUNT(animals)},
    {'D', tempers, COUNT(tempers)},   {'J', jobs, COUNT(jobs)},
    {'H', hideouts, COUNT(hideouts)}, {'W', weathers, COUNT(weathers)},
    {'T', times, COUNT(times)},       {'E', moods, COUNT(moods)},
    {'K', knowing, COUNT(knowing)},   {'Q', wondering, COUNT(wondering)},
    {'S', telling, COUNT(telling)},
};

/* ---- templates ------------------------------------------------------------------ */

/* A family of stories: what the people in them have or do (one fact for each of them),
 * what may happen then, and two ways of coming back to the facts. The questions are
 * asked of the facts alone. */
enum { MOST = 10 };
struct family {
    const char *opening[MOST], *fact[MOST], *event[MOST], *recall[MOST], *asked[MOST],
        *known[MOST];
    struct { const char *question, *answer; } ask[MOST];
};

static const struct family families[] = {
    {
        /* things */
        .opening = {
            "One W9 T9, @ met at the P9.",
            "One W9 T9, @ came to play at the P9.",
            "One W9 T9, @ sat by the P9.",
            "One W9 T9, @ wanted to show what they had.",
        },
        .fact = {
            "Nx had a Cx Ox.",
            "Nx came with a Cx Ox.",
            "Nx carried a Cx Ox.",
            "Nx brought a Cx Ox.",
        },
        .event = {
            "Nx lost the Ox, looked behind the H9 and found the Cx Ox.",
            "The wind took the Cx Ox, but Nx ran to the P8 and caught it.",
            "A D9 A9 ran off with the Cx Ox, but Nx got it back.",
            "Nx let everyone try the Cx Ox.",
            "The Ox broke, but soon the Cx Ox was whole again.",
            "\"My Ox is Cx,\" said Nx.",
        },
        .recall = {
            "The Ox was Cx and the Oy was Cy.",
            "Nx would not give the Cx Ox away.",
            "That night, Nx dreamed of the Cx Ox.",
            "Nx drew the Ox and made it Cx.",
            "Nx took the Cx Ox home, and Ny took the Cy Oy home.",
            "Nx liked the Cx Ox best of all.",
        },
        .asked = {
            "They Q9 who had the Ox, and it was Nx.",
            "They Q9 what Nx had, and it was a Cx Ox.",
            "They Q9 what colour the Ox was, and it was Cx.",
            "They Q9 what was Cx, and it was the Ox.",
        },
        .known = {
            "K9 who had the Ox: Nx.",
            "K9 what Nx had: a Cx Ox.",
            "K9 what colour the Ox was: Cx.",
            "K9 what was Cx: the Ox.",
            "What was Cx, S9: the Ox.",
            "Who had the Ox, S9: Nx.",
            "What Nx had, S9: a Cx Ox.",
            "What colour the Ox was, S9: Cx.",
        },
        .ask = {
            {"What was Cx?", "Ox"},
        },
    },
    {
        /* trips */
        .opening = {
            "One W9 T9, @ left the house together.",
            "One W9 T9, @ had places to go.",
            "One W9 T9, @ said goodbye to each other.",
            "One W9 T9, @ put on their shoes.",
        },
        .fact = {
            "Nx went to the Px.",
            "Nx walked to the Px.",
            "Nx ran to the Px.",
            "Nx took the road to the Px.",
        },
        .event = {
            "At the Px, Nx saw a D9 A9.",
            "Nx found a C9 O9 at the Px.",
            "Nx sang all the way to the Px.",
            "Nx gave some F9 to a D9 A9 at the Px.",
            "Nobody else was at the Px, so Nx sat down to rest.",
        },
        .recall = {
            "Nx came back from the Px, and Ny came back from the Py.",
            "\"I saw the Px,\" said Nx.",
            "Nx told everyone about the Px.",
            "Nx loved the Px, and Ny loved the Py.",
            "That night, Nx dreamed of the Px.",
            "Nx drew a picture of the Px.",
        },
        .asked = {
            "They Q9 who went to the Px, and it was Nx.",
            "They Q9 where Nx went, and it was the Px.",
        },
        .known = {
            "K9 who went to the Px: Nx.",
            "K9 where Nx went: the Px.",
            "Who went to the Px, S9: Nx.",
            "Where Nx went, S9: the Px.",
        },
    },
    {
        /* meals */
        .opening = {
            "One W9 T9, @ had a picnic at the P9.",
            "One W9 T9, @ were hungry after a long walk.",
            "One W9 T9, @ sat down to eat at the P9.",
            "One W9 T9, @ opened their lunch bags.",
        },
        .fact = {
            "Nx ate some Fx.",
            "Nx had some Fx for lunch.",
            "Nx chose some Fx.",
            "Nx wanted some Fx.",
        },
        .event = {
            "A D9 A9 came by, and Nx gave it some of the Fx.",
            "Nx shared the Fx with everyone.",
            "Nx gave some Fx to a D9 A9.",
            "The smell of the Fx woke a D9 A9.",
            "Nx sang a song about Fx.",
        },
        .recall = {
            "Nx had only Fx, and Ny had only Fy.",
            "Nx liked Fx more than anything else.",
            "\"I ate all of the Fx,\" said Nx.",
            "Nx went home full of Fx.",
            "That night, Nx dreamed of Fx.",
            "Nx asked for Fx again the next day.",
        },
        .asked = {
            "They Q9 who ate the Fx, and it was Nx.",
            "They Q9 what Nx ate, and it was Fx.",
        },
        .known = {
            "K9 who ate the Fx: Nx.",
            "K9 what Nx ate: Fx.",
            "Who ate the Fx, S9: Nx.",
            "What Nx ate, S9: Fx.",
        },
    },
    {
        /* jobs */
        .opening = {
            "One W9 T9, @ talked about growing up.",
            "One W9 T9, @ lay in the grass near the P9.",
            "One W9 T9, @ told each other their dreams.",
            "One W9 T9, @ watched the people at the P9.",
        },
        .fact = {
            "Nx wanted to be a Jx.",
            "Nx hoped to be a Jx.",
            "Nx dreamed of being a Jx.",
            "Nx would be a Jx one day.",
        },
        .event = {
            "An old Jx came by and showed Nx how to begin.",
            "Nx drew a picture of a Jx.",
            "Nx played all day, just like a real Jx.",
            "Nx gave a C9 O9 to the Jx of the P8.",
            "Nx knew that a Jx must work hard.",
        },
        .recall = {
            "Years later, Nx was a Jx and Ny was a Jy.",
            "\"I will be a Jx,\" said Nx.",
            "Everyone called Nx the little Jx.",
            "That night, Nx was a Jx in a dream.",
            "Nx read a book about a Jx.",
            "Nx talked like a Jx, and Ny talked like a Jy.",
        },
        .asked = {
            "They Q9 who wanted to be a Jx, and it was Nx.",
            "They Q9 what Nx wanted to be, and it was a Jx.",
        },
        .known = {
            "K9 who wanted to be a Jx: Nx.",
            "K9 what Nx wanted to be: a Jx.",
            "Who wanted to be a Jx, S9: Nx.",
            "What Nx wanted to be, S9: a Jx.",
        },
    },
    {
        /* hiding */
        .opening = {
            "One W9 T9, @ played a game at the P9.",
            "One W9 T9, @ wanted to hide things from each other.",
            "One W9 T9, @ had a secret.",
            "One W9 T9, @ played outside until dark.",
        },
        .fact = {
            "Nx hid a Ox behind the Hx.",
            "Nx put a Ox behind the Hx.",
            "Nx left a Ox behind the Hx.",
            "Nx pushed a Ox behind the Hx.",
        },
        .event = {
            "Nobody looked for the Ox behind the Hx.",
            "A D9 A9 ran behind the Hx, and there was the Ox.",
            "The Ox was hard to see behind the Hx.",
            "Nx came out from behind the Hx with the Ox.",
            "\"The Ox is behind the Hx,\" said Nx.",
        },
        .recall = {
            "The Ox had been behind the Hx all the time.",
            "Nx took the Ox home, and Ny took the Oy home.",
            "Nx never hid a Ox again.",
            "That night, Nx dreamed of the Ox.",
            "Nx was glad to have the Ox back.",
            "Nx used the Hx, and Ny used the Hy.",
        },
        .asked = {
            "They Q9 who hid the Ox, and it was Nx.",
            "They Q9 what Nx hid, and it was a Ox.",
            "They Q9 where the Ox was, and it was behind the Hx.",
        },
        .known = {
            "K9 who hid the Ox: Nx.",
            "K9 what Nx hid: a Ox.",
            "K9 where the Ox was: behind the Hx.",
            "Who hid the Ox, S9: Nx.",
            "What Nx hid, S9: a Ox.",
            "Where the Ox was, S9: behind the Hx.",
        },
    },
    {
        /* pets */
        .opening = {
            "One W9 T9, @ took their animals to the P9.",
            "One W9 T9, @ played with their animals.",
            "One W9 T9, @ went for a walk near the P9.",
            "One W9 T9, @ talked about the animals at home.",
        },
        .fact = {
            "Nx had a Dx Ax.",
            "Nx lived with a Dx Ax.",
            "Nx came with a Dx Ax.",
            "Nx took care of a Dx Ax.",
        },
        .event = {
            "The Dx Ax ran off to the P8, but Nx called it back.",
            "The Dx Ax chased the Dy Ay all around.",
            "The Dx Ax wanted some F9.",
            "Nx gave some F9 to the Dx Ax.",
            "The Ax was tired, and soon the Dx Ax fell asleep.",
        },
        .recall = {
            "The Ax was Dx and the Ay was Dy.",
            "Nx loved the Dx Ax.",
            "Nx called for the Ax, and Ny called for the Ay.",
            "That night, Nx dreamed of the Dx Ax.",
            "Nx took the Dx Ax home, and Ny took the Dy Ay home.",
            "Nx sang a song for the Dx Ax.",
        },
        .asked = {
            "They Q9 who had the Ax, and it was Nx.",
            "They Q9 what Nx had, and it was a Dx Ax.",
            "They Q9 what the Ax was like, and it was Dx.",
            "They Q9 who was Dx, and it was the Ax.",
        },
        .known = {
            "K9 who had the Ax: Nx.",
            "K9 what Nx had: a Dx Ax.",
            "K9 what the Ax was like: Dx.",
            "K9 who was Dx: the Ax.",
            "Who was Dx, S9: the Ax.",
            "Who had the Ax, S9: Nx.",
            "What Nx had, S9: a Dx Ax.",
            "What the Ax was like, S9: Dx.",
        },
        .ask = {
            {"Who was Dx?", "Ax"},
        },
    },
};

static const char *const closings[MOST] = {
    "Everyone was E9.",
    "At the end of the T9, everyone was E9.",
    "Nx and Ny felt E9.",
    "What a W9 T9 it had been!",
    "Then it was time for bed.",
    "They all hoped for another W9 T9.",
    "@ were good friends from then on.",
    "Nx laughed and Ny laughed, and that was the end of the T9.",
};

/* ---- the story under way -------------------------------------------------------- */

struct story {
    uint64_t random;
    double nats;                        /* -log p of the choices so far */
    int people;
    const char *slot[COUNT(lists)][10]; /* what each slot was drawn as, or NULL */
    const char *said[16];               /* the words of facts in the latest sentence */
    int saids;
    char text[1024];
    int length;
};

/* Story number `index` of `seed`: each has random numbers of its own (splitmix64). */
static void begin(struct story *s, uint64_t seed, uint64_t index) {
    memset(s, 0, sizeof *s);
    s->random = (seed << 40) + (index << 8);
}

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* One of 0..n-1, all equally likely. This is the only source of chance. */
static int choose(struct story *s, int n) {
    s->random += 0x9e3779b97f4a7c15u;
    s->nats += log(n);
    return (int)(((mix(s->random) >> 32) * (uint64_t)n) >> 32);
}

static void write_text(struct story *s, const char *text) {
    int length = (int)strlen(text);
    if (s->length + length >= (int)sizeof s->text) {
        fprintf(stderr, "stories: a story is too long\n");
        exit(1);
    }
    memcpy(s->text + s->length, text, length + 1);
    s->length += length;
}

static const struct list *find_list(char letter) {
    for (int i = 0; i < COUNT(lists); i++)
        if (lists[i].letter == letter) return &lists[i];
    return NULL;
}

/* The word in a slot; if it has none yet, one that no slot of this list has. */
static const char *slot_word(struct story *s, const struct list *list, int digit) {
    const char **row = s->slot[list - lists];
    if (row[digit]) return row[digit];

    const char *unused[64];
    int n = 0;
    for (int i = 0; i < list->words; i++) {
        bool used = false;
        for (int d = 0; d < 10; d++) used |= row[d] == list->word[i];
        if (!used) unused[n++] = list->word[i];
    }
    return row[digit] = unused[choose(s, n)];
}

static void write_slot(struct story *s, const struct list *list, int digit) {
    const char *word = slot_word(s, list, digit);
    write_text(s, word);
    if (list - lists < BINDING) s->said[s->saids++] = word;
}

static void write_everybody(struct story *s) {
    for (int i = 1; i <= s->people; i++) {
        if (i > 1) write_text(s, i < s->people ? ", " : " and ");
        write_slot(s, find_list('N'), i);
    }
}

/* One of the people, but not `taken`, who may be nobody (0). */
static int choose_person(struct story *s, int taken) {
    int person = 1 + choose(s, s->people - (taken != 0));
    return person + (taken && person >= taken);
}

static bool is_slot(const char *t) {
    return find_list(t[0]) && t[1] && strchr("xy123489", t[1]);
}

/* Writes a template. `x` is the person x stands for, or 0: draw one when needed. */
static void write_template(struct story *s, const char *t, int x) {
    int y = 0;
    if (s->length) write_text(s, " ");
    s->saids = 0;
    for (; *t; t++) {
        if (*t == '@') {
            write_everybody(s);
        } else if (is_slot(t)) {
            if (t[1] == 'x' && !x) x = choose_person(s, y);
            if (t[1] == 'y' && !y) y = choose_person(s, x);
            int digit = t[1] == 'x' ? x : t[1] == 'y' ? y : t[1] - '0';
            write_slot(s, find_list(*t++), digit);
        } else {
            write_text(s, (char[]){*t, 0});
        }
    }
}

static int count(const char *const templates[MOST]) {
    int n = 0;
    while (n < MOST && templates[n]) n++;
    return n;
}

static void write_one_of(struct story *s, const char *const templates[MOST], int x) {
    write_template(s, templates[choose(s, count(templates))], x);
}

/* One sentence of the list about each of the people, in an order that is drawn. */
static void write_about_all(struct story *s, const char *const templates[MOST]) {
    int order[] = {1, 2, 3};
    for (int left = s->people; left > 0; left--) {
        int i = choose(s, left), person = order[i];
        order[i] = order[left - 1];
        write_one_of(s, templates, person);
    }
}

/* Two stories in three are short: facts, and then every one of them told again, in other
 * words and another order. That is what makes a small model learn to look things up; in a
 * long story most of the words have nothing to do with it. */
static void tell(struct story *s) {
    const struct family *f = &families[choose(s, COUNT(families))];
    bool plain = choose(s, 3) > 0;
    s->people = 2 + choose(s, 2);
    write_one_of(s, f->opening, 0);
    for (int i = 1; i <= s->people; i++) write_one_of(s, f->fact, i);
    if (!plain) {
        write_one_of(s, f->event, 0);
        write_one_of(s, f->recall, 0);
    }
    write_about_all(s, f->known);
    if (plain) write_about_all(s, f->asked);
    write_one_of(s, closings, 0);
}

/* A first lesson: a list of words, said twice. Whoever predicts the second half has learned
 * to find where a word stood before and to say what followed it ("induction"), which is the
 * first step of looking anything up. */
static void recite(struct story *s) {
    enum { WORDS = 14 };
    const struct list *from[WORDS];
    int word[WORDS];
    write_text(s, "One");
    for (int i = 0; i < 2 * WORDS; i++) {
        int k = i % WORDS;
        if (i < WORDS) {
            from[k] = &lists[1 + choose(s, BINDING - 1)]; /* all but the names */
            word[k] = choose(s, from[k]->words);
        }
        write_text(s, " ");
        write_text(s, from[k]->word[word[k]]);
    }
}

/* ---- questions ------------------------------------------------------------------ */

/* Two words that a fact ties together are kept for the held-out questions or for the
 * training questions, never both: about one pair in five is held out, by its hash. */
static bool held_out(const char *a, const char *b) {
    if (strcmp(a, b) > 0) {
        const char *swap = a;
        a = b, b = swap;
    }
    uint64_t h = 0;
    for (; *a; a++) h = mix(h + (unsigned char)*a);
    h = mix(h + '|');
    for (; *b; b++) h = mix(h + (unsigned char)*b);
    return h % 5 == 0;
}

/* Writes a fact whose pairs of words all belong to the wanted side. */
static void write_fact(struct story *s, const struct family *f, int x, bool heldout) {
    for (struct story before = *s;; before.random = s->random, *s = before) {
        write_one_of(s, f->fact, x);
        bool fits = true;
        for (int i = 0; i < s->saids; i++)
            for (int j = 0; j < i; j++)
                fits &= held_out(s->said[i], s->said[j]) == heldout;
        if (fits) return;
    }
}

/* A family about which questions are asked: things and pets. */
static const struct family *choose_asked(struct story *s) {
    const struct family *f;
    do f = &families[choose(s, COUNT(families))];
    while (!f->ask[0].question);
    return f;
}

/* Two or three facts, each of another person, at least two of them of the same family,
 * and a question about one of those two. */
static void ask(struct story *s, bool heldout, char *answer, int size) {
    const struct family *f = choose_asked(s);
    s->people = 2 + choose(s, 2);
    int asked = 1 + choose(s, s->people);
    int rival = 1 + (asked + choose(s, s->people - 1)) % s->people;
    for (int i = 1; i <= s->people; i++) {
        const struct family *other = choose_asked(s);
        bool same = i == asked || i == rival || choose(s, 2);
        write_fact(s, same ? f : other, i, heldout);
    }

    int n = 0;
    while (n < MOST && f->ask[n].question) n++;
    int kind = choose(s, n);
    write_template(s, f->ask[kind].question, asked);

    struct story reply = *s;
    reply.length = 0;
    write_template(&reply, f->ask[kind].answer, asked);
    snprintf(answer, size, "%.*s", reply.length, reply.text);
}

/* ---- main ----------------------------------------------------------------------- */

/* Templates of a list must differ in more than their slots, or one text could come
 * from two of them and the entropy would be overstated. */
static void skeleton(const char *t, char *out) {
    for (; *t; t++) {
        *out++ = *t;
        if (is_slot(t)) t++;
    }
    *out = 0;
}

static void check_list(const char *const *templates, int n) {
    char a[256], b[256];
    for (int i = 0; i < n; i++) {
        skeleton(templates[i], a);
        for (int j = 0; j < i; j++) {
            skeleton(templates[j], b);
            if (strcmp(a, b)) continue;
            fprintf(stderr, "stories: ambiguous: %s\n", templates[i]);
            exit(1);
        }
    }
}

static void check_templates(void) {
    for (int i = 0; i < COUNT(families); i++) {
        const struct family *f = &families[i];
        check_list(f->opening, count(f->opening));
        check_list(f->fact, count(f->fact));
        check_list(f->event, count(f->event));
        check_list(f->recall, count(f->recall));
        check_list(f->asked, count(f->asked));
        check_list(f->known, count(f->known));
    }
    check_list(closings, count(closings));
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    bool text = !strcmp(what, "text"), qa = !strcmp(what, "qa");
    bool lists_of_words = !strcmp(what, "recite");
    bool heldout = argc > 4 && !strcmp(argv[4], "heldout");
    if (argc != (qa ? 5 : 4) || !(text || qa || lists_of_words || !strcmp(what, "entropy")) ||
        (qa && !heldout && strcmp(argv[4], "train"))) {
        fprintf(stderr, "usage: stories text N SEED\n"
                "       stories qa N SEED train|heldout\n"
                "       stories recite N SEED\n"
                        "       stories entropy N SEED\n");
        return 2;
    }
    long n = atol(argv[2]);
    uint64_t seed = strtoull(argv[3], NULL, 10);
    check_templates();

    double nats = 0;
    long bytes = 0;
    for (long i = 0; i < n; i++) {
        struct story s;
        begin(&s, seed, i);
        if (qa) {
            char answer[64];
            ask(&s, heldout, answer, sizeof answer);
            printf("{\"question\": \"%.*s\", \"answer\": \" %s\"}\n", s.length, s.text,
                   answer);
        } else {
            if (lists_of_words) recite(&s);
            else tell(&s);
            if (text || lists_of_words) printf("%.*s\n", s.length, s.text);
        }
        nats += s.nats;
        bytes += s.length;
    }
    if (!text && !qa && !lists_of_words)
        printf("{\"stories\": %ld, \"bytes\": %ld, \"nats\": %.3f,"
               " \"nats_per_story\": %.4f}\n",
               n, bytes, nats, n ? nats / (double)n : 0.0);
    return 0;
}

#!/bin/sh
# The rules that keep neoxtune.c pleasant to read and safe to embed. Run as `make lint`.
# Each rule prints its failures as `file:line: reason`; a table of what was measured follows.
set -eu
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")/.."

LINES_C=16000       # neoxtune.c, generated tables apart
LINES_H=800
LINES_MAKE=150
LINE_MAX=${LINE_MAX:-100}
FUNCTION_MAX=120
FUNCTION_P90=50
IF_MAX=30
COMMENT_MIN=20      # per cent of non-blank lines
COMMENT_MAX=35
BUILD='cc -O3 -pthread -o neoxtune neoxtune.c -lm'

T=build/lint
rm -rf "$T"
mkdir -p "$T"
: > "$T/failures"
: > "$T/table"

fail() { echo "$1: $2" >> "$T/failures"; }
row() { printf '  %-44s %7s   %s\n' "$1" "$2" "$3" >> "$T/table"; }
at_most() { # file what value limit
    row "$2" "$3" "at most $4"
    [ "$3" -le "$4" ] || fail "$1:1" "$2: $3, at most $4"
}
lines() { awk 'END { print NR }' "$1"; }
where() { # the first line of neoxtune.c that names a symbol
    line=$(grep -nw -e "$1" neoxtune.c | sed -n '1s/:.*//p')
    echo "neoxtune.c:${line:-1}"
}

for f in neoxtune.c neoxtune.h Makefile README.md tests/test_api.c; do
    [ -f "$f" ] || { echo "$f:1: missing"; echo "lint: failed"; exit 1; }
done

# text.c: neoxtune.c up to the banner of the generated tables. The opening comment may name them.
awk '/GENERATED TABLES/ && body { exit } { print } /\*\// { body = 1 }' neoxtune.c > "$T/text.c"

# code.c: text.c without comments and with empty strings. Lines keep their numbers in both.
awk '{
    rest = $0; code = ""
    while (rest != "") {
        if (comment) {
            end = index(rest, "*/")
            rest = end ? substr(rest, end + 2) : ""
            if (end) comment = 0
        } else if (match(rest, /["\047]|\/\*|\/\//)) {
            mark = substr(rest, RSTART, RLENGTH)
            code = code substr(rest, 1, RSTART - 1)
            rest = substr(rest, RSTART + RLENGTH)
            if (mark == "//") rest = ""
            else if (mark == "/*") comment = 1
            else {
                code = code mark mark
                match(rest, "^([^\\\\" mark "]|\\\\.)*" mark)
                rest = RLENGTH > 0 ? substr(rest, RLENGTH + 1) : ""
            }
        } else { code = code rest; rest = "" }
    }
    sub(/[ \t]+$/, "", code)
    print code
}' "$T/text.c" > "$T/code.c"

# 1. The contents block of the opening comment equals the section banners, in the same order.
awk '
function title(s) {
    sub(/^ \*[ \t]*§[ \t]*/, "", s); gsub(/[ \t]+/, " ", s); sub(/ $/, "", s)
    return s
}
!body && /CONTENTS/ { contents = 1 }
!body && contents && /^ \*[ \t]*§[ \t]*[0-9]/ { c[++nc] = title($0); cl[nc] = NR; wanted[c[nc]] = 1 }
body && ruled && /^ \*[ \t]*§[ \t]*[0-9]/ { b[++nb] = title($0); bl[nb] = NR; found[b[nb]] = 1 }
{ ruled = /^\/\* ====+$/ }
/\*\// { body = 1 }
END {
    for (i = 1; i <= nc; i++)
        if (!(c[i] in found)) { bad = 1; print "neoxtune.c:" cl[i] ": no banner \"§ " c[i] "\"" }
    for (i = 1; i <= nb; i++)
        if (!(b[i] in wanted)) {
            bad = 1; print "neoxtune.c:" bl[i] ": \"§ " b[i] "\" is not in the contents"
        }
    for (i = 1; i <= nc && !bad; i++)
        if (c[i] != b[i]) {
            bad = 1; print "neoxtune.c:" bl[i] ": the contents have \"§ " c[i] "\" here"
        }
    if (nb != nc && !bad) { bad = 1; print "neoxtune.c:1: a section is named twice" }
    if (!nb) print "neoxtune.c:1: no section banners"
    print nb + 0 > SECTIONS
}' SECTIONS="$T/sections" neoxtune.c >> "$T/failures"
row "sections" "$(cat "$T/sections")" "as in the contents"

# 2. Sizes.
at_most neoxtune.c "neoxtune.c: lines without tables" "$(lines "$T/text.c")" $LINES_C
row "neoxtune.c: lines of generated tables" $(($(lines neoxtune.c) - $(lines "$T/text.c"))) ""
at_most neoxtune.h "neoxtune.h: lines" "$(lines neoxtune.h)" $LINES_H
at_most Makefile "Makefile: lines" "$(lines Makefile)" $LINES_MAKE

# 3. and 5. Functions start in column 0 and end with `}` in column 0; none is declared ahead, and no
# macro is longer than a function may be. functions: "length line name" for each.
awk '
function plain(s) {
    gsub(/__attribute__ *\(\(([^()]|\([^()]*\))*\)\)/, "", s); sub(/^ +/, "", s)
    return s
}
function found(s, length_) {
    name = match(s, /[a-z_][A-Za-z0-9_]* *\(/) ? substr(s, RSTART, RLENGTH - 1) : "?"
    print length_, start, name > FUNCTIONS
}
inside { if (/^}/) { found(sig, NR - start + 1); inside = 0 } next }
macro || /^[ \t]*#/ {
    if (!macro) start = NR
    macro = /\\$/; open = 0
    if (!macro && NR - start >= MAX) print "neoxtune.c:" start ": a macro of " NR - start + 1 " lines"
    next
}
/^$/ || /^}/ { open = 0; next }
!open && /^[A-Za-z_]/ { open = 1; start = NR; sig = "" }
!open { next }
{ sig = sig " " $0 }
/[;{}]$/ {
    open = 0; sig = plain(sig); head = sig; sub(/\{.*/, "", head)
    if (sig ~ /\{$/ && head ~ /\(/ && head !~ /=/) inside = 1
    else if (sig ~ /\}$/ && head ~ /\(/ && head !~ /=/) found(sig, NR - start + 1)
    else if (sig !~ /^(typedef|extern) / &&
             sig ~ /^[A-Za-z_][A-Za-z0-9_ *]*[ *][A-Za-z_][A-Za-z0-9_]* *\(.*\)[A-Z_ ]*;$/)
        print "neoxtune.c:" start ": a function is declared ahead of its definition"
}' FUNCTIONS="$T/functions" MAX=$FUNCTION_MAX "$T/code.c" >> "$T/failures"
touch "$T/functions"
sort -n "$T/functions" > "$T/sorted"
set -- $(awk '{ n[NR] = $1 }
    END { print NR, n[int((NR + 1) / 2)] + 0, n[int(NR * 0.9 + 0.999)] + 0, n[NR] + 0 }' "$T/sorted")
row "functions" "$1" ""
row "function length, median" "$2" "aim 15"
row "function length, 9 of 10" "$3" "under $FUNCTION_P90"
row "function length, longest" "$4" "at most $FUNCTION_MAX"
[ "$1" -gt 0 ] || fail neoxtune.c:1 "no functions recognised"
[ "$3" -lt $FUNCTION_P90 ] || fail neoxtune.c:1 "a tenth of the functions have $3 lines or more"
awk '$1 > MAX { print "neoxtune.c:" $2 ": " $3 "() has " $1 " lines, at most " MAX }' \
    MAX=$FUNCTION_MAX "$T/sorted" >> "$T/failures"

# 4. Line width in characters: bytes other than UTF-8 continuation bytes.
width() { # file name
    awk '{ gsub(/[\200-\277]/, ""); n = length($0) } n > top { top = n }
         n > MAX { print NAME ":" NR ": " n " columns, at most " MAX }
         END { print top + 0 > WIDEST }' MAX="$LINE_MAX" NAME="$2" WIDEST="$T/widest" "$1" \
        >> "$T/failures"
    row "$2: widest line" "$(cat "$T/widest")" "at most $LINE_MAX"
}
width "$T/text.c" neoxtune.c
width neoxtune.h neoxtune.h

# 6. Conditionals of the preprocessor.
ifs=$(grep -cE '^[ 	]*#[ 	]*(if|ifdef|ifndef|elif)([^a-z]|$)' neoxtune.c || true)
row "#if, #ifdef, #ifndef, #elif" "$ifs" "under $IF_MAX"
[ "$ifs" -lt $IF_MAX ] || fail neoxtune.c:1 "$ifs preprocessor conditionals, under $IF_MAX"

# 7. Comments: non-blank lines with a comment on them; those with nothing else are shown, too.
ratio=$(awk '/[^ \t]/ { lines++; if (inside || /\/\*/) comments++ }
    /\/\*/ { inside = 1 } /\*\// { inside = 0 }
    END { printf "%.1f", lines ? 100 * comments / lines : 0 }' "$T/text.c")
whole=$(awk '{ getline code < CODE } /[^ \t]/ { lines++; if (code !~ /[^ \t]/) comments++ }
    END { printf "%.1f", lines ? 100 * comments / lines : 0 }' CODE="$T/code.c" "$T/text.c")
row "lines of nothing but comment, per cent" "$whole" "aim 20"
row "comment lines, per cent" "$ratio" "20 to 30"
awk -v r="$ratio" -v lo=$COMMENT_MIN -v hi=$COMMENT_MAX 'BEGIN { exit r < lo || r > hi }' ||
    fail neoxtune.c:1 "$ratio per cent comments, $COMMENT_MIN to $COMMENT_MAX"

# 8. Nothing left lying about.
sources=$(find neoxtune.c neoxtune.h Makefile README.md .ci cuda data tests -type f ! -name lint.sh \
    \( -name '*.[ch]' -o -name '*.cu' -o -name '*.py' -o -name '*.sh' -o -name Makefile \
    -o -name README.md -o -name run \) 2> /dev/null || true)
grep -nwE 'TODO|FIXME|XXX|HACK' $sources /dev/null |
    sed 's/^\([^:]*:[0-9]*\):.*/\1: a note to self/' >> "$T/failures" || true
grep -nE '^[ 	]*#[ 	]*if[ 	]+0([^0-9a-zA-Z]|$)' $sources /dev/null |
    sed 's/^\([^:]*:[0-9]*\):.*/\1: dead code under #if 0/' >> "$T/failures" || true

# 9. As a library the file never exits, prints, reads the environment or takes signals; it has no
# mutable globals, and every name it exports starts with nxt_.
if ${CC:-cc} -c -O1 -fno-pic -fno-pie -DNXT_NO_MAIN -o "$T/neoxtune.o" neoxtune.c 2> "$T/errors"; then
    nm "$T/neoxtune.o" > "$T/symbols"
    for s in $(awk '$1 == "U" { print $2 }' "$T/symbols"); do
        base=${s#__}
        case ${base%_chk} in
        exit | _exit | _Exit | quick_exit | abort | assert_fail | raise | printf | fprintf | vprintf | \
        vfprintf | dprintf | vdprintf | puts | putchar | fputs | putc | perror | stdout | stderr | \
        stdin | getenv | secure_getenv | signal | sigaction)
            fail "$(where "${base%_chk}")" "library code must not use $s" ;;
        esac
    done
    for s in $(awk '$2 ~ /^[bBdDC]$/ { print $3 }' "$T/symbols"); do
        fail "$(where "${s%%.*}")" "mutable global $s"
    done
    for s in $(awk '$2 ~ /^[A-TV-Z]$/ && $3 !~ /^nxt_/ { print $3 }' "$T/symbols"); do
        fail "$(where "$s")" "exported name $s does not start with nxt_"
    done
    row "exported symbols" "$(grep -c ' [A-TV-Z] ' "$T/symbols" || true)" "all nxt_*"
else
    cat "$T/errors"
    fail neoxtune.c:1 "does not compile with -DNXT_NO_MAIN"
fi

# 10. One build command, the same everywhere.
sed '/\*\//q' neoxtune.c | grep -qF -e "$BUILD" || fail neoxtune.c:1 "the opening comment lacks \`$BUILD\`"
grep -qF -e "$BUILD" README.md || fail README.md:1 "lacks \`$BUILD\`"
MAKEFLAGS='' make -n -B CC=cc CFLAGS=-O3 neoxtune | grep -qxF -e "$BUILD" ||
    fail Makefile:1 "target neoxtune does not run \`$BUILD\`"

# 11. Every public function is tested through the header.
awk '/^[ \t]*#/ || !/NXT_API/ || /^ *(\*|\/[*\/])/ { next }
     match($0, /nxt_[a-z0-9_]+ *\(/) {
         name = substr($0, RSTART, RLENGTH - 1); sub(/ +$/, "", name); print NR, name; next
     }
     { print NR, "?" }' neoxtune.h > "$T/public"
while read -r line name; do
    if [ "$name" = "?" ]; then
        fail "neoxtune.h:$line" "the name belongs on the line with NXT_API"
    elif ! grep -qw -e "$name" tests/test_api.c; then
        fail "neoxtune.h:$line" "$name is not in tests/test_api.c"
    fi
done < "$T/public"
row "public functions" "$(lines "$T/public")" "all in tests/test_api.c"
[ -s "$T/public" ] || fail neoxtune.h:1 "no NXT_API declarations"

# 12. The hot kernels keep their fused multiply-adds under a host's -std=c11.
fast=$(grep -cF 'optimize("fp-contract=fast")' neoxtune.c || true)
row "optimize(\"fp-contract=fast\")" "$fast" "at least 1"
[ "$fast" -ge 1 ] || fail neoxtune.c:1 'no optimize("fp-contract=fast")'

# 13. Nothing else at the top level, as git sees it.
if [ -e .git ]; then
    git ls-files --cached --others --exclude-standard > "$T/files" || fail .git:1 "git ls-files failed"
    for f in $(sed 's,/.*,,' "$T/files" | sort -u); do
        case $f in
        neoxtune.c | neoxtune.h | cuda | tests | data | Makefile | README.md | LICENSE | .*) ;;
        *) fail "$f:1" "does not belong at the top level" ;;
        esac
    done
fi

cat "$T/failures"
cat "$T/table"
if [ -s "$T/failures" ]; then
    echo "lint: $(lines "$T/failures") failed"
    exit 1
fi
echo "lint: ok"

# neoxtune builds with one command and needs no make: cc -O3 -pthread -o neoxtune neoxtune.c -lm
# This file is for those who change it. `make help` lists the targets; every variable can be set on
# the command line; `make -j2` compiles in parallel (test programs always run one after another).

CC       ?= cc
CXX      ?= c++
CFLAGS   ?= -O3
AR       ?= ar
PYTHON   ?= python3

# What `make test` builds, where, and what it runs. The variants of `make check` set these otherwise.
# ARGS goes to every test program: --quick (smaller shapes), --long (every allocation made to fail).
# RUN goes before it: an emulator, when it was built for another processor.
B        ?= build
PROGRAM  ?= neoxtune
SUITES   ?= $(B)/test $(B)/test_api $(B)/test_api_cxx tests/test_cli.sh
ARGS     ?=
RUN      ?=

# What `make check` adds. `make check QUICK=` runs the tests of every variant in full.
GCC      ?= gcc
GXX      ?= g++
CLANG    ?= clang
CLANGXX  ?= clang++
AARCH64  ?= aarch64-linux-gnu-gcc
QUICK    ?= --quick
WARNINGS ?= -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes -Wstrict-prototypes -Wconversion \
            -Wno-sign-conversion -Werror
FUZZ_SECONDS ?= 20

SOURCE = neoxtune.c neoxtune.h
TESTED = $(SOURCE) $(wildcard tests/*.h)

all: neoxtune ## the program (default)

neoxtune: $(SOURCE)
	$(CC) $(CFLAGS) -pthread -o neoxtune neoxtune.c -lm

lib: $(B)/neoxtune.o ## libneoxtune.a, for programs that link rather than compile the one file
	rm -f libneoxtune.a && $(AR) rcs libneoxtune.a $(B)/neoxtune.o

$(B)/neoxtune: $(SOURCE)
	mkdir -p $(B) && $(CC) $(CFLAGS) $(WARN) -pthread -o $@ neoxtune.c -lm

$(B)/neoxtune.o: $(SOURCE)
	mkdir -p $(B) && $(CC) $(CFLAGS) $(WARN) -pthread -DNXT_NO_MAIN -c -o $@ neoxtune.c

$(B)/test: tests/test.c $(TESTED)
	mkdir -p $(B) && $(CC) $(CFLAGS) $(WARN_TEST) -g -pthread -o $@ tests/test.c -lm

$(B)/test_api: tests/test_api.c $(TESTED) $(B)/neoxtune.o
	$(CC) $(CFLAGS) $(WARN_TEST) -g -pthread -o $@ tests/test_api.c $(B)/neoxtune.o -lm

$(B)/test_api_cxx: tests/test_api.c $(TESTED) $(B)/neoxtune.o
	$(CXX) $(CFLAGS) $(WARN_TEST) -std=c++17 -g -pthread -o $@ -x c++ tests/test_api.c -x none \
	    $(B)/neoxtune.o -lm

# Every program ends with a line "N passed, N failed" or "N passed, N failed, N skipped" and exits 0
# or 1. A program that prints no such line, or exits otherwise than it says, is one failure more.
# The last line of `make test` is the sum, and it is the sum that decides.
SUM = awk '{ p += $$1; f += $$3; s += $$5 } END { printf "%d passed, %d failed", p, f; \
          if (s) printf ", %d skipped", s; print ""; exit f > 0 || p == 0 }'

test: $(SUITES) $(PROGRAM) ## the tests: white box, the API from C and C++, the command line
	@mkdir -p $(B); : > $(B)/results; \
	for t in $(SUITES); do \
	    echo "== $$t $(ARGS)"; rm -f $(B)/status; \
	    case $$t in *.sh) run="sh $$t";; *) run="$(RUN) $$t";; esac; \
	    { NEOXTUNE="$$PWD/$(PROGRAM)" $$run $(ARGS); echo $$? > $(B)/status; } 2>&1 | tee $(B)/log; \
	    status=$$(cat $(B)/status); test "$$status" = 0 || echo "$$t: exit status $$status"; \
	    awk -v status="$$status" '/^[0-9]+ passed, [0-9]+ failed/ { line = $$0; failed = $$3 + 0 } \
	        END { if (line) print line; \
	              if (!line || (status != "0" && !failed)) print "0 passed, 1 failed" }' \
	        $(B)/log >> $(B)/results; \
	done; $(SUM) $(B)/results

# Each variant is `make test` again in its own directory; `make check-asan` runs one of them.
VARIANTS ?= asan tsan nosimd nothreads O0 c11 clang neon
SANITIZE       = -O1 -fno-omit-frame-pointer -Wno-maybe-uninitialized
UNIT_ONLY      = SUITES='$$(B)/test $$(B)/test_api' PROGRAM=
WITH_asan      = CFLAGS='$(SANITIZE) -fsanitize=address,undefined -fno-sanitize-recover=all -g' \
                 ARGS='$(QUICK) --long'
WITH_tsan      = CFLAGS='$(SANITIZE) -fsanitize=thread' $(UNIT_ONLY)
WITH_nosimd    = CFLAGS='-O3 -DNXT_NO_SIMD' $(UNIT_ONLY)
WITH_nothreads = CFLAGS='-O3 -DNXT_NO_THREADS'
WITH_O0        = CFLAGS='-O0' $(UNIT_ONLY)
WITH_c11 = CC='$(GCC) -std=c11 -pedantic' CFLAGS='-O3'
WITH_clang     = CFLAGS='-O3' CC='$(CLANG)' CXX='$(CLANGXX)'
WITH_neon      = CC='$(AARCH64)' CFLAGS='-O3 -static' RUN=qemu-aarch64 SUITES='$$(B)/test' PROGRAM= \
                 ARGS='$(QUICK) op_ fast_ golden_ train_threads session'

check: check-compile ## the tests under sanitizers, without SIMD, without threads, -O0, C11, clang
	@rm -f build/*/results; for v in $(VARIANTS); do \
	    echo "==== check-$$v"; mkdir -p build/$$v; \
	    $(MAKE) --no-print-directory check-$$v || test -s build/$$v/results || \
	        echo "0 passed, 1 failed" > build/$$v/results; \
	done; cat build/*/results > build/check-results; $(SUM) build/check-results

$(VARIANTS:%=check-%):
	@ASAN_OPTIONS=allocator_may_return_null=1 TSAN_OPTIONS=allocator_may_return_null=1 \
	UBSAN_OPTIONS=print_stacktrace=1 $(MAKE) --no-print-directory test CC='$(GCC)' CXX='$(GXX)' \
	    B=build/$(@:check-%=%) PROGRAM=build/$(@:check-%=%)/neoxtune ARGS='$(QUICK)' \
	    WARN='$(WARNINGS)' WARN_TEST='-Wall -Wextra -Werror' $(WITH_$(@:check-%=%))

check-compile: ## the header in C11 and C++17, the file with parts left out (NXT_NO_*)
	@mkdir -p build
	$(GCC) -std=c11 -pedantic $(WARNINGS) -fsyntax-only -include ./neoxtune.h -x c neoxtune.h
	$(GXX) -std=c++17 -pedantic -Wall -Wextra -Werror -fsyntax-only -x c++ neoxtune.h
	$(CLANGXX) -std=c++17 -pedantic -Wall -Wextra -Werror -fsyntax-only -x c++ neoxtune.h
	$(GCC) -O1 $(WARNINGS) -DNXT_NO_MAIN -DNXT_NO_REPORT -c -o build/small.o neoxtune.c
	$(CLANG) -O1 $(WARNINGS) -DNXT_NO_MAIN -DNXT_NO_REPORT -DNXT_NO_SIMD -DNXT_NO_THREADS -c \
	    -o build/small.o neoxtune.c

lint: ## the rules of the source: contents, lengths, conditionals, comments, symbols
	@CC='$(CC)' sh tests/lint.sh

# tests/bench.c and tests/fuzz_*.c include ../neoxtune.c, like tests/test.c.
bench: neoxtune tests/bench.c $(TESTED) ## kernels, then the operations of training steps
	mkdir -p $(B) && $(CC) $(CFLAGS) -pthread -o $(B)/bench tests/bench.c -lm
	$(B)/bench $(ARGS)
	./neoxtune bench
	./neoxtune bench --config data/pico-neox/config.json --block-size 32 --per-device-train-batch-size 32

fuzz: ## every tests/fuzz_*.c for FUZZ_SECONDS (needs clang's libFuzzer)
	@set -e; mkdir -p build/fuzz; for f in tests/fuzz_*.c; do \
	    n=$$(basename $$f .c); mkdir -p build/fuzz/$$n.corpus; echo "== $$n"; \
	    $(CLANG) -O1 -g -pthread -fsanitize=fuzzer,address -o build/fuzz/$$n $$f -lm; \
	    build/fuzz/$$n -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/ \
	        build/fuzz/$$n.corpus; \
	done

demo: neoxtune ## fine-tune the small model of data/ and show what changed (about a minute)
	sh data/demo.sh

pico: neoxtune ## train the small model of data/ again from nothing
	sh data/pico.sh

golden: ## make the expected values of the tests again (needs Python packages, see the script)
	$(PYTHON) tests/make_golden.py

clean: ## remove what the other targets built
	rm -rf build neoxtune libneoxtune.a

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: all lib test check check-compile $(VARIANTS:%=check-%) lint bench fuzz demo pico golden \
        clean help

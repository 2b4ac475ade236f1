# mohawk.h is one header: nothing here is needed to use it. This file builds the command line and the tests.
# Needs a C compiler and GNU make. `make help` says what there is.

CFLAGS ?= -O3
CXX ?= c++
PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build
PYTHON ?= python3
JOBS ?= 2
V ?= 0

VERSION := $(shell sed -n 's/^.define MHK_VERSION "\(.*\)"/\1/p' mohawk.h 2>/dev/null)
WARNINGS := -Wall -Wextra
LIBS := -lm

# OpenMP when the compiler has it together with its library; `make OPENMP=` builds without.
ifeq ($(filter help clean uninstall,$(or $(MAKECMDGOALS),help)),)
OPENMP := $(shell mkdir -p $(BUILD) && echo 'int omp_get_max_threads(void); int main(void) { return omp_get_max_threads() < 1; }' >$(BUILD)/openmp.c && \
  $(CC) $(CFLAGS) -fopenmp $(BUILD)/openmp.c -o $(BUILD)/openmp.out >/dev/null 2>&1 && echo -fopenmp)
endif

# the command line; tools/bench/peer_* are programs of their own, which peers.py builds
TOOLS := $(filter-out tools/mohawk_impl.c,$(wildcard tools/*.c)) $(filter-out tools/bench/peer_%,$(wildcard tools/bench/*.c))
TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
# these run once more with all arithmetic in double
DOUBLE := $(filter test_golden test_ops test_kernels,$(TESTS))
PROGRAMS := $(TESTS:%=$(BUILD)/%) $(DOUBLE:%=$(BUILD)/%64)
export CC CXX CFLAGS BUILD JOBS

comma := ,
ifeq ($(V),1)
show = @mkdir -p $(@D); echo '$(1)'; $(1)
else
show = @mkdir -p $(@D); if $(1); then printf 'building  %-18s %s ... ok\n' '$(@F)' '$(or $(3),$(CC) $(CFLAGS) $(OPENMP))$(2)'; else \
  printf 'building  %-18s %s ... failed\n' '$(@F)' '$(or $(3),$(CC) $(CFLAGS) $(OPENMP))$(2)'; exit 1; fi
endif

.PHONY: help all docs demo test golden models fuzz bench bench-peers bench-base bits interop mcu web test-web test-report install uninstall clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo              distill the bundled teacher into a state-space model, under 5 minutes; TEACHER=DIR another one'
	@echo 'make all               build the command line: $(BUILD)/mohawk'
	@echo 'make test              build and run all tests'
	@echo 'make golden DIR=path   compare the header with reference values in path (default tests/golden)'
	@echo 'make models DIR=path   test it on the model folders in path (default examples)'
	@echo 'make fuzz              fuzz all formats with libFuzzer, SECONDS=20 per target (needs clang); ARGS="model config" for some'
	@echo 'make $(BUILD)/libmohawk.so   build a shared library, for Python (examples/python.py) and other languages'
	@echo 'make bench             measure speed and compare it with the limit of the machine: $(BUILD)/bench.json'
	@echo 'make bench-peers       the same, alternating with OpenBLAS, oneDNN, PyTorch, and ggml if GGML_DIR is its source;'
	@echo '                       installs them if it can. ARGS="--filter core,step --threads 1" and MODELS="DIR ..." for both;'
	@echo '                       ARGS="--filter scaling --threads 1,2,4,8,16" shows what more threads bring'
	@echo 'make bench-base BASE=rev   compare this tree with that revision (or folder): the ratio of each row, worst first;'
	@echo '                       fails if a row is more than 3 % slower. ARGS as above, and --rounds 3 --pairs 5'
	@echo 'make bits BASE=rev     compare hashes of all results with those of the header at that revision'
	@echo 'make interop           compare with PyTorch, transformers and tokenizers (in $(PYTHON))'
	@echo 'make mcu               run the microcontroller example in qemu-system-arm (needs gcc-arm-none-eabi)'
	@echo 'make web               build the page of examples/web, ready to serve: $(WEB) (needs emscripten)'
	@echo 'make test-web          test that page in a headless Chromium'
	@echo 'make test-report       the same for the page of mohawk report'
	@echo 'make docs              write a manual page for each command, and completion for bash and zsh: $(BUILD)/docs'
	@echo 'make install           install header, pkg-config file, mohawk, its manual pages and completion; PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'make uninstall         remove what install installed'
	@echo 'make clean             remove $(BUILD)'
	@echo
	@echo 'Variables: CC, CFLAGS (now $(CFLAGS)), OPENMP= for a build without OpenMP, V=1 to see the commands.'

all: $(BUILD)/mohawk

# The implementation, compiled once for each arithmetic and shared by the command line and the tests.
$(BUILD)/mohawk.o: mohawk.h tools/mohawk_impl.c
	$(call show,$(CC) $(WARNINGS) $(CFLAGS) $(OPENMP) -c tools/mohawk_impl.c -o $@)

$(BUILD)/mohawk64.o: mohawk.h tools/mohawk_impl.c
	$(call show,$(CC) $(WARNINGS) $(CFLAGS) $(OPENMP) -DMOHAWK_DOUBLE -c tools/mohawk_impl.c -o $@, -DMOHAWK_DOUBLE)

# For other languages: a library that exports the functions of the interface and nothing else.
$(BUILD)/libmohawk.so: mohawk.h tools/mohawk_impl.c
	$(call show,$(CC) $(WARNINGS) $(CFLAGS) $(OPENMP) -fPIC -shared tools/mohawk_impl.c $(LIBS) -o $@)

$(BUILD)/mohawk: $(BUILD)/mohawk.o $(TOOLS) $(wildcard tools/*.h tools/bench/*.h)
	$(call show,$(CC) $(WARNINGS) $(CFLAGS) $(OPENMP) $(TOOLS) $(BUILD)/mohawk.o $(LIBS) -o $@)

$(BUILD)/test_%64: tests/test_%.c $(BUILD)/mohawk64.o $(wildcard tests/*.h)
	$(call show,$(CC) -std=gnu99 $(WARNINGS) $(CFLAGS) $(OPENMP) -DMOHAWK_DOUBLE $< $(BUILD)/mohawk64.o $(LIBS) -o $@, -DMOHAWK_DOUBLE)

$(BUILD)/test_%: tests/test_%.c $(BUILD)/mohawk.o $(wildcard tests/*.h)
	$(call show,$(CC) -std=gnu99 $(WARNINGS) $(CFLAGS) $(OPENMP) $< $(BUILD)/mohawk.o $(LIBS) -o $@)

# every public function of the header with arguments that make no sense: its declarations say which
$(BUILD)/arguments.h: tests/arguments.awk tests/test_arguments.c mohawk.h
	@mkdir -p $(@D); awk -f tests/arguments.awk tests/test_arguments.c mohawk.h >$@

$(BUILD)/test_arguments: tests/test_arguments.c $(BUILD)/arguments.h $(BUILD)/mohawk.o $(wildcard tests/*.h)
	$(call show,$(CC) -std=gnu99 $(WARNINGS) $(CFLAGS) $(OPENMP) -I$(BUILD) $< $(BUILD)/mohawk.o $(LIBS) -o $@)

# some tests include the tools' readers of foreign layouts
FOREIGN := $(wildcard tools/foreign.[ch] tools/gguf.[ch]) tools/pytorch.c tools/vocabulary.c
$(BUILD)/test_archives $(BUILD)/test_gguf $(BUILD)/test_sessions $(BUILD)/test_tokenizer $(BUILD)/fuzz/fuzz: $(FOREIGN)

$(BUILD)/test_threads: tools/threads.c tools/cli.h

$(BUILD)/write_models $(BUILD)/encode: $(BUILD)/%: tests/%.c $(BUILD)/mohawk.o $(FOREIGN)
	$(call show,$(CC) -std=gnu99 $(WARNINGS) $(CFLAGS) $(OPENMP) $< $(BUILD)/mohawk.o $(LIBS) -o $@)

demo: $(BUILD)/mohawk
	@$(BUILD)/mohawk demo $(if $(TEACHER),--teacher '$(TEACHER)')

# tests of the command line
SCRIPTS := $(wildcard tests/test_*.sh)
test:
	@$(MAKE) --no-print-directory -j$(JOBS) $(PROGRAMS) $(BUILD)/mohawk $(BUILD)/write_models $(BUILD)/encode
	@PYTHON='$(PYTHON)' sh tests/run.sh $(PROGRAMS) $(sort $(SCRIPTS)) tests/interop.py $(sort $(wildcard tests/test_*.py))

golden: $(BUILD)/test_golden $(BUILD)/test_golden64
	@status=0; echo 'float32:'; $(BUILD)/test_golden --report --dir '$(or $(DIR),tests/golden)' || status=1; \
	echo 'float64:'; $(BUILD)/test_golden64 --report --dir '$(or $(DIR),tests/golden)' || status=1; exit $$status

models: $(BUILD)/test_sessions
	@$(BUILD)/test_sessions --dir '$(or $(DIR),examples)'

# One program for all formats; libFuzzer and the sanitizers' libraries are linked into it.
$(BUILD)/fuzz/fuzz: tests/fuzz/fuzz.c $(wildcard tests/*.h) mohawk.h
	@mkdir -p $(@D)
	clang -std=gnu99 $(WARNINGS) -gline-tables-only -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all $< -lm -o $@

SECONDS ?= 20
fuzz: $(BUILD)/fuzz/fuzz
	@SECONDS_EACH=$(SECONDS) JOBS=$(JOBS) WORK=$(BUILD)/fuzz/work sh tests/fuzz/run.sh $< $(ARGS)

# threads spin for about 0.1 ms before they sleep: enough from one loop to the next, not ruinous on a busy machine
# teachers that are measured: MODELS="examples/tiny DIR ..."
empty :=
MODELS ?= examples/tiny
WITH_MODELS = --model '$(subst $(empty) $(empty),$(comma),$(strip $(MODELS)))'
bench: $(BUILD)/mohawk
	@GOMP_SPINCOUNT=$${GOMP_SPINCOUNT-5000} $(BUILD)/mohawk bench --out $(BUILD)/bench.json $(WITH_MODELS) $(ARGS)

bench-peers: $(BUILD)/mohawk
	@$(PYTHON) tools/bench/peers.py $(WITH_MODELS) $(ARGS)

# both are built with the compiler and flags of this call
bench-base:
	@OPENMP='$(OPENMP)' $(PYTHON) tools/bench/base.py '$(BASE)' $(WITH_MODELS) $(ARGS)

# the same bits as the header of another revision of this repository: make bits BASE=HEAD~3
bits:
	@mkdir -p $(BUILD) && OPENMP='$(OPENMP)' sh tests/bits.sh $(BASE)

interop: $(BUILD)/write_models $(BUILD)/encode
	@PYTHON='$(PYTHON)' sh tests/run.sh tests/interop.py $(sort $(wildcard tests/test_*.py))

# The page: one folder for any static server. Its student is distilled here, from a text that the teacher writes.
EMCC ?= emcc
EMFLAGS := -O3 -msimd128 -std=gnu99 -sMODULARIZE=1 -sEXPORT_NAME=createMohawk -sENVIRONMENT=worker -sALLOW_MEMORY_GROWTH=1 -sFILESYSTEM=0 \
  -sDYNAMIC_EXECUTION=0 -sEXPORTED_FUNCTIONS=_malloc,_free -sEXPORTED_RUNTIME_METHODS=UTF8ToString
WEB := $(BUILD)/web
web: $(WEB)/mohawk.js $(WEB)/teacher.safetensors $(WEB)/student.safetensors
	@cp examples/web/index.html examples/web/app.css examples/web/app.js examples/web/worker.js $(WEB)
	@echo "serve it: $(PYTHON) -m http.server --directory $(WEB) 8000, then open http://localhost:8000"

test-web: $(BUILD)/mohawk web
	@BUILD='$(BUILD)' $(PYTHON) tests/web.py

test-report: $(BUILD)/mohawk
	@BUILD='$(BUILD)' $(PYTHON) tests/report.py

# NODE_PATH: where Debian keeps the modules that its emcc asks node for
$(WEB)/mohawk.js: mohawk.h examples/web/web.c
	@mkdir -p $(WEB)
	NODE_PATH=$${NODE_PATH-/usr/share/nodejs} $(EMCC) $(WARNINGS) $(EMFLAGS) examples/web/web.c $(LIBS) -o $@

$(WEB)/teacher.safetensors: examples/tiny/model.safetensors | $(BUILD)/mohawk
	@mkdir -p $(WEB)
	$(BUILD)/mohawk convert --model examples/tiny --out $@

$(WEB)/student.safetensors: examples/tiny/model.safetensors | $(BUILD)/mohawk
	@mkdir -p $(WEB)
	$(BUILD)/mohawk distill --teacher examples/tiny --out $(BUILD)/web-run --tokens 60k,100k,80k --lr -,-,3e-4 --batch 1 --length 128 --sample-tokens 64k \
	  --threads 1 --no-eval --fresh
	$(BUILD)/mohawk quantize --model $(BUILD)/web-run/student --out $@

# The microcontroller: the same program for a Cortex-M7, run in QEMU, and for this computer, to compare with.
ARM_CC ?= arm-none-eabi-gcc
ARM_FLAGS := -mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard -mthumb -std=gnu99 -O2 -ffunction-sections -fdata-sections
QEMU_ARM ?= qemu-system-arm
MCU := $(BUILD)/mcu
MCU_MODEL ?= $(WEB)/student.safetensors
mcu: $(MCU)/mohawk.elf
	@$(QEMU_ARM) -M mps2-an500 -nographic -semihosting -kernel $<

$(MCU)/array: examples/mcu/array.c
	$(call show,$(CC) $(WARNINGS) $(CFLAGS) $< -o $@,,$(CC) $(CFLAGS))

$(MCU)/model.c: $(MCU_MODEL) $(MCU)/array | $(BUILD)/mohawk
	$(BUILD)/mohawk quantize --model $(MCU_MODEL) --out $(MCU)/model.safetensors --type int8
	@$(MCU)/array $(MCU)/model.safetensors >$@

$(MCU)/mohawk.elf: $(MCU)/model.c $(wildcard examples/mcu/*) mohawk.h
	$(call show,$(ARM_CC) $(ARM_FLAGS) $(WARNINGS) -I. -Iexamples/mcu -Wl$(comma)--gc-sections -nostartfiles -T examples/mcu/an500.ld \
	  examples/mcu/main.c examples/mcu/board_an500.c $(MCU)/model.c -lm -o $@,,$(ARM_CC) $(ARM_FLAGS))

$(MCU)/host: $(MCU)/model.c $(wildcard examples/mcu/*) mohawk.h
	$(call show,$(CC) $(WARNINGS) -std=gnu99 -O2 -I. -Iexamples/mcu examples/mcu/main.c examples/mcu/board_host.c $(MCU)/model.c $(LIBS) -o $@,,$(CC) -O2)

# From the tables of options: a page for each command, completion for two shells.
docs: $(BUILD)/mohawk
	@mkdir -p $(BUILD)/docs && for command in $$($(BUILD)/mohawk completion man); do \
	  $(BUILD)/mohawk completion man $$command >$(BUILD)/docs/mohawk-$$command.1 || exit 1; done
	@$(BUILD)/mohawk completion bash >$(BUILD)/docs/mohawk.bash && $(BUILD)/mohawk completion zsh >$(BUILD)/docs/_mohawk

SHARE = $(DESTDIR)$(PREFIX)/share
BASH_COMPLETION = $(SHARE)/bash-completion/completions
ZSH_COMPLETION = $(SHARE)/zsh/site-functions
install: $(BUILD)/mohawk docs
	@mkdir -p '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib/pkgconfig' '$(SHARE)/man/man1' \
	  '$(BASH_COMPLETION)' '$(ZSH_COMPLETION)'
	@cp mohawk.h '$(DESTDIR)$(PREFIX)/include/mohawk.h'
	@cp $(BUILD)/mohawk '$(DESTDIR)$(PREFIX)/bin/mohawk'
	@cp tools/mohawk.1 $(BUILD)/docs/mohawk-*.1 '$(SHARE)/man/man1'
	@cp $(BUILD)/docs/mohawk.bash '$(BASH_COMPLETION)/mohawk'
	@cp $(BUILD)/docs/_mohawk '$(ZSH_COMPLETION)/_mohawk'
	@printf 'prefix=%s\nincludedir=$${prefix}/include\n\nName: mohawk\nDescription: distills Transformers into state-space models; single header\nVersion: %s\nCflags: -I$${includedir}\nLibs: -lm\n' \
	  '$(PREFIX)' '$(VERSION)' >'$(DESTDIR)$(PREFIX)/lib/pkgconfig/mohawk.pc'
	@chmod 644 '$(DESTDIR)$(PREFIX)/include/mohawk.h' '$(SHARE)/man/man1'/mohawk*.1 '$(BASH_COMPLETION)/mohawk' '$(ZSH_COMPLETION)/_mohawk' \
	  '$(DESTDIR)$(PREFIX)/lib/pkgconfig/mohawk.pc'
	@echo 'installed mohawk.h, mohawk.pc, mohawk, its manual pages and completion under $(DESTDIR)$(PREFIX)'

uninstall:
	@rm -f '$(DESTDIR)$(PREFIX)/include/mohawk.h' '$(DESTDIR)$(PREFIX)/bin/mohawk' '$(DESTDIR)$(PREFIX)/lib/pkgconfig/mohawk.pc' \
	  '$(SHARE)/man/man1/mohawk.1' '$(SHARE)/man/man1'/mohawk-*.1 '$(BASH_COMPLETION)/mohawk' '$(ZSH_COMPLETION)/_mohawk'
	@echo 'removed mohawk from $(DESTDIR)$(PREFIX)'

clean:
	@rm -rf '$(BUILD)'

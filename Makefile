# Lake. `make demo` shows it at work, `make test` runs everything; `make` alone builds
# build/bin/laked and build/bin/lakectl. SANITIZE=address,undefined or thread builds beside it.
ifeq ($(origin CC),default)
CC := gcc
endif
SANITIZE ?=
comma := ,
BUILD ?= build$(if $(SANITIZE),/sanitize-$(subst $(comma),-,$(SANITIZE)))
PREFIX ?= /usr/local
DESTDIR ?=

PACKAGES := fuse3 libcjson lmdb libzstd libcrypto libcurl expat
# HASH_NONFATAL_OOM: uthash would end the process; so an element without `hh.tbl` was not added.
CPPFLAGS += -I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DHASH_NONFATAL_OOM=1 $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null) \
	-DLAKE_AUDITS_PATH='"$(PREFIX)/share/lake/audits"'
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
	-Wvla -Wundef -Wformat=2 -Wno-unused-parameter
CFLAGS ?= -O2 -g
override CFLAGS += -std=gnu17 -pthread -fno-omit-frame-pointer $(WARNINGS) \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)
override LDFLAGS += -pthread $(if $(SANITIZE),-fsanitize=$(SANITIZE))
LIBS := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null)

FOLDERS := store cache refs fs fs/mount fs/commands fs/publish
PROGRAM_NAMES := laked lakectl mount.lake
SOURCES := $(wildcard $(addsuffix /*.c,$(FOLDERS)))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
LIBRARY := $(BUILD)/liblake.a
TOOL_SOURCES := $(filter-out $(PROGRAM_NAMES:%=tools/%.c),$(wildcard tools/*.c))
TOOL_OBJECTS := $(TOOL_SOURCES:%.c=$(BUILD)/%.o)
PROGRAMS := $(PROGRAM_NAMES:%=$(BUILD)/bin/%)
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(wildcard tests/unit/test_*.c))
HELPERS := $(patsubst tests/lib/%.c,$(BUILD)/tests/lib/%,$(wildcard tests/lib/*.c))
FUZZERS := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))

ASAN := build/sanitize-address-undefined
TSAN := build/sanitize-thread
# Unit tests whose modules run threads: these also run under ThreadSanitizer.
THREADED := test_thread test_odb test_packer test_pack_window test_cache test_cache_files test_cache_ahead test_cache_columns test_state test_worktree test_file_data \
	test_snapshot test_follow test_known test_program test_rules test_vfs test_vfs_ahead test_object test_s3_store test_s3_credentials test_webhook
# Tests of a mount that many clients use at once: these run once more with programs under ThreadSanitizer.
RACING := tests/mount/test_stress.py tests/mount/test_fsstress.py tests/mount/test_protect.py tests/fault/test_hosts.py
FUZZ_SECONDS ?= 10

quiet = @printf '%-5s %s\n' $(1) $(subst $(BUILD)/,,$@);

.PHONY: all unit-tests test test-unit test-mount test-fault test-clients test-threads test-fuzz \
	bench fuzz check format demo demo-stop install clean
.DELETE_ON_ERROR:
all: $(PROGRAMS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

# Where `make install` of the same PREFIX puts the audits.
$(BUILD)/fs/publish/audit.o: CPPFLAGS += -DLAKE_AUDITS_PATH='"$(PREFIX)/share/lake/audits"'

$(LIBRARY): $(OBJECTS)
	@rm -f $@
	$(call quiet,AR) ar rcs $@ $^

$(PROGRAMS): $(BUILD)/bin/%: $(BUILD)/tools/%.o $(TOOL_OBJECTS) $(LIBRARY)
	@mkdir -p $(@D)
	$(call quiet,LINK) $(CC) $(CFLAGS) $(LDFLAGS) $^ $(LIBS) -o $@

$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(LIBRARY)
	$(call quiet,LINK) $(CC) $(CFLAGS) $(LDFLAGS) $^ $(LIBS) -lcmocka -o $@

$(BUILD)/tests/lib/%: $(BUILD)/tests/lib/%.o
	$(call quiet,LINK) $(CC) $(CFLAGS) $(LDFLAGS) $^ $(HELPER_LIBS) -o $@
$(BUILD)/tests/lib/record_disk: HELPER_LIBS := $(shell pkg-config --libs fuse3 2>/dev/null)

unit-tests: $(UNIT_TESTS)
helpers: $(HELPERS)

# -- tests: each suite ends with "N passed, N failed, N skipped" --
test:
	tests/lib/install.sh build test
	$(MAKE) -j2 all helpers
	$(MAKE) -j2 SANITIZE=address,undefined unit-tests all
	$(MAKE) -j2 SANITIZE=thread $(THREADED:%=$(TSAN)/tests/unit/%) all
	$(MAKE) -j2 $(FUZZERS)
	TEST_BIN_mount=$(ASAN)/bin TEST_BIN_races=$(TSAN)/bin tests/run.sh check tests/lib/check.sh -- fuzz tests/fuzz/run.sh \
		$(foreach t,$(wildcard tests/unit/test_*.c),-- unit $(ASAN)/tests/unit/$(basename $(notdir $(t)))) \
		$(foreach t,$(THREADED),-- threads $(TSAN)/tests/unit/$(t)) \
		$(foreach t,$(RACING),-- races $(t)) \
		$(foreach t,$(wildcard tests/mount/test_*),-- mount $(t)) \
		$(foreach t,$(wildcard tests/fault/test_*),-- fault $(t)) \
		$(foreach t,$(wildcard tests/clients/test_*),-- clients $(t))

test-unit: unit-tests
	tests/run.sh $(foreach t,$(UNIT_TESTS),-- unit $(t))
test-mount: all helpers
	tests/run.sh $(foreach t,$(wildcard tests/mount/test_*),-- mount $(t))
test-fault: all helpers
	tests/run.sh $(foreach t,$(wildcard tests/fault/test_*),-- fault $(t))
test-clients: all
	tests/run.sh $(foreach t,$(wildcard tests/clients/test_*),-- clients $(t))
test-threads: helpers
	$(MAKE) SANITIZE=thread $(THREADED:%=$(TSAN)/tests/unit/%) all
	TEST_BIN_races=$(TSAN)/bin tests/run.sh $(foreach t,$(THREADED),-- threads $(TSAN)/tests/unit/$(t)) \
		$(foreach t,$(RACING),-- races $(t))
check:
	tests/run.sh check tests/lib/check.sh

# -- fuzzing: one clang program per decoder, FUZZ_SECONDS each; the library is built once --
FUZZ_FLAGS := -std=gnu17 -O1 -g -pthread -Wno-everything -fno-sanitize-recover=all
FUZZ_OBJECTS := $(SOURCES:%.c=build/fuzz/objects/%.o) $(TOOL_SOURCES:%.c=build/fuzz/objects/%.o)
build/fuzz/objects/%.o: %.c
	@mkdir -p $(@D)
	$(call quiet,CLANG) clang $(CPPFLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,address,undefined \
		-MMD -MP -c $< -o $@
build/fuzz/liblake.a: $(FUZZ_OBJECTS)
	@rm -f $@
	$(call quiet,AR) ar rcs $@ $^
build/fuzz/fuzz_%: tests/fuzz/fuzz_%.c build/fuzz/liblake.a
	$(call quiet,FUZZ) clang $(CPPFLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer,address,undefined $^ $(LIBS) -o $@
fuzz: $(FUZZERS)
	FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/run.sh

bench: all helpers
	tests/lib/install.sh build bench
	tests/bench/run.sh

format:
	clang-format -i $(wildcard $(addsuffix /*.[ch],$(FOLDERS) tools tests/unit tests/fuzz tests/lib))

demo:
	tests/lib/install.sh build demo
	$(MAKE) -j2 all
	packaging/examples/demo.sh start
demo-stop:
	packaging/examples/demo.sh stop

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 $(PROGRAM_NAMES:%=$(BUILD)/bin/%) $(DESTDIR)$(PREFIX)/bin
	install -m 644 packaging/man/lakectl.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 packaging/man/laked.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -D -m 644 packaging/completions/lakectl.bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/lakectl
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/local/bin/,$(PREFIX)/bin/,' packaging/systemd/lake@.service \
		>$(DESTDIR)$(PREFIX)/lib/systemd/system/lake@.service
	chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/lake@.service
	install -d $(DESTDIR)$(PREFIX)/share/lake/audits
	install -m 755 $(filter-out %.md %.py,$(wildcard packaging/audits/[a-z]*)) $(DESTDIR)$(PREFIX)/share/lake/audits
	install -m 644 packaging/audits/lake_audit.py packaging/audits/README.md $(DESTDIR)$(PREFIX)/share/lake/audits
	install -d $(DESTDIR)$(PREFIX)/share/lake/policy
	install -m 644 $(wildcard packaging/policy/*) $(DESTDIR)$(PREFIX)/share/lake/policy

clean:
	rm -rf build/bin build/sanitize-* build/fuzz build/liblake.a $(addprefix build/,$(FOLDERS) tools tests)

.PRECIOUS: %.o
-include $(OBJECTS:.o=.d) $(FUZZ_OBJECTS:.o=.d) $(TOOL_OBJECTS:.o=.d) $(PROGRAM_NAMES:%=$(BUILD)/tools/%.d) \
	$(UNIT_TESTS:=.d)

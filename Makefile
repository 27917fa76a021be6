# Needs python3 (3.11 or newer) with venv, make and a C compiler; everything else is installed into .venv.
#
#   make demo       builds, then replays the shipped capture against the embedded sink
#   make example    builds, then mirrors to version 2 of a real service (as root, with tcpdump): examples/customer-v2/
#   make test       builds, then lint, types, the sanitizer build and all tests (CI=true adds the slow ones)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := setup.py pyproject.toml MANIFEST.in $(shell find replay -name '*.py' -o -name '*.py[xi]' -o -name '*.px[di]' -o -name '*.h' -o -name '*.pcap' -o -name py.typed)
PYTEST_ARGS ?=
# Which may leave nothing to one of the three parts.
SOME := $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])
SLOW := $(if $(CI),, and not slow)

.PHONY: demo example test build lint stubtest sanitize debug trace bench instructions captures clean

build: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/replay demo

example: $(VENV)/.built
	$(BIN)/python examples/customer-v2/run.py $(EXAMPLE_ARGS)

# Safe path: processes that the tests start see the installed package, never the checkout.
test: lint stubtest sanitize
	PYTHONSAFEPATH=1 $(BIN)/pytest -n auto -m "not alone$(SLOW)" $(PYTEST_ARGS) $(SOME)
	PYTHONSAFEPATH=1 $(BIN)/pytest -n 2 --dist loadfile -m "apart$(SLOW)" $(PYTEST_ARGS) $(SOME)
	PYTHONSAFEPATH=1 $(BIN)/pytest -m "alone and not apart$(SLOW)" $(PYTEST_ARGS) $(SOME)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; name another with make PYTHON=..." % sys.version_info[:2])'
	@echo 'making .venv …'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install "setuptools>=77" "Cython>=3.1" wheel
	@touch $@

# Not isolated: the build dependencies are in the venv, so a rebuild compiles only what changed. The log is kept for the house rules.
$(VENV)/.built: $(VENV)/.made $(SOURCES)
	@mkdir -p build
	@echo 'building the extension (about a minute the first time) …'
	@$(BIN)/python -m pip --disable-pip-version-check install -v --no-build-isolation . >build/build.log 2>&1 || { tail -n 40 build/build.log; exit 1; }
	@touch $@

$(VENV)/.tests: $(VENV)/.built pyproject.toml
	@$(PIP) install --no-build-isolation ".[test,lint]"
	@touch $@

lint: $(VENV)/.tests
	$(BIN)/python docs/manual.py
	$(BIN)/ruff check
	$(BIN)/mypy

# From another folder, so that the installed package is looked at.
stubtest: $(VENV)/.tests
	@mkdir -p build/empty
	cd build/empty && ../../$(BIN)/python -m mypy.stubtest --allowlist ../../tests/stubtest-allow.txt replay._fastpath

# The tests of everything that reads foreign bytes, under ASan and UBSan. Left out, with a word, where the compiler has no sanitizers.
sanitize: $(VENV)/.tests
	@PYTHON=$(BIN)/python sh tests/sanitize.sh

debug: $(VENV)/.tests
	REPLAY_DEBUG=1 $(BIN)/python setup.py -q build --build-base build/debug --build-lib build/debug/lib
	@echo 'use it with PYTHONPATH=build/debug/lib'

trace: $(VENV)/.tests
	REPLAY_TRACE=1 $(BIN)/python setup.py -q build --build-base build/trace --build-lib build/trace/lib
	@echo 'use it with PYTHONPATH=build/trace/lib'

# All benchmarks, some 12 minutes on 2 cores that have nothing else to do; writes benchmarks/RESULTS.md. As root, peers that are missing are installed from Debian.
bench: $(VENV)/.tests
	@sh benchmarks/peers.sh
	$(BIN)/python benchmarks/results.py $(BENCH_ARGS)

# The baseline of tests/test_instructions.py, of this compiler.
instructions: $(VENV)/.tests
	$(BIN)/python benchmarks/instructions.py --refresh

# Records captures/ and the demo anew; as root, with the programs that .ci/run installs.
captures: $(VENV)/.tests
	for recipe in captures/*/recipe.py; do $(BIN)/python $$recipe || exit 1; done

clean:
	rm -rf build dist .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find replay -name '*.so' -delete

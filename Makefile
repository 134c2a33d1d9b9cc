# Two commands are enough on a bare Debian or Ubuntu with Python 3.11 or later:
# `make run` and `make test`. Every command first installs what it needs and is missing.

CONFIG ?= examples/quickstart.toml
TESTS ?= tests
# What needs neither servers nor root. The contracts of real interfaces need root.
CHECKS ?= tests.core tests.unit tests.contracts.test_packet_system tests.fuzz
SECONDS ?= 300
EXAMPLES ?= 1000
VALUES ?= 100000
export PYTHON CONFIG

.PHONY: help run test check lint fuzz fuzz-api bench picture wheel clean setup setup-check setup-dev

help:
	@echo "make run     run the daemon in the foreground (CONFIG=$(CONFIG))"
	@echo "make check   the tests that need neither servers nor root, and make lint: under a minute"
	@echo "make test    the whole test suite, against real servers (TESTS=$(TESTS))"
	@echo "make lint    ruff, mypy and the import contract"
	@echo "make fuzz    fuzz the parsers of messages and of the configuration (SECONDS=$(SECONDS) each), and single fields (VALUES=$(VALUES) each)"
	@echo "make fuzz-api  compare what the API answers with its OpenAPI document (EXAMPLES=$(EXAMPLES) for each operation)"
	@echo "make bench   compare the capture engine with tcpdump"
	@echo "make picture  draw the picture of pcapctl in the documentation again"
	@echo "make wheel   build the sdist and the wheel in dist/"
	@echo "make clean   remove everything that these commands create"

setup:
	@scripts/setup run

setup-check:
	@scripts/setup check

setup-dev:
	@scripts/setup test

run: setup
	@scripts/run

test: setup-dev
	.venv/bin/python -m tests.runner $(TESTS)

# Both at once.
check: setup-check
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target check-tests lint

.PHONY: check-tests
check-tests:
	.venv/bin/python -m tests.runner $(CHECKS)

lint: setup-check
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

fuzz:
	@scripts/setup fuzz
	PCAPSVC_FUZZ_VALUES=$(VALUES) .venv/bin/python -m tests.runner --patience 3600 tests.fuzz
	.venv/bin/python -m tests.fuzz all --seconds $(SECONDS)

fuzz-api: setup-dev
	PCAPSVC_API_EXAMPLES=$(EXAMPLES) .venv/bin/python -m tests.runner --patience 36000 tests.integration.test_openapi

bench: setup-dev
	.venv/bin/python -m benchmarks $(BENCH)

picture: setup-check
	.venv/bin/python -m scripts.picture

wheel: setup-check
	rm -rf dist
	.venv/bin/python -m build

clean:
	rm -rf .venv dist .ci-work _trial_temp* .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f twistd.log twistd.pid twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

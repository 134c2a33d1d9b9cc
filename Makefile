# Two commands are enough on a bare Debian or Ubuntu with Python 3.11 or later:
# `make run` and `make test`. Both set up what they need first, only what is missing.

CONFIG ?= examples/quickstart.toml
TESTS ?= tests
SECONDS ?= 300
export PYTHON CONFIG

.PHONY: help run test lint fuzz bench wheel clean setup setup-dev

help:
	@echo "make run     the daemon in the foreground (CONFIG=$(CONFIG))"
	@echo "make test    the whole suite, against real peers (TESTS=$(TESTS))"
	@echo "make lint    ruff, mypy and the import contract"
	@echo "make fuzz    the readers of messages and of the configuration, fuzzed (SECONDS=$(SECONDS), each)"
	@echo "make bench   the capture beside tcpdump"
	@echo "make wheel   the sdist and the wheel, in dist/"
	@echo "make clean   take away what these made"

setup:
	@scripts/setup run

setup-dev:
	@scripts/setup test

run: setup
	@scripts/run

test: setup-dev
	.venv/bin/python -m twisted.trial $(TESTS)

lint: setup-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

fuzz:
	@scripts/setup fuzz
	.venv/bin/python -m tests.fuzz all --seconds $(SECONDS)

bench: setup-dev
	.venv/bin/python -m benchmarks $(BENCH)

wheel: setup-dev
	rm -rf dist
	.venv/bin/python -m build

clean:
	rm -rf .venv dist .ci-work _trial_temp* .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f twistd.log twistd.pid twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

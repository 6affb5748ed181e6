# The verbs of this repository. Everything they need is installed by themselves, into .venv and .build.
#
#   PYTHON=python3.12   the interpreter; default: the first usable one of python3, python3.14 ... python3.11
#   LIGHT=1             make run without the 200 MB language model
#   EXAMPLE=two_engines make run another demonstration: two engines that share KV tokens, without that model either
#   ARGS="..."          handed on to the demonstration (run) or to pytest (test, test-fast)

.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

ifneq ($(PYTHON),)
export PYTHON
endif

PY := .venv/bin/python
EXAMPLE ?= first_light
# Tests with real processes mostly wait for times to pass, so that more of them than there are cores run at a time.
AT_ONCE := -n 4 --dist worksteal
# Their own tests must reach every branch of what decides and remembers. They take seconds, so make test runs them once
# by themselves to measure that, and then again with all others, whose summary counts everything.
CORE_TESTS := tests/words tests/policy tests/ledger tests/arbiter

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Set up everything that the other verbs need, without the 200 MB engine
	@.ci/preflight test >/dev/null
	@.ci/set-up dev pairs
	@.ci/set-up proto || echo "set up without the generator: make proto and make check will not do here"
	@echo "set up: $$($(PY) -V) in .venv"

.PHONY: run
run: ## Watch two real workers share one memory (LIGHT=1: without the 200 MB engine)
	@.ci/preflight >/dev/null
	@.ci/set-up base
ifeq ($(EXAMPLE)$(LIGHT),first_light)
	@.ci/set-up engine || .ci/without-engine
endif
	@exec $(PY) -m examples.$(EXAMPLE) $(if $(filter first_light,$(EXAMPLE)),$(if $(LIGHT),--light)) $(ARGS)

.PHONY: test
test: ## Set up and run every test
	@.ci/preflight test >/dev/null
	@.ci/set-up dev pairs
	@failed=0; \
	$(PY) -m coverage run -m pytest -q --durations=3 $(CORE_TESTS) || failed=1; \
	$(PY) -m coverage report || failed=1; \
	[ $$failed = 0 ] || echo "FAILED: the core's own tests, or a branch of it that they do not reach (above)"; \
	$(PY) -m pytest $(AT_ONCE) $(ARGS) || failed=1; \
	exit $$failed

.PHONY: test-fast
test-fast: ## Run the tests that take less than five seconds each
	@.ci/preflight test >/dev/null
	@.ci/set-up dev pairs
	@$(PY) -m pytest $(AT_ONCE) -m "not slow" $(ARGS)

.PHONY: faults
faults: ## Run every fault against a real server and real workers (docs/faults.md)
	@.ci/preflight test >/dev/null
	@.ci/set-up dev
	@$(PY) -m pytest $(AT_ONCE) tests/faults $(ARGS)

.PHONY: test-gpu
test-gpu: ## Run the checks that need an NVIDIA card; says so when there is none
	@.ci/set-up base
	@$(PY) -m tests.gpu

.PHONY: bench
bench: ## Measure what things cost, with the noise stated; QUICK=1 for less than a minute
	@.ci/set-up base
	@$(PY) -m benchmarks $(if $(QUICK),--quick) $(ARGS)

.PHONY: check
check: ## Check format, lint, types, floors, contract, stubs, container files and links
	@.ci/set-up dev proto
	@.ci/check

.PHONY: format
format: ## Bring Python, proto files and the table of settings into shape
	@.ci/set-up dev
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .
	@.venv/bin/buf format -w proto
	@$(PY) .ci/configuration.py

.PHONY: proto
proto: ## Generate the committed stubs anew from proto/
	@.ci/set-up proto
	@.ci/generate clients/python/src

.PHONY: clean
clean: ## Remove everything that was built or installed here
	@rm -rf .venv .build build dist out .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf ./*.egg-info clients/python/src/*.egg-info clients/python/build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

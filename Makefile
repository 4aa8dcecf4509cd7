# Every target runs from a fresh clone, as root or as a plain user: `make demo` is a good first one.
.DELETE_ON_ERROR:
.PHONY: help setup demo test contracts lint bench bench-endless bench-setup bench-peers flows docs sim chaos fleet release-check release-disk release-rest clean

# More options for the test runner: make test PYTEST="-x -k lease"
PYTEST =
WORKERS = 2
# Options of bench-peers.
PEERS =
LIGHTNING = tests/rig/lightning/node_modules
CHAIN = contracts/node_modules
# What to measure, and with what options: make bench QUESTIONS=bench/latency.py BENCH="--n 100"
QUESTIONS = $(sort $(filter-out bench/endless.py,$(wildcard bench/*.py)))
BENCH =
# Seeds of the simulator, FIRST:END; empty is what `make test` runs.
SEEDS =

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

setup: .venv/.stamp ## make .venv with the grid, its tests and its examples

.venv/.stamp: setup.cfg pyproject.toml .ci/setup
	@.ci/setup

# A virtual environment knows its own path: a checkout that was moved needs a new one.
ifneq ($(shell cat .venv/made-in 2>/dev/null),$(CURDIR))
.PHONY: .venv/.stamp
endif

demo: .venv/.stamp ## three real jobs on a grid of this machine; results in out/, then the bills
	@rm -rf .state/demo
	@PATH="$(CURDIR)/.venv/bin:$$PATH" gristmill up --state .state/demo --workers $(WORKERS) -- \
		sh -eu examples/demo.sh

# Bytecode once, for the thousands of processes that the tests start: where PYTHONDONTWRITEBYTECODE
# is set each would compile our modules again. With options there is one runner, which
# -x can stop.
test: lint $(LIGHTNING)/.stamp $(CHAIN)/.stamp ## lint, then every suite with its minutes
	@.venv/bin/python -m compileall -q $(notdir $(wildcard namespace/gristmill/*))
	$(if $(PYTEST),.venv/bin/pytest $(PYTEST),.venv/bin/python .ci/lanes.py .venv/bin/pytest)

# The Lightning nodes of the tests; without npm they are skipped, and fail under CI=true.
$(LIGHTNING)/.stamp: tests/rig/lightning/package-lock.json
	@if command -v npm >/dev/null; then \
		npm ci --ignore-scripts --no-progress --prefix tests/rig/lightning && touch $@; \
	else \
		echo "make: no npm on this host: tests of Lightning are skipped" >&2; \
	fi

# Compiler, forge and anvil of the contracts; without npm their tests are skipped, as above.
$(CHAIN)/.stamp: contracts/package-lock.json
	@if command -v npm >/dev/null; then \
		npm ci --ignore-scripts --no-progress --prefix contracts && touch $@; \
	else \
		echo "make: no npm on this host: tests of the contracts are skipped" >&2; \
	fi

contracts: .venv/.stamp $(CHAIN)/.stamp ## the contracts, their artifacts and their binding
	.venv/bin/pytest tests/contracts tests/unit/contracts $(PYTEST)

lint: .venv/.stamp ## style, types and the import law
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/.stamp ## each question of bench/ in turn, then docs/performance.md; some 20 minutes
	@for question in $(QUESTIONS); do \
		echo "== $$question"; began=$$(date +%s); \
		.venv/bin/python "$$question" $(BENCH) || exit 1; \
		echo "== $$question took $$(( $$(date +%s) - began )) s"; \
	done
	.venv/bin/python bench/harness/report.py

bench-endless: .venv/.stamp ## memory of a map that goes on for ten minutes, then of 10 million subtasks
	.venv/bin/python bench/endless.py $(BENCH)
	.venv/bin/python bench/harness/report.py

bench-setup: .venv/.stamp ## install the peers of bench/peers, each in a virtual environment of its own
	.venv/bin/python bench/peers/run.py --install

bench-peers: .venv/.stamp ## other grids and pools in turn with ours; make bench-peers PEERS="--only dask,ray"
	.venv/bin/python bench/peers/run.py $(PEERS)
	.venv/bin/python bench/harness/report.py

flows: .venv/.stamp ## write docs/flows.md from tests/flows/
	.venv/bin/python -P tests/flows/report.py

docs: flows ## write the pages that are made from code
	.venv/bin/python -P tests/tidy/errors_page.py
	.venv/bin/python -P tests/contracts/contracts_page.py

sim: .venv/.stamp ## the cores on virtual time under faults: make sim SEEDS=0:10000
	GRISTMILL_SEEDS="$(SEEDS)" .venv/bin/pytest tests/sim $(PYTEST)

chaos: .venv/.stamp ## real processes killed, stopped, starved and lied to
	.venv/bin/pytest tests/chaos $(PYTEST)

fleet: .venv/.stamp ## a grid under a real systemd, at release size; as root, some minutes
	GRISTMILL_SIZE=release .venv/bin/pytest tests/fleet tests/flows/test_b_fleet.py $(PYTEST)

release-check: .venv/.stamp ## the simulator, the faults and the fleet at release size, in two lanes; it takes long
	@mkdir -p out && rm -f out/release-* out/reliability.jsonl
	@status=0; $(MAKE) --no-print-directory -kj2 release-disk release-rest || status=$$?; \
	cat out/release-*.jsonl > out/reliability.jsonl; tail -n 30 out/release-*.log; \
	GRISTMILL_SIZE=release .venv/bin/python bench/harness/reliability.py out/reliability.jsonl && exit $$status

release-disk: LANE = tests/chaos/disk
release-rest: LANE = tests/sim tests/chaos tests/fleet tests/flows/test_b_fleet.py --ignore tests/chaos/disk
release-disk release-rest:
	@GRISTMILL_SIZE=release GRISTMILL_FIGURES="$(CURDIR)/out/$@.jsonl" \
		.venv/bin/pytest $(LANE) -o faulthandler_timeout=3600 $(PYTEST) > out/$@.log 2>&1

clean: ## remove what the other targets made
	rm -rf .venv bench/peers/.venvs $(LIGHTNING) $(CHAIN) contracts/out contracts/cache build dist out .state .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test test-unit test-servers test-engines fuzz protocol chaos bench-gpu check docs docs-reference audit \
	format lock harnesses clean

# Some images set it. Without bytecode each process compiles all it imports: a worker's start takes 7 s of a core, not 2.5.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# Makes a lock: what is needed anew after a change in pyproject.toml; with UPGRADE=1 the newest versions of everything.
COMPILE := $(BIN)/uv pip compile pyproject.toml --generate-hashes --no-annotate --quiet \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
CPU_LOCK := requirements/cpu.in --extra cpu --extra dev --extra gateway --extra server --excludes requirements/left-out.txt \
	--universal --python-version 3.11 -o requirements/cpu.txt
GPU_LOCK := requirements/gpu.in --extra gpu --extra gateway --extra server \
	--python-version 3.12 --python-platform x86_64-manylinux_2_28 -o requirements/gpu.txt
FUZZ_TESTS := tests/unit/problems/test_fuzz_problem_files.py tests/unit/chat/test_hostile_prompts.py tests/unit/results/test_exports.py \
	tests/unit/grading/test_hostile_answers.py tests/integration/test_hostile_input.py

help: ## List the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## /\1\t/' | expand -t 12

install: ## Put the pinned packages into .venv; nothing to do when it is up to date
	@requirements/install

demo: install ## Run three jobs on the demo pair and show what came out; KEEP=1 leaves it running, DEMO_ARGS="…" adds options
	$(BIN)/specthink --state-dir .demo demo $(if $(filter-out 0,$(KEEP)),--keep) $(DEMO_ARGS)

harnesses: install
	@requirements/install-harnesses

test: harnesses ## Run every test: unit, integration, acceptance; TEST_ARGS="…" adds options
	@# files in this order, not those with most tests first: the longest tests are alone in theirs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/acceptance tests/integration tests/unit $(TEST_ARGS)

test-unit: install ## Run the tests that need no service
	$(BIN)/python -m pytest tests/unit $(TEST_ARGS)

fuzz: install ## Try hostile files, prompts, answers and names, a hundred times what tests do; FUZZ_TIMES=… for another number
	FUZZ_TIMES=$(or $(FUZZ_TIMES),100) $(BIN)/python -m pytest --timeout 0 -q $(FUZZ_TESTS) $(TEST_ARGS)

protocol: install ## Visit every history of larger pipelines than the tests do, and replay more of them on Postgres
	SPECTHINK_PROTOCOL=large SPECTHINK_PROTOCOL_WALKS=$(or $(WALKS),500) $(BIN)/python -m pytest --timeout 0 -q -s \
		tests/integration/test_protocol_exhaustively.py tests/integration/test_protocol_traces.py $(TEST_ARGS)

chaos: install ## Break everything, ten times each, and print what came of it (40 min on two hyperthreads); CHAOS_ARGS="…" adds options
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

test-servers: install ## Try servers of this machine (TLS, poolers, versions, Sentinel); SERVERS_ARGS="…" adds options
	$(BIN)/python -m tests.servers $(SERVERS_ARGS)

test-engines: install ## Run the engine contract on the oldest and the newest CPU build of vLLM; ENGINES="0.28.0 …" chooses others
	@requirements/test-engines $(or $(ENGINES),0.27.0 0.32.0)

bench-%: install ## Measure, e.g. bench-hops; bench/NOTES.md lists them; BENCH_ARGS="…" adds options
	$(BIN)/python -m bench.$* $(BENCH_ARGS)

bench-gpu: $(if $(GPU_PYTHON),,install) ## Measure on one GPU in under ten minutes; GPU_PYTHON=… has specthink[gpu]; a toy without a GPU
	$(or $(GPU_PYTHON),$(BIN)/python) -m bench.gpu $(BENCH_ARGS)

check: install ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install ## Build the documentation into build/docs and check its links; the first time this installs MkDocs into .venv/docs
	@requirements/install-docs
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict --quiet

docs-reference: install ## Write docs/reference anew, after a change of settings, commands, policies, tables or views
	$(BIN)/python -m docs.generate

audit: install ## Ask a vulnerability service about the locked packages; says so where none can be reached
	@$(BIN)/python requirements/audit.py

format: install ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: install ## Pin the requirements anew after a change in pyproject.toml; UPGRADE=1 takes the newest versions
	$(COMPILE) $(CPU_LOCK)
	$(COMPILE) $(GPU_LOCK)
	$(BIN)/uv pip compile requirements/harnesses.in -c requirements/cpu.txt --generate-hashes --no-annotate --quiet \
		--excludes requirements/left-out.txt --universal --python-version 3.11 --custom-compile-command "make lock" \
		-o requirements/harnesses.txt $(if $(UPGRADE),--upgrade)
	$(BIN)/uv pip compile requirements/audit.in --generate-hashes --no-annotate --quiet --universal \
		--python-version 3.11 --custom-compile-command "make lock" -o requirements/audit.txt $(if $(UPGRADE),--upgrade)
	$(BIN)/uv pip compile requirements/docs.in --generate-hashes --no-annotate --quiet --universal \
		--python-version 3.11 --custom-compile-command "make lock" -o requirements/docs.txt $(if $(UPGRADE),--upgrade)
	@requirements/install

clean: ## Remove build outputs and caches; .venv and stored state stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find pipeline workers migrations tests bench examples docs -name __pycache__ -prune -exec rm -rf {} +

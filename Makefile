# install: .venv with everything; demo: the whole walk on real data; test; coverage: test, counting lines (twice the time); bench: what it costs; chaos: faults under load; fuzz: hostile requests; clients: the KServe SDK; torch: modules of PyTorch, in .venv-torch; soak: an hour of traffic; check; fmt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests wait for processes more than they compute: three files at a time keep two cores busy.
JOBS ?= 3
BENCH_STAMP := $(VENV)/.installed-bench
# A gateway is several processes with the same modules: what they are compiled to is kept even where the environment says no.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test torch coverage bench chaos fuzz clients soak check fmt clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]' --group test --group check
	$(BIN)/python -m compileall -q gateway converters # as pip does for packages that are not editable
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sluicegate demo $(if $(SECONDS),--seconds $(SECONDS))

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# pip takes the build for GPUs where it finds no other: name the one that is wanted.
TORCH ?= torch==2.13.0
torch:
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	.venv-torch/bin/pip install --quiet --disable-pip-version-check '$(TORCH)'
	.venv-torch/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[torch,postgres]' --group test
	.venv-torch/bin/python -m pytest $(ARGS) tests/converters/test_torch.py

coverage: $(STAMP)
	rm -f .coverage .coverage.*
	COVERAGE_PROCESS_START=pyproject.toml $(BIN)/python -m pytest --cov --cov-report=term \
		-n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(BENCH_STAMP)
	benchmarks/peers/setup fastapi
	$(BIN)/python benchmarks/bench.py $(ARGS)

chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py $(ARGS)

fuzz: $(STAMP)
	$(BIN)/python benchmarks/fuzz.py $(ARGS)

clients: $(STAMP)
	benchmarks/peers/setup kserve
	$(BIN)/python benchmarks/clients.py $(ARGS)

soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py $(ARGS)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --group bench
	touch $(BENCH_STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-torch .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage*

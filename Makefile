# Everything from a bare clone: a virtual environment with the versions of constraints.txt and the package, built.
# Options: PYTHON=python3.12, PIP_ARGS="--extra-index-url ...", PYTEST_ARGS="-k swap", IK_BUILD and MAX_JOBS; other
# versions: VENV=.venv-oldest CONSTRAINTS=requirements/oldest.txt.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
PYTEST_ARGS ?=
OUT ?= gpu-results
GPU_ARGS ?=
# A selection may leave nothing of one of the two runs: pytest then exits with 5.
NONE_IS_FINE = $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) $(PIP_ARGS)
NATIVE := $(shell find csrc \( -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' \))
FORMATTED := $(NATIVE) $(wildcard tests/kernels/* $(addprefix tests/conformance/,*.cu *.cpp *.h) tools/gpu/*.cu)
BUILT_FROM := pyproject.toml $(CONSTRAINTS) setup.py $(NATIVE) $(wildcard build_backend/*.py) csrc/cpu/isa_flags.txt

.DEFAULT_GOAL := help
.PHONY: help bench bench-full gpu gates triton-gates test sanitize lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

bench: $(VENV)/bench  ## the fused operators against PyTorch and its peers: table, plots and rows under report/ (minutes)
	$(BIN)/python -m inception_kernels bench --quick --output report

bench-full: $(VENV)/bench  ## every layer shape, batch size and dtype (hours on a small machine)
	$(BIN)/python -m inception_kernels bench --output report

gpu:  ## on a GPU, with $(PYTHON)'s own torch: build, check, measure; OUT=folder, GPU_ARGS="--quick --parts check --resume"
	$(PYTHON) -m tools.gpu $(OUT) $(GPU_ARGS)

gates: $(VENV)/test  ## check the CUDA kernels as compiled and write benchmarks/cuda_kernels.md (needs nvcc, no GPU)
	$(BIN)/python -m tools.cubin_gates --table
	$(BIN)/python -m tools.cubin_gates --check

triton-gates: $(VENV)/test  ## compile every Triton kernel that may be chosen, check it, write benchmarks/triton_kernels.* (no GPU)
	$(BIN)/python -m tools.triton_gates --table --jobs 2

test: $(VENV)/test  ## all tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests -n 2 --dist worksteal --require-third-party $(PYTEST_ARGS) $(NONE_IS_FINE)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted -n 2 --dist worksteal $(PYTEST_ARGS) $(NONE_IS_FINE)

sanitize: $(VENV)/test  ## a sample of the CPU operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	OMP_WAIT_POLICY=passive $(BIN)/python -m tools.sanitize --sample 0.02 $(PYTEST_ARGS)

lint: $(VENV)/test  ## ruff, mypy and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(VENV)/test  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:  ## remove everything that make made
	rm -rf .venv .venv-oldest build report *.egg-info inception_kernels/*.so

# torch comes first and pinned: the build then finds it here and asks for no newer one of its own.
$(VENV)/torch: $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/test: $(VENV)/torch $(BUILT_FROM) requirements/models.txt
	$(PIP) -e '.[test,dev]'
	$(PIP) --no-deps -r requirements/models.txt
	@touch $@

$(VENV)/bench: $(VENV)/torch $(BUILT_FROM)
	$(PIP) -e '.[bench,peers]'
	@touch $@

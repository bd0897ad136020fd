# `make demo` and `make test` set everything up themselves, without root: a
# Python >= 3.11 with venv and a C++20 compiler are all they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Runs of pytest in parallel; one for each core. The first that is done takes tests of
# the others, so that all end together.
JOBS   ?= auto
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

SOURCES := pyproject.toml CMakeLists.txt \
  $(shell find csrc kernels cmake tests/cpu tests/metal tests/mlx -type f \
  ! -name '*.py' 2>/dev/null)

.PHONY: demo test test-quick test-gpu differential families fuzz kills sanitize soak bench lint \
  lint-style lint-types format wheel wheel-macos installs mlx release clean help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## Set up, then answer a question with a 4-bit model
	$(BIN)/nibble demo

test: $(VENV)/installed  ## Set up, then run all tests
	$(PYTEST)

test-quick: $(VENV)/installed  ## The same without slow tests and the SIMT bench
	$(PYTEST) -m "not slow" tests/unit tests/property

# The environment needs MLX's CUDA backend: pip install 'mlx[cuda13]'. The other
# tests of tests/unit are of CPU kernels, or of what no device changes.
ON_GPU := $(addprefix tests/unit/ops/test_,$(addsuffix .py,ops call_kinds \
  gather transforms not_finite swiglu epilogue compile views gpu \
  product_settings)) $(addprefix tests/unit/acceleration/test_,$(addsuffix .py,\
  accelerate float_models own_layers symmetric settings by_query)) \
  tests/unit/conversion/test_devices.py

test-gpu:  ## On an NVIDIA GPU: kernels, sanitizers, operations, models
	$(BIN)/python -m tests.cuda.trials
	$(BIN)/python -m tests.cuda.trials --sanitize memcheck
	$(BIN)/python -m tests.cuda.trials --sanitize racecheck
	NIBBLE_TEST_DEVICE=gpu MLX_ENABLE_TF32=0 $(BIN)/python -m pytest $(ON_GPU)
	$(BIN)/python -m tests.differential --device gpu --cases 5000

COUNT ?= 100
RACES ?= 20

kills: $(VENV)/installed  ## Kill conversions at random moments, and compare
	$(BIN)/python -m tests.kills --count $(COUNT) --races $(RACES)

MINUTES ?= 1

soak: $(VENV)/installed  ## Load the server for MINUTES; ARGS="--json" and others
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

sanitize: $(VENV)/installed  ## Run the native code's tests under sanitizers
	$(BIN)/python tools/sanitize.py

families: $(VENV)/installed  ## Convert a tiny model of every family of mlx-lm
	rm -f bench/families.json
	$(BIN)/python -m bench.families

differential: $(VENV)/installed  ## Compare 100,000 random calls with float64
	$(BIN)/python -m tests.differential --cases 100000

bench: $(VENV)/installed  ## Measure the kernels against MLX's
	$(BIN)/nibble bench kernels

SECONDS ?= 20

fuzz: $(VENV)/installed  ## Fuzz what reads files, each reader for SECONDS=20
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

FORMATTED = $$(git ls-files 'kernels/*.h' 'csrc/*.h' 'csrc/*.cpp' 'tests/*.h' \
  'tests/*.cpp')

lint: lint-style lint-types  ## Check style and types

lint-style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/prose.py
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/python -m tests.simt.lint

lint-types: $(VENV)/installed
	$(BIN)/pyright

format: $(VENV)/installed  ## Rewrite sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

wheel: $(VENV)/installed  ## Build the Linux wheel and sdist, and try them
	$(BIN)/python tools/wheel_linux.py

installs: $(VENV)/installed  ## Install the wheel in every way; prints a table
	$(BIN)/python tools/try_installs.py

wheel-macos: $(VENV)/installed  ## Cross-build and check the macOS wheel
	$(BIN)/python tools/wheel_macos.py

mlx: $(VENV)/created  ## Support one more mlx: VERSION=0.32.5
	$(BIN)/python tools/support_mlx.py $(VERSION)

release: $(VENV)/installed  ## Check, build, commit and tag: VERSION=0.2.0
	$(BIN)/python tools/release.py $(VERSION)

clean:  ## Remove what was built, and the environment
	rm -rf build dist $(VENV)

# Build requirements live in the environment, so that a change in one source
# rebuilds one file instead of everything.
$(VENV)/created: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or later is required but $(PYTHON) is" \
	    "$$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open( \
	  "pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --requirement $(VENV)/requirements.txt cmake ninja
	touch $@

$(VENV)/installed: $(VENV)/created $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --editable '.[cpu,lm,dev]'
	touch $@

# Two commands are all a newcomer needs: `make train` and `make test`. Each sets up .venv once.

PYTHON = python3
ARGS   =

BIN     = .venv/bin
READY   = .venv/ready
TORCH_READY = .venv/torch
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
CSRC   := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
EXCLUDE = libc10*.so libtorch*.so libcudart.so.*
FUZZ   := $(wildcard fuzz/*.cpp fuzz/*.h)

.PHONY: help train test package wheel release lint cuda ptx fuzz libfuzzer format bench docs clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*##/ { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(READY)  ## train on four ranks: make train ARGS='--recipe dgc --density 0.01'
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=4 examples/train.py $(ARGS)

test:  ## lint, types and every test: make test ARGS='-k golomb'
	$(MAKE) -j$(shell getconf _NPROCESSORS_ONLN) --output-sync \
	  $(if $(ARGS),,package) lint ptx build/emulated.so build/fuzz/main
	$(BIN)/pytest -n 2 $(ARGS)

package: $(TORCH_READY)  ## the documentation's own lines, source distribution and wheel, where torch is all there is
	$(BIN)/python -m tests.package

wheel: $(READY)  ## dist/: a wheel for every Python and torch, and for Linux from this one's age on (docs/install.md)
	rm -rf build/wheel dist
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --wheel-dir dist $(EXCLUDE:%=--exclude '%') build/wheel/*.whl

release: wheel  ## install the wheel and the source distribution and train: make release ARGS='--python python3.12'
	$(BIN)/python -m tests.release $(ARGS)

lint: $(READY)  ## formatters (check only), linters, types, and the arrows that must never be
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(FUZZ) $(wildcard tests/emulation/*.h)
	@! grep -rnw Tensor csrc/cpu csrc/cuda csrc/kernels.h || { echo 'kernels take raw pointers'; exit 1; }

include csrc/cuda/check.mk fuzz/fuzz.mk

format: $(READY)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CSRC) $(FUZZ) $(wildcard tests/emulation/*.h)

bench: $(READY)  ## every kernel beside its floor (links between hosts: see bench/links.py)
	$(BIN)/python bench/kernels.py $(ARGS)

docs: .venv/docs  ## the site, in site/, without a broken link: make docs, or make docs ARGS=serve
	$(BIN)/mkdocs $(or $(ARGS),build) --strict

.venv/docs: $(READY)
	$(INSTALL) mkdocs-material 'mkdocstrings[python]'  # pyproject's extra, without a build
	touch $@

clean:  ## remove everything these targets made
	rm -rf .venv build dist site *.egg-info ddp_compress/_C*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What needs torch alone begins while the rest is being installed.
$(TORCH_READY): constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) setuptools ninja torch
	touch $@

# Build without isolation, against the very torch that will load the kernels.
# A failed build is no error for a user, who gets the reference; here it is one, and says why.
$(READY): $(TORCH_READY) pyproject.toml setup.py csrc/build_kernels.py $(CSRC)
	rm -f ddp_compress/_C*.so
	$(INSTALL) --no-build-isolation -e '.[dev,examples,accelerate,lightning,transformers]'
	@ls ddp_compress/_C*.so || ! $(BIN)/python setup.py build_ext
	touch $@

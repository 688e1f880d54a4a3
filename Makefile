# Two commands are all a newcomer needs: `make train` and `make test`. Each sets up .venv once.

PYTHON = python3
ARGS   =

BIN     = .venv/bin
READY   = .venv/ready
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
CSRC   := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CUDA   := $(wildcard csrc/cuda/*.cu)
FUZZ   := $(wildcard fuzz/*.cpp fuzz/*.h)

.PHONY: help train test lint cuda fuzz libfuzzer format bench clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*##/ { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(READY)  ## train on four ranks: make train ARGS='--recipe dgc --density 0.01'
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=4 examples/train.py $(ARGS)

test: lint cuda build/emulated.so build/fuzz/main  ## lint, types and every test: make test ARGS='-k golomb'
	$(BIN)/pytest $(ARGS)

lint: $(READY)  ## formatters (check only), linters, types, and the arrows that must never be
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(FUZZ)
	@! grep -rnw Tensor csrc/cpu csrc/cuda csrc/kernels.h || { echo 'kernels take raw pointers'; exit 1; }

# Whether or not there is a GPU: every kernel compiles where nvcc is, and everywhere its logic is run
# on the CPU (see tests/emulation).
KERNEL_FLAGS = -std=c++20 -DTORCH_TARGET_VERSION=0x020a000000000000 $(TORCH_INCLUDES)
TORCH_INCLUDES = $(eval TORCH_INCLUDES := $$(shell $(BIN)/python -c \
  'from torch.utils.cpp_extension import include_paths; print(*("-I" + p for p in include_paths()))'))$(TORCH_INCLUDES)
TORCH_LIBRARIES = $(shell $(BIN)/python -c \
  'from torch.utils.cpp_extension import library_paths; print(*("-L" + p for p in library_paths()))') -ltorch_cpu
EMULATE = $(CXX) -O2 -fPIC -ffp-contract=off -Wall -Werror -Wno-unknown-pragmas \
  -DDDP_COMPRESS_EMULATED -Itests/emulation $(KERNEL_FLAGS)
NVCC = nvcc -O3 -fmad=false --Werror all-warnings -Xcompiler=-Wall,-Werror \
  -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 $(KERNEL_FLAGS)

ifneq ($(shell command -v nvcc),)
cuda: $(CUDA:csrc/cuda/%.cu=build/cuda/%.o)
endif

build/cuda/%.o: csrc/cuda/%.cu $(CSRC) | $(READY)
	@mkdir -p $(@D)
	$(NVCC) -c $< -o $@

build/emulated.so: $(CUDA:csrc/cuda/%.cu=build/emulated/%.o) build/emulated/ops_cuda.o build/emulated/elias_fano_size.o
	$(CXX) -shared $^ $(TORCH_LIBRARIES) -o $@

build/emulated/%.o: csrc/cuda/%.cu $(CSRC) $(wildcard tests/emulation/*.h) | $(READY)
	@mkdir -p $(@D)
	$(EMULATE) -x c++ -c $< -o $@

build/emulated/ops_cuda.o: csrc/ops_cuda.cpp $(CSRC) | $(READY)
	@mkdir -p $(@D)
	$(EMULATE) -c $< -o $@

build/emulated/elias_fano_size.o: csrc/cpu/elias_fano.cpp $(CSRC) | $(READY)
	@mkdir -p $(@D)
	$(EMULATE) -c $< -o $@

# Kernels under sanitizers (see fuzz/target.h). Vectors are exact to the element, and their indices are checked too.
SECONDS = 60
SEED    = $(shell date +%s)000000000
SANITIZE = -g -O1 -fno-omit-frame-pointer -ffp-contract=off -Wall $(KERNEL_FLAGS) \
  -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
  -D_GLIBCXX_ASSERTIONS -D_GLIBCXX_SANITIZE_VECTOR
ENGINES = fuzz/main.cpp fuzz/libfuzzer.cpp
FUZZED  = $(patsubst %.cpp,%.o,$(wildcard csrc/cpu/*.cpp) $(filter-out $(ENGINES),$(wildcard fuzz/*.cpp)))

fuzz: build/fuzz/main  ## mutated messages to the kernels, under sanitizers: make fuzz SECONDS=600 ARGS=golomb
	$< --seconds $(SECONDS) --seed $(SEED) $(ARGS)

libfuzzer: build/libfuzzer/main  ## decoders' messages guided by coverage, SECONDS for each; needs clang++
	@mkdir -p build/libfuzzer/failed
	for target in $(or $(ARGS),elias_fano golomb rans signs checksum); do \
	  TARGET=$$target $< -max_total_time=$(SECONDS) -timeout=20 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=build/libfuzzer/failed/$$target- || exit 1; done

build/fuzz/main: $(FUZZED:%=build/fuzz/%) build/fuzz/fuzz/main.o
	$(CXX) -fsanitize=address,undefined $^ -o $@

build/fuzz/%.o: %.cpp $(CSRC) $(FUZZ) | $(READY)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -c $< -o $@

build/libfuzzer/main: $(FUZZED:%=build/libfuzzer/%) build/libfuzzer/fuzz/libfuzzer.o
	clang++ -fsanitize=address,undefined,fuzzer $^ -o $@

build/libfuzzer/%.o: %.cpp $(CSRC) $(FUZZ) | $(READY)
	@mkdir -p $(@D)
	clang++ -fsanitize=fuzzer-no-link $(SANITIZE) -c $< -o $@

format: $(READY)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CSRC) $(FUZZ)

bench: $(READY)  ## every kernel beside its floor (links between hosts: see bench/links.py)
	$(BIN)/python bench/kernels.py $(ARGS)

clean:  ## remove everything these targets made
	rm -rf .venv build dist *.egg-info ddp_compress/_C*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Build without isolation, against the very torch that will load the kernels.
# A failed build is no error for a user, who gets the reference; here it is one, and says why.
$(READY): pyproject.toml setup.py constraints.txt $(CSRC)
	$(PYTHON) -m venv .venv
	$(INSTALL) setuptools ninja torch
	rm -f ddp_compress/_C*.so
	$(INSTALL) --no-build-isolation -e '.[dev,examples]'
	@ls ddp_compress/_C*.so || ! $(BIN)/python setup.py build_ext
	touch $@

# How the kernels are checked, whether or not there is a GPU: they are compiled where nvcc is, and
# everywhere their logic is run on the CPU (see tests/emulation). Assembling takes most of the time,
# and finds what a compiler does not only if the assembler is at fault: `make test` stops before it.

KERNELS := $(basename $(notdir $(wildcard csrc/cuda/*.cu)))
TORCH = $(wildcard .venv/lib/python3*/site-packages/torch)
KERNEL_FLAGS = -std=c++20 -DTORCH_TARGET_VERSION=0x020a000000000000 -I$(TORCH)/include
NVCC = nvcc -O3 -fmad=false --Werror all-warnings -Xcompiler=-Wall,-Werror
ASSEMBLED = -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
EMULATE = $(CXX) -O2 -fPIC -ffp-contract=off -Wall -Werror -Wno-unknown-pragmas \
  -DDDP_COMPRESS_EMULATED -Itests/emulation

ifneq ($(shell command -v nvcc),)
cuda: $(KERNELS:%=build/cuda/%.o)  ## compile every CUDA kernel, for sm_80 and sm_90

ptx: $(KERNELS:%=build/cuda/%.ptx)
	$(CXX) -fsyntax-only -Wall -Werror $(KERNEL_FLAGS) csrc/ops_cuda.cpp
endif

build/cuda/%.o: csrc/cuda/%.cu $(CSRC) | $(TORCH_READY)
	@mkdir -p $(@D)
	$(NVCC) $(ASSEMBLED) $(KERNEL_FLAGS) -c $< -o $@

build/cuda/%.ptx: csrc/cuda/%.cu $(CSRC) | $(TORCH_READY)
	@mkdir -p $(@D)
	$(NVCC) -arch=compute_80 $(KERNEL_FLAGS) -ptx $< -o $@

build/emulated.so: $(KERNELS:%=build/emulated/%.o) build/emulated/ops_cuda.o
	$(CXX) -shared $^ -L$(TORCH)/lib -ltorch_cpu -o $@

build/emulated/%.o: csrc/cuda/%.cu $(CSRC) $(wildcard tests/emulation/*.h) | $(TORCH_READY)
	@mkdir -p $(@D)
	$(EMULATE) $(KERNEL_FLAGS) -x c++ -c $< -o $@

build/emulated/ops_cuda.o: csrc/ops_cuda.cpp $(CSRC) | $(TORCH_READY)
	@mkdir -p $(@D)
	$(EMULATE) $(KERNEL_FLAGS) -c $< -o $@

# Kernels under sanitizers (see fuzz/target.h). Vectors are exact to the element, and their indices are checked too.
SECONDS = 60
SEED    = $(shell date +%s)000000000
SANITIZE = -g1 -O1 -fno-omit-frame-pointer -ffp-contract=off -Wall $(KERNEL_FLAGS) \
  -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
  -D_GLIBCXX_ASSERTIONS -D_GLIBCXX_SANITIZE_VECTOR
ENGINES = fuzz/main.cpp fuzz/libfuzzer.cpp
FUZZED  = $(patsubst %.cpp,%.o,$(wildcard csrc/cpu/*.cpp) $(filter-out $(ENGINES),$(wildcard fuzz/*.cpp)))

fuzz: build/fuzz/main  ## mutated messages to the kernels, under sanitizers: make fuzz SECONDS=600 ARGS=golomb
	$< --seconds $(SECONDS) --seed $(SEED) $(ARGS)

libfuzzer: build/libfuzzer/main  ## decoders' messages guided by coverage, SECONDS for each; needs clang++
	@mkdir -p build/libfuzzer/failed
	for target in $(or $(ARGS),elias_fano entries golomb rans rotated signs); do \
	  TARGET=$$target $< -max_total_time=$(SECONDS) -timeout=20 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=build/libfuzzer/failed/$$target- || exit 1; done

build/fuzz/main: $(FUZZED:%=build/fuzz/%) build/fuzz/fuzz/main.o
	$(CXX) -fsanitize=address,undefined $^ -o $@

build/fuzz/%.o: %.cpp $(CSRC) $(FUZZ) | $(TORCH_READY)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -c $< -o $@

build/libfuzzer/main: $(FUZZED:%=build/libfuzzer/%) build/libfuzzer/fuzz/libfuzzer.o
	clang++ -fsanitize=address,undefined,fuzzer $^ -o $@

build/libfuzzer/%.o: %.cpp $(CSRC) $(FUZZ) | $(TORCH_READY)
	@mkdir -p $(@D)
	clang++ -fsanitize=fuzzer-no-link $(SANITIZE) -c $< -o $@

# SPDX-License-Identifier: Apache-2.0
# A thin front for CMake. Every target does its own set-up; scripts/setup.sh says what is missing where it may not install.
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
WERROR ?= $(if $(CI),ON,OFF)
CMAKE_FLAGS ?=
FUZZ_SECONDS ?= 30
SEED ?= 1

.PHONY: all build demo test test-asan test-tsan test-simt test-gpu sanitize-gpu sim fuzz mutants bench bench-gpu lint format install clean
all: build

build:
	@scripts/setup.sh build
	@cmake -S . -B build -DMUSTER_WERROR=$(WERROR) -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_FLAGS) >build.log 2>&1 || { cat build.log; exit 1; }
	@cmake --build build -j $(JOBS) -- --no-print-directory

# Four ranks answer sixteen prompts; one of them is killed in the middle of a forward pass.
demo: build
	build/muster demo

# Unit tests, simulators, kernels on a simulated GPU, process tests with real signals, mutants; then the same under the
# address sanitizer.
test:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	@cmake --build build -j $(JOBS) --target simt_tests -- --no-print-directory
	ctest --test-dir build --output-on-failure -j $(JOBS) -L 'unit|sim|mutants'
	ctest --test-dir build --output-on-failure -L '^kernels$$'
	ctest --test-dir build --output-on-failure -L process
	$(MAKE) --no-print-directory test-asan

test-asan:
	@scripts/setup.sh build
	@cmake -S . -B build-asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMUSTER_SANITIZE=address,undefined -DMUSTER_WERROR=$(WERROR) >build-asan.log 2>&1 || { cat build-asan.log; exit 1; }
	@cmake --build build-asan -j $(JOBS) -- --no-print-directory
	ctest --test-dir build-asan --output-on-failure -j $(JOBS) -L 'unit|sanitized'

# Ranks as threads of one process under the thread sanitizer.
test-tsan:
	@scripts/setup.sh build
	@cmake -S . -B build-tsan -DMUSTER_SANITIZE=thread >build-tsan.log 2>&1 || { cat build-tsan.log; exit 1; }
	@cmake --build build-tsan -j $(JOBS) -- --no-print-directory
	ctest --test-dir build-tsan --output-on-failure -L threads

# All GPU tests on a simulated GPU, where there are CUDA's headers.
test-simt:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	@cmake --build build -j $(JOBS) --target simt_tests -- --no-print-directory
	ctest --test-dir build --output-on-failure -L kernels_all

# On a machine with GPUs and nvcc; ranks share a GPU where there are fewer. Says what was skipped, and why.
test-gpu: build
	scripts/test_gpu.sh build

# memcheck, synccheck and racecheck of compute-sanitizer, which comes with nvcc.
sanitize-gpu: build
	scripts/sanitize_gpu.sh build

# Replays one schedule of the membership simulator: make sim SEED=170
sim: build
	build/tests/muster_sim --seed $(SEED) --verbose

fuzz:
	@scripts/setup.sh fuzz
	@CC=clang cmake -S . -B build-fuzz -DMUSTER_FUZZ=ON -DMUSTER_SANITIZE=address,undefined >build-fuzz.log 2>&1 || { cat build-fuzz.log; exit 1; }
	@cmake --build build-fuzz -j $(JOBS) -- --no-print-directory
	scripts/fuzz.sh build-fuzz $(FUZZ_SECONDS)

# Each numbered rule of docs/protocol.md broken on purpose; a test must notice.
mutants: build
	tests/mutants/run.sh

# With Open MPI, which is what dispatch and combine are compared with.
bench:
	@scripts/setup.sh bench
	@$(MAKE) --no-print-directory build
	scripts/bench.sh build

# Dispatch and combine on GPUs, then a campaign of faults.
bench-gpu: build
	scripts/bench_gpu.sh build

lint:
	@scripts/setup.sh lint
	scripts/lint.sh

format:
	@scripts/setup.sh lint
	git ls-files '*.c' '*.h' | xargs clang-format -i

install: build
	cmake --install build

clean:
	rm -rf build build-asan build-tsan build-fuzz build*.log

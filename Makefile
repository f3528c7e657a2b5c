# make demo: the whole method on the embedded data set.   make demo-icd: ICD on the same.   make test: the tests.
# make gpu: does everything work on this machine's GPUs, and how fast?
# All install what they need.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo
SEED ?= 0
# The small network gains more from a second process than from a second thread. On a GPU: DEVICE=cuda PROCESSES=1
# Batches are those of all processes together.
DEVICE ?= cpu
PROCESSES ?= 2
# Versions that were tried together. CONSTRAINTS= takes the newest that requirements.txt allows.
CONSTRAINTS ?= constraints.txt
FLAGS = --preset demo --out $(OUT) --voc-root $(OUT)/VOC2012 --seed $(SEED) --device $(DEVICE)
PARALLEL := OMP_NUM_THREADS=$(shell expr '(' $$(nproc) + $(PROCESSES) - 1 ')' / $(PROCESSES)) \
  $(BIN)/torchrun --standalone --nproc_per_node=$(PROCESSES)

.PHONY: demo demo-large demo-icd demo-recurseed test gpu study campaign lint

# Ends with a line of advice where the first line of $(CONSTRAINTS) names another Python.
define FITTING
import sys
fits, here = open("$(CONSTRAINTS)").readline().split()[-1], "%d.%d" % sys.version_info[:2]
if here != fits:
    sys.exit("$(CONSTRAINTS) is for Python %s, $(PYTHON) is %s: give PYTHON=python%s, or CONSTRAINTS= for the "
             "newest versions, on Python 3.11 or later" % (fits, here, fits))
endef
export FITTING

.venv/installed: requirements.txt $(CONSTRAINTS)
	$(if $(CONSTRAINTS),@$(PYTHON) -c "$$FITTING")
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -r requirements.txt
	touch $@

# The classifier, which learns from scratch here, does so in one process with all threads: its BatchNorm sees a process's
# part of a batch, and with half of it the CAMs were two points worse on each seed (docs/reproduction.md).
define LABELS
	$(BIN)/python -m prepare_labels.train_cls $(FLAGS)
	$(PARALLEL) -m prepare_labels.make_cam_labels $(FLAGS)
	$(PARALLEL) -m prepare_labels.train_aff $(FLAGS)
	$(PARALLEL) -m prepare_labels.make_aff_labels $(FLAGS)
endef

demo: .venv/installed
	$(BIN)/python -m datasets.demo $(OUT)/VOC2012
	$(LABELS)
	$(PARALLEL) main_ssdd.py --mode=all $(FLAGS)
	@echo; echo "Seeds, made from image-level labels only, on the training images:"
	@$(BIN)/python -m tools.eval_masks --voc-root $(OUT)/VOC2012 --split train --out $(OUT) \
	  CAM=cam PSA=psa PSA+CRF=psa_crf "static SSDD=ssdd" --json $(OUT)/seeds.json
	@echo; echo "The segmentation network that dynamic SSDD trained, on images it has not seen:"
	@$(BIN)/python -m tools.eval_masks --voc-root $(OUT)/VOC2012 --split val \
	  "dynamic SSDD=$(OUT)/validation/ssdd/mask" "dynamic SSDD + CRF=$(OUT)/validation/ssdd/crf" \
	  --json $(OUT)/val.json
	@echo; $(BIN)/python -m script.make_pages $(FLAGS)

# The seeds of 3,000 images: the CRF harms there as on VOC, and the difference maps learn. Half an hour, OUT=demo-large.
demo-large: OUT = demo-large
demo-large: FLAGS += --cls_epochs 8 --static_epochs 6
demo-large: .venv/installed
	$(BIN)/python -m datasets.demo $(OUT)/VOC2012 --train 3000
	$(LABELS)
	$(PARALLEL) main_ssdd.py --mode=0 $(FLAGS)
	$(PARALLEL) main_ssdd.py --mode=1 $(FLAGS)
	@echo; $(BIN)/python -m tools.seed_rivals $(OUT) --voc-root $(OUT)/VOC2012 --json $(OUT)/rivals.json

# ICD on the data of `make demo`; OUT and SEED as there. It trains in one process with all threads: BatchNorm over all
# images of a step would talk between processes at every layer, which halves its speed.
# Figures beside those of CAM and PSA, where these are there.
OTHERS = $(if $(wildcard $(OUT)/prepare_labels/results/out_aff_crf),CAM=cam PSA=psa PSA+CRF=psa_crf)
demo-icd: .venv/installed
	$(BIN)/python -m datasets.demo $(OUT)/VOC2012
	$(PARALLEL) -m prepare_labels.make_superpixels $(FLAGS)
	$(BIN)/python -m prepare_labels.train_icd $(FLAGS)
	$(PARALLEL) -m prepare_labels.make_icd_labels $(FLAGS)
	@echo; echo "Seeds, made from image-level labels only, on the training images; 255 (unknown) counts as wrong:"
	@$(BIN)/python -m tools.eval_masks --voc-root $(OUT)/VOC2012 --split train --out $(OUT) ICD=icd ICD+CRF=icd_crf \
	  $(OTHERS) --json $(OUT)/seeds_icd.json
	@echo; $(BIN)/python -m script.make_pages $(FLAGS)

# RecurSeed on the same images; each process mixes the images of its own batch.
demo-recurseed: .venv/installed
	$(BIN)/python -m datasets.demo $(OUT)/VOC2012
	$(PARALLEL) main_recurseed.py --mode=all $(FLAGS)
	@echo; echo "RecurSeed's seeds, made from image-level labels only, on the training images:"
	@$(BIN)/python -m tools.eval_masks --voc-root $(OUT)/VOC2012 --split train --out $(OUT) \
	  RecurSeed=recurseed RecurSeed+CRF=recurseed_crf $(OTHERS) --json $(OUT)/seeds_recurseed.json

# One thread a process: more would wait for each other.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests

# A report below docs/benchmarks/; without a GPU it says so and tries what a CPU can.
gpu: .venv/installed
	$(BIN)/python -m tools.check_gpu

# docs/reproduction.md: every difference between paper and released program, measured on the demo's images; hours.
study: .venv/installed
	$(BIN)/python -m datasets.demo demo/VOC2012
	$(BIN)/python -m tools.study --preset demo --device cpu --out study

# The long form of tests/test_campaign.py: runs killed, files damaged, data exchanged; about twenty minutes.
campaign: .venv/installed
	$(BIN)/python -m tests.campaign

lint: .venv/installed
	$(BIN)/ruff check .

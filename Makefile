# make demo   everything end to end on a small synthetic set, five minutes after installation
# make test   the tests, within two minutes on two cores
# make test-all   also the slow ones, which repeat their claims on more and larger cases
# Each sets up .venv first; a second call finds it ready.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-all lint clean

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \"Python 3.11 or newer is needed: make PYTHON=python3.11\")"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.runtime
	$(RUN) -m data.synthetic datasets/demo --nr 40 --lte 40 --combined 16 --field 80
	$(RUN) -m data.synthetic datasets/demo_recording --nr 0 --lte 0 --combined 1 --field 0 --keep-iq
	$(RUN) train_seg.py --data-dir datasets/demo --out runs/demo_teacher --epochs 4 --resume
	$(RUN) prune_seg.py --teacher runs/demo_teacher/best.pt --data-dir datasets/demo --out runs/demo_pruned --probe-frames 8 --resume
	$(RUN) distill_seg.py --teacher runs/demo_teacher/best.pt --student runs/demo_pruned/pruned.pt --data-dir datasets/demo --out runs/demo_student --epochs 6 --resume
	$(RUN) evaluate.py runs/demo_teacher/best.pt runs/demo_pruned/pruned.pt runs/demo_student/best.pt --data-dir datasets/demo --part test
	$(RUN) segment.py datasets/demo_recording/LTE_NR/LTE_NR_frame_1.sigmf-meta --out runs/demo_segment
	$(RUN) -m data.modulations datasets/demo_radioml.hdf5 --frames-per-cell 12
	$(RUN) train_amc.py --data-file datasets/demo_radioml.hdf5 --filters 16 --dense 32 --batch-size 32 --schedule cosine --epochs 4 --epoch-frames 2560 --bits 4 --out runs/demo_amc --resume
	$(RUN) feedback_magnitude_pruning.py --data-file datasets/demo_radioml.hdf5 --checkpoint runs/demo_amc/best.pt --batch-size 32 --schedule cosine --epoch-frames 2560 --step-epochs 2 --budget 8 --out runs/demo_fmp --resume
	@echo "Pictures: runs/demo_teacher/pictures, runs/demo_student/pictures, runs/demo_segment, runs/demo_fmp/pictures"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(RUN) -m ruff check .

clean:
	rm -rf runs/demo_* datasets/demo*

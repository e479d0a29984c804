"""Every shipped network, from its file to labels of frames that are easy.  pytest tests/test_weights.py

Weights may be replaced by better ones of the same kind: the tests ask for what any good network finds, with room for
rounding that differs between machines.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.frames import make_frame
from data.modulators import make_frames
from data.radioml import MODULATIONS
from data.spectrogram import channel_mask, spectrogram_image
from data.spectrum_sensing import CLASSES, LABEL_VALUES
from experiments.average_weights import average
from models.rebuild import rebuild
from models.segmentation import predict
from models.vgg10 import from_checkpoint
from utils import checkpoint
from utils.metrics import confusion_matrix
from utils.runs import RunError

WEIGHTS = Path(__file__).parent.parent / "weights"
FILES = sorted(path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*.pt"))
SEGMENTATION = [name for name in FILES if Path(name).name.startswith("seg_")]
MODULATION = [name for name in FILES if Path(name).name.startswith("amc_")]
EASY = ("8ASK", "BPSK", "QPSK", "AM-DSB-WC", "FM", "GMSK")  # at +30 dB


def test_each_file_is_of_a_kind_that_is_tested_here():
    assert len(SEGMENTATION) >= 2 and len(MODULATION) >= 2
    assert sorted(SEGMENTATION + MODULATION) == FILES


@pytest.fixture(scope="module")
def spectrogram():
    """A picture uint8 (3, H, W) and its classes int64 (H, W): NR and LTE of 20 MHz side by side, without visible noise.

    The frame is number 13 of seed 3 of the generator, one of "100 dB".
    """
    iq, carriers = make_frame("LTE_NR", 13, 3)
    assert [(carrier["technology"], carrier["bandwidth_hz"]) for carrier in carriers] == [("NR", 20e6), ("LTE", 20e6)]
    classes = np.vectorize(LABEL_VALUES["three"].get)(channel_mask(carriers))
    picture = spectrogram_image(iq).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return torch.from_numpy(picture.copy()), torch.from_numpy(classes)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_segmentation_network_finds_nr_and_lte_side_by_side(name, spectrogram):
    data = checkpoint.load(WEIGHTS / name)
    assert data["kind"] == "segmentation" and tuple(data["classes"]) == CLASSES
    image, classes = spectrogram
    labels = predict(rebuild(data).eval(), image[None])[0]
    counts = confusion_matrix(labels, classes, len(CLASSES)).double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert (counts.diagonal() / union).min() > 0.9  # today: .954 and more


@pytest.mark.parametrize("name", MODULATION)
def test_a_modulation_network_names_easy_modulations(name):
    data = checkpoint.load(WEIGHTS / name)
    assert data["kind"] == "modulation" and tuple(data["classes"]) == MODULATIONS
    network = from_checkpoint(data).eval()
    for modulation in EASY:
        frames = make_frames(modulation, 30, 32, np.random.default_rng(1))  # float32 (32, 1024, 2)
        with torch.inference_mode():
            labels = network(torch.from_numpy(frames).transpose(1, 2).contiguous()).argmax(1)
        assert (labels == MODULATIONS.index(modulation)).sum() >= 26, modulation  # of 32; today: 30 and more


def test_an_average_lies_between_two_networks():
    before = {"state_dict": {"w": torch.tensor([0.0, 4.0]).half(), "n": torch.tensor(3)}, "seed": 1}
    after = {"state_dict": {"w": torch.tensor([2.0, 0.0]).half(), "n": torch.tensor(5)}, "seed": 2}
    mixed = average(before, after, 0.75)
    assert mixed["state_dict"]["w"].tolist() == [1.5, 1.0] and mixed["state_dict"]["w"].dtype == torch.float16
    assert mixed["state_dict"]["n"] == 5 and mixed["seed"] == 2  # whole numbers and all else are the later network's
    assert before["state_dict"]["w"].tolist() == [0, 4] and after["state_dict"]["w"].tolist() == [2, 0]
    other = {"state_dict": {"w": torch.zeros(3), "n": torch.tensor(3)}}
    with pytest.raises(RunError, match="other layers or widths"):
        average(other, after, 0.5)

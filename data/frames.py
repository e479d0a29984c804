"""Generate frames of 40 ms with LTE and 5G NR carriers, as samples at 61.44 MS/s.

    iq, carriers = make_frame("FIELD", index=1, seed=0)

There are three kinds of frames. The families "NR", "LTE" and "LTE_NR" repeat the settings of the published MathWorks
generator, with its weak points. The family "FIELD" holds what a receiver meets outside a laboratory: any load and
scheduling, FDD and TDD, up to four carriers at unequal levels, multipath, imperfect radios, and empty bands. "OTHER"
adds what is neither LTE nor NR (data/others.py): alone, beside carriers and across them, and events in the receiver.

`carriers` describes the frame: a list of dicts with "technology", "center_hz" (baseband), "bandwidth_hz", "snr_db" and
more. A carrier that sends nothing in the frame is not listed. Emissions and events have the technology "other", and
their "kind"; the band of an event is the whole frame's.

    iq, carriers, mask = labelled_frame("OTHER", index=1, seed=0)

gives the labels as well. Those of OTHER frames can't be told from the list of carriers: where an emission covers a
carrier and is stronger than 10 dB below it, the label is "unknown", pixel by pixel.
"""

import numpy as np

from data.field_frames import field_frame
from data.mathworks_frames import mathworks_frame
from data.other_frames import other_frame
from data.spectrogram import channel_mask

FAMILY_NUMBER = {"NR": 1, "LTE": 2, "LTE_NR": 3, "FIELD": 4, "OTHER": 5}  # part of each frame's seed


def make_frame(family, index, seed):
    """Make one frame. The same arguments always give the same frame.

    Args: family, a key of FAMILY_NUMBER; index, number of the frame within its family; seed, of the whole set.
    Returns: iq, complex64 (2457600,), and carriers, a list of dicts (see the top of this file).
    """
    return labelled_frame(family, index, seed)[:2]


def labelled_frame(family, index, seed):
    """The same frame with its labels: (iq, carriers, mask), mask uint8 (256, 256) as data.spectrogram.channel_mask.

    The mask of an OTHER frame has the later release's values: 0 noise, 85 NR, 170 LTE, 255 unknown.
    """
    rng = frame_rng(family, index, seed)
    if family == "OTHER":
        frame = other_frame(rng)
        return frame.iq, frame.carriers, frame.mask
    iq, carriers = field_frame(rng) if family == "FIELD" else mathworks_frame(family, rng)
    return iq, carriers, channel_mask(carriers)


def frame_rng(family, index, seed):
    """The numpy Generator that all random choices of one frame are drawn from."""
    return np.random.default_rng([seed, FAMILY_NUMBER[family], index])

"""What counts as a number: the one rule of all readers. Numpy only.

A sample is a number if it is finite and at most 2^31 in size, which is what 32-bit integers reach; one flipped bit of a
float may make 1e38 of it. An SNR is a number if it is finite and within 1000 dB.

- Sets to train on and to score (RadioML and files like it, caches of codes) are refused, with the number of the frame.
- Recordings can't be fetched again: such samples count as 0, and how many there were is noted (Frame.damaged).
- A file of SNRs with another value is refused when the frames are found; no value at all means that it isn't known.
- Pixels and codes are integers, and always numbers.
"""

import math

import numpy as np

from data import DataError

LARGEST = 2.0**31  # of a sample
MOST_DB = 1000.0


def all_numbers(x: np.ndarray) -> bool:
    """Whether all samples, floats of any shape, are numbers."""
    return x.size == 0 or bool(-LARGEST <= x.min() and x.max() <= LARGEST)  # nan makes both comparisons false


def no_numbers(x: np.ndarray) -> np.ndarray:
    """Which samples are no numbers: bool of the same shape."""
    return ~(np.abs(x) <= LARGEST)


def decibels(value: object, where: str) -> float:
    """An SNR in dB, of text or a number. DataError: it is no number; `where` begins its sentence."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MOST_DB:
        raise DataError(f"{where}: {str(value)[:40]!r} is no SNR in dB; correct it, or leave it out")
    return number

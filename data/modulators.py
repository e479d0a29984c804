"""24 modulations as the frames of RadioML 2018.01A have them: the modulators, and what a frame meets on its way.

    frames = make_frames("QPSK", 10, 100, np.random.default_rng(0))    # float32 (100, 1024, 2), I and Q, at 10 dB

The original was published without its generator. The paper (O'Shea, Roy and Clancy 2018, arXiv:1712.04578, table I)
does not give all settings. A word beside each setting below says where its value comes from:

    measured    on frames of the original: 256 of BPSK and 64 of QPSK, 128 samples each, at +30 dB; and the first 128
                samples of one frame of each class at +20 dB
    standard    a published constellation; the measured frame of its class agrees with it within the reading error
    reference   with this value the two real-data references recognise the generated frames as they recognise those of
                the original. These are networks that were trained on the original alone
                (python -m experiments.modulation_reference)
    open        we have no evidence for the value

A modulator makes a window of 2 * 1024 samples. Noise is added, the window is divided by its own standard deviation, and
a frame of 1024 samples is cut out of it. Of linear modulations the power of the symbols drawn stays in (see WINDOW).
Frequencies are in cycles a sample, times in samples. "Genuine" frames are those of the original.
"""

from functools import partial

import numpy as np
import torch

from data.radioml import SAMPLES

SAMPLES_A_SYMBOL = 8  # measured
# Measured: the gain of BPSK frames has a standard deviation of .0136, that of QPSK frames of .0102. Frames of higher
# power have lower gain (correlation -.25 and -.22). Windows of 2048 samples that are divided by their own standard
# deviation give .0135, .0095 and -.24; windows of 1024 samples give .0189, .0130 and -.33.
# That is what the pulses' overlap does. The power of the symbols drawn does not count: the gain of the nine measured
# frames of APSK and QAM varies by .012. It would be .021 if their symbols counted, and .010 if only the overlap did.
# With .021 the references' recall of 64APSK to 256QAM from +10 dB on is .883 (8 bits) and .808 (32 bits), so it is
# .895 and .841, on genuine frames .907 (32 bits).
WINDOW = 2 * SAMPLES

# Measured: a transmitter's root-raised cosine, then two of a fixed roll-off. Of the lengths and roll-offs that were
# tried, these explain the 320 frames best. With them the transmitter's roll-off is distributed uniformly.
ROLL_OFF, TAPS = (0.3, 0.8), 89
RECEIVER_ROLL_OFF, RECEIVER_TAPS = 0.4, 45
LATE = (0.5, 0.66)  # measured: by how many samples the middle of a symbol's pulse is later than a whole sample
SPAN = 12  # symbols that this pulse covers to either side

GMSK_TURN = 1.277  # measured: quarters of a circle that the phase turns in a bit; in textbooks GMSK turns one quarter
GMSK_BT = (0.5, 0.6)  # measured on one frame: .52 with the receiver's roll-off as above, .57 with its own

ANALOGUE_CARRIER = 1 / 32  # measured, all analogue classes but SSB
# A message changes so slowly that a frame holds a small part of one oscillation. Measured on one frame each: within
# 128 samples the envelope changes by 2% of its level for the double sidebands, by 1.4% and 3.3% for the single ones.
# The spectrum of the message is open.
SPEECH_STEP = 1 / 2**16  # the message consists of harmonics of this frequency
SPEECH_HARMONICS = 100
# Depth: rms of the message, relative to a constant that is added to it. Reference: those of a suppressed carrier have
# one, too. Without it the mean of a third of the windows is below their deviation, and no reference knows these as AM.
DSB_DEPTH = (0.0, 0.05)  # AM-DSB-WC
SSB_DEPTH = (0.04, 0.22)  # AM-SSB-WC
SUPPRESSED_DEPTH = (0.3, 0.8)  # AM-DSB-SC and AM-SSB-SC
FM_DEVIATION = (0.0002, 0.0008)  # rms; measured on one frame: the frequency changes by .0006

CARRIER_SIGMA = 3.3e-5  # measured
# Reference: at +30 dB the noise of genuine frames is 60 dB below the signal, so 10 dB more on the label divide the
# amplitude of the noise by ten. With a factor of 1.0 the accuracy of the two real-data references is .002 and .005
# above that on genuine frames, with 1.1 it is .010 below for both.
NOISE = 1.05
DELAY_SPREAD = 0.0  # measured: genuine frames have no echoes, although table I of the paper lists 0 to 4 samples

# The points of 128APSK in the first quadrant of ETSI EN 302 307-2 (DVB-S2X), rate 3/4: radius of each ring, and the
# phases on it in units of pi / 5040. The other quadrants are mirror images.
RINGS_128APSK = {
    1.0: (332, 927, 1593, 2187),
    1.715: (242, 1017, 1503, 2278),
    2.118: (414, 845, 1673, 2106),
    2.681: (427, 834, 1686, 2094),
    2.75: (133, 563, 1393, 2387),
    3.819: (44, 148, 383, 528, 732, 929, 1372, 1590, 1789, 1993, 2190, 2408),
}


def _rings(counts: tuple[int, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Rings of evenly spaced points, complex (M,), each with a point at phase 0. Standards turn the whole figure."""
    phases = [2 * np.pi * np.arange(count) / count for count in counts]
    return np.concatenate([radius * np.exp(1j * phase) for radius, phase in zip(radii, phases, strict=True)])


def _square(side: int, corner: int = 0) -> np.ndarray:
    """side x side points with odd coordinates, complex (M,), less corner x corner points at each of the corners."""
    level = np.arange(1 - side, side, 2)
    points = (level[:, None] + 1j * level).ravel()
    limit = side - 2 * corner
    return points[(np.abs(points.real) < limit) | (np.abs(points.imag) < limit)]


def _apsk128() -> np.ndarray:
    """All points of 128APSK, complex (128,), from those of the first quadrant."""
    quadrant = [r * np.exp(1j * np.pi * phase / 5040) for r, phases in RINGS_128APSK.items() for phase in phases]
    half = np.concatenate([quadrant, -np.conj(quadrant)])
    return np.concatenate([half, half.conj()])


def constellations() -> dict[str, np.ndarray]:
    """Points of the 17 linear modulations, complex128 (M,), of variance 1.

    The variance is 1, not always the power: OOK and ASK have the levels 0 to M - 1 (measured), so their mean is not 0,
    and their power is up to 3.3. The measured symbols of each class differ by .013 to .026 (rms) from these points,
    which is the reading error.
    """
    points = {name: np.arange(count) + 0j for name, count in (("OOK", 2), ("4ASK", 4), ("8ASK", 8))}
    points |= {name: _rings((count,), (1,)) for name, count in (("BPSK", 2), ("QPSK", 4), ("8PSK", 8))}
    points |= {"16PSK": _rings((16,), (1,)), "32PSK": _rings((32,), (1,))}
    points["16APSK"] = _rings((4, 12), (1, 2.2))  # measured: .502 and 1.095, a ratio of 2.18
    points["32APSK"] = _rings((4, 12, 16), (1, 2.84, 5.27))  # standard: DVB-S2, rate 3/4
    points["64APSK"] = _rings((4, 12, 20, 28), (1, 2.2, 3.6, 5.2))  # measured: .542, .892, 1.280; the innermost is open
    points["128APSK"] = _apsk128()  # standard: .016 from the measured symbols, even rings would be .043
    points |= {"16QAM": _square(4), "32QAM": _square(6, 1), "64QAM": _square(8)}
    points |= {"128QAM": _square(12, 2), "256QAM": _square(16)}
    return {name: value / value.std() for name, value in points.items()}


def _draw(rng: np.random.Generator, count: int, limits: tuple[float, float]) -> np.ndarray:
    """One value for each frame, uniform between two limits: (N, 1)."""
    return rng.uniform(*limits, (count, 1))


def root_raised_cosine(time: np.ndarray, roll_off: float | np.ndarray) -> np.ndarray:
    """Root-raised cosine pulse at `time`, in symbols; both broadcast. Source: Proakis, Digital Communications, 9.2."""
    time, roll_off = np.broadcast_arrays(np.asarray(time, float), roll_off)
    at_zero, pole = np.abs(time) < 1e-9, np.abs(np.abs(4 * roll_off * time) - 1) < 1e-9
    t = np.where(at_zero | pole, 0.1, time)  # any other time: the values at these are replaced below
    value = np.sin(np.pi * t * (1 - roll_off)) + 4 * roll_off * t * np.cos(np.pi * t * (1 + roll_off))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = value / (np.pi * t * (1 - (4 * roll_off * t) ** 2))
    angle = np.pi / (4 * roll_off)
    limit = roll_off / np.sqrt(2) * ((1 + 2 / np.pi) * np.sin(angle) + (1 - 2 / np.pi) * np.cos(angle))
    return np.where(at_zero, 1 - roll_off + 4 * roll_off / np.pi, np.where(pole, limit, value))


def _taps(roll_off: np.ndarray, length: int, late: np.ndarray | float = 0.0) -> np.ndarray:
    """A root-raised cosine of `length` samples, (N, length + 2). `late`, (N, 1), delays it by part of a sample."""
    time = np.arange(-(length // 2) - 1, length // 2 + 2) - late
    return root_raised_cosine(time / SAMPLES_A_SYMBOL, roll_off) * (np.abs(time) <= length / 2)


def received_pulse(roll_off: np.ndarray, late: np.ndarray) -> np.ndarray:
    """The pulse of one symbol after the receiver's filters: three root-raised cosines, one after the other.

    The first has the transmitter's roll-off, the other two the receiver's. The result is not a Nyquist pulse, so
    symbols interfere: a neighbour adds .065 of its amplitude. That is measured on genuine frames.

    Args: roll_off and late, in samples, (N, 1).
    Returns: float32 (N, (2 SPAN + 1) * SAMPLES_A_SYMBOL), from SPAN symbols before the symbol on; energy
        SAMPLES_A_SYMBOL, so that independent symbols of variance 1 make a signal of power 1.
    """
    receiver = _taps(np.full((1, 1), RECEIVER_ROLL_OFF), RECEIVER_TAPS)
    size = (2 * SPAN + 1) * SAMPLES_A_SYMBOL
    spectrum = np.fft.rfft(_taps(roll_off, TAPS, late), 2 * size) * np.fft.rfft(receiver, 2 * size) ** 2
    middle = (TAPS + 2) // 2 + 2 * ((RECEIVER_TAPS + 2) // 2)  # the tap at time 0
    pulse = np.roll(np.fft.irfft(spectrum, 2 * size), SPAN * SAMPLES_A_SYMBOL - middle, axis=1)[:, :size]
    return (pulse * np.sqrt(SAMPLES_A_SYMBOL / (pulse**2).sum(1, keepdims=True))).astype(np.float32)


def waveform(symbols: np.ndarray, roll_off: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Make a waveform of received pulses: symbols (N, S + 2 SPAN) -> samples (N, 8 S)."""
    windows = np.lib.stride_tricks.sliding_window_view(symbols, 2 * SPAN + 1, axis=1)  # (N, S, 2 SPAN + 1)
    pulse = received_pulse(roll_off, late).reshape(len(symbols), 2 * SPAN + 1, SAMPLES_A_SYMBOL)
    return (windows @ pulse[:, ::-1]).reshape(len(symbols), -1)  # (N, S, 8) -> (N, 8 S)


def linear(rng: np.random.Generator, count: int, points: np.ndarray, samples: int = WINDOW) -> np.ndarray:
    """Windows of a linear modulation: independent symbols out of `points`, complex64 (N, samples).

    The standard deviation of a window is that of its symbols, whatever their pulses' overlap adds or takes.
    """
    size = samples // SAMPLES_A_SYMBOL + 2 * SPAN
    symbols = points.astype(np.complex64)[rng.integers(len(points), size=(count, size))]
    x = waveform(symbols, _draw(rng, count, ROLL_OFF), _draw(rng, count, LATE))
    return x * (symbols[:, SPAN:-SPAN].std(axis=1, keepdims=True) / x.std(axis=1, keepdims=True))


def oqpsk(rng: np.random.Generator, count: int) -> np.ndarray:
    """Offset QPSK: Q is half a symbol later than I. Measured: points are on the axes, in textbooks at 45 degrees."""
    x = linear(rng, count, np.array([1, 1j, -1, -1j]), WINDOW + SAMPLES_A_SYMBOL)
    half = SAMPLES_A_SYMBOL // 2
    return x.real[:, 2 * half :] + 1j * x.imag[:, half:-half]


def gaussian_step(time: np.ndarray, bt: float | np.ndarray) -> np.ndarray:
    """The share of a bit's phase change at `time`, in bits: the integral of a Gaussian-filtered rectangle."""
    sigma = np.sqrt(np.log(2)) / (2 * np.pi * bt)
    x = torch.from_numpy(np.stack([time + 0.5, time - 0.5]) / sigma)
    ramp = (x * torch.special.ndtr(x) + torch.exp(-x * x / 2) / np.sqrt(2 * np.pi)).numpy()
    return sigma * (ramp[0] - ramp[1])


def gmsk(rng: np.random.Generator, count: int) -> np.ndarray:
    """GMSK: phase steps after a Gaussian filter (3GPP TS 45.004, clause 3), then the receiver's two filters.

    Measured: the steps are larger than a quarter of a circle, and the envelope is not constant (.89 to 1.12 at the
    symbols) because of the filters.
    """
    # The phase is the sum of the steps of all bits.
    reach, edge = 4, RECEIVER_TAPS + 3  # length of a step in symbols; samples that the filters spoil at either end
    size = (WINDOW + 2 * edge) // SAMPLES_A_SYMBOL
    bits = rng.choice(np.float32([-1, 1]), (count, size + 2 * reach))
    time = np.arange(SAMPLES_A_SYMBOL) / SAMPLES_A_SYMBOL - np.arange(-reach, reach + 1)[:, None]  # (9, 8)
    step = gaussian_step(time[None] + np.zeros((count, 1, 1)), _draw(rng, count, GMSK_BT)[:, :, None])
    windows = np.lib.stride_tricks.sliding_window_view(bits, 2 * reach + 1, axis=1)  # (N, size, 9)
    before = np.pad(np.cumsum(bits[:, : size - 1], axis=1), ((0, 0), (1, 0)))  # bits whose step is complete
    turned = (before[:, :, None] + windows @ step.astype(np.float32)).reshape(count, -1)
    x = np.exp(np.complex64(0.5j * np.pi * GMSK_TURN) * turned)

    # The receiver's filters; the first also delays the signal.
    receiver = np.full((count, 1), RECEIVER_ROLL_OFF)
    late = _taps(receiver, RECEIVER_TAPS, _draw(rng, count, LATE))
    response = np.fft.fft(late, x.shape[1]) * np.fft.fft(_taps(receiver, RECEIVER_TAPS), x.shape[1])
    response = (response / response[:, :1]).astype(np.complex64)
    return np.fft.ifft(np.fft.fft(x) * response)[:, 2 * edge :]


def speech(rng: np.random.Generator, count: int) -> np.ndarray:
    """A slow message, float32 (N, WINDOW), of variance 1 over many windows.

    Its harmonics have random amplitudes and phases. The mean amplitude is constant up to the fourth harmonic and falls
    by 6 dB an octave from there on, as the long-term mean of voices does.
    """
    number = np.arange(1, SPEECH_HARMONICS + 1)
    weight = 1 / np.maximum(number / 4, 1)
    weight /= np.sqrt((weight**2).sum())
    tones = np.exp(2j * np.pi * SPEECH_STEP * number[:, None] * np.arange(WINDOW)).astype(np.complex64)
    amplitude = rng.standard_normal((count, 2 * SPEECH_HARMONICS), np.float32).view(np.complex64)
    return (amplitude * weight.astype(np.float32) @ tones).real


def _envelope(rng: np.random.Generator, count: int, depth: tuple[float, float]) -> np.ndarray:
    """A constant and a message, whose rms is uniform between the limits of `depth`: float32 (N, WINDOW)."""
    message = speech(rng, count)
    return 1 + _draw(rng, count, depth).astype(np.float32) * message


def am_dsb(rng: np.random.Generator, count: int, depth: tuple[float, float]) -> np.ndarray:
    """Double sideband, complex64 (N, WINDOW): the message and its constant times a real carrier."""
    envelope = _envelope(rng, count, depth)
    phase = 2 * np.pi * (ANALOGUE_CARRIER * np.arange(WINDOW) + rng.random((count, 1)))
    return (envelope * np.cos(phase)).astype(np.complex64)


def am_ssb(rng: np.random.Generator, count: int, depth: tuple[float, float]) -> np.ndarray:
    """Single sideband at frequency 0, complex64 (N, WINDOW): the message itself and its constant.

    Since the window is divided by its standard deviation, the constant becomes as large as in genuine frames. A real
    single sideband would contain the message's Hilbert transform. The measured frames do not: their phase is constant.
    """
    return _envelope(rng, count, depth).astype(np.complex64)


def fm(rng: np.random.Generator, count: int) -> np.ndarray:
    """Frequency modulation of a complex carrier, complex64 (N, WINDOW). FM_DEVIATION is the rms deviation."""
    cycles = np.cumsum(ANALOGUE_CARRIER + _draw(rng, count, FM_DEVIATION) * speech(rng, count), axis=1)
    return np.exp(2j * np.pi * cycles).astype(np.complex64)


LINEAR = {name: partial(linear, points=points) for name, points in constellations().items()}
MODULATORS = LINEAR | {
    "AM-SSB-WC": partial(am_ssb, depth=SSB_DEPTH),
    "AM-SSB-SC": partial(am_ssb, depth=SUPPRESSED_DEPTH),
    "AM-DSB-WC": partial(am_dsb, depth=DSB_DEPTH),
    "AM-DSB-SC": partial(am_dsb, depth=SUPPRESSED_DEPTH),
    "FM": fm,
    "GMSK": gmsk,
    "OQPSK": oqpsk,
}


def fade(rng: np.random.Generator, x: np.ndarray, delay_spread: float) -> np.ndarray:
    """Multipath with Rayleigh taps one sample apart, whose mean powers fall as exp(-delay / delay_spread), sum 1.

    Args: x, complex64 (N, L); delay_spread in samples, 0 for no multipath. Delays wrap around.
    Returns: complex64 (N, L).
    """
    if not delay_spread:
        return x
    delay = np.arange(1 + int(8 * delay_spread))
    power = np.exp(-delay / delay_spread)
    gains = rng.standard_normal((len(x), 2 * len(delay)), np.float32).view(np.complex64)
    gains *= np.sqrt(power / power.sum() / 2).astype(np.float32)
    response = np.fft.fft(gains, x.shape[1], axis=1)
    return np.fft.ifft(np.fft.fft(x, axis=1) * response, axis=1).astype(np.complex64)


def channel(rng: np.random.Generator, x: np.ndarray, snr_db: float) -> np.ndarray:
    """Add a carrier frequency error, a random phase and white noise; divide by the standard deviation of each window.

    The amplitude of the noise is NOISE * 10^(-SNR / 10) times the signal's rms. So the label is about half of the true
    ratio in dB. A constant part counts in the rms, but not in the standard deviation. Therefore frames of ASK and SSB
    are larger than others.

    Args: x, complex64 (N, L).
    Returns: complex64 (N, L).
    """
    count, size = x.shape
    time = np.arange(size, dtype=np.float32) - size / 2
    turn = 2 * np.pi * (rng.normal(0, CARRIER_SIGMA, (count, 1)) * time + rng.random((count, 1)))
    x = x * np.exp(1j * turn.astype(np.float32))
    rms = np.sqrt(np.mean(np.abs(x) ** 2, axis=1, keepdims=True))
    noise = rng.standard_normal((count, 2 * size), np.float32).view(np.complex64)
    x = x + noise * (NOISE * 10 ** (-snr_db / 10) * np.sqrt(0.5) * rms).astype(np.float32)
    return x / x.std(axis=1, keepdims=True)


def make_frames(
    modulation: str, snr_db: float, count: int, rng: np.random.Generator, delay_spread: float = DELAY_SPREAD
) -> np.ndarray:
    """Frames of one class at one SNR, float32 (count, SAMPLES, 2), each cut from a random place of its window."""
    x = MODULATORS[modulation](rng, count)
    level = x.std(axis=1, keepdims=True) if modulation in LINEAR else 1
    x = channel(rng, fade(rng, x, delay_spread), snr_db) * level
    start = rng.integers(WINDOW - SAMPLES + 1, size=(count, 1))
    x = np.take_along_axis(x, start + np.arange(SAMPLES), axis=1)
    return np.ascontiguousarray(x, np.complex64).view(np.float32).reshape(count, SAMPLES, 2)

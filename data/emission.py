"""What the emissions of data/others.py are made of: OFDM, single carriers, frequency keying, bursts, sweeps.

An emission is 40 ms long and centred on 0 Hz, at its own sample rate, as data.lte_nr.Waveform is; data.radio.Band puts
it into a frame of 61.44 MS/s. All powers are relative.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from data.radio import FRAME_SECONDS, Band
from data.spectrogram import SAMPLE_RATE


@dataclass
class Emission:
    """40 ms of one transmitter, or of several that share a band."""

    samples: np.ndarray  # complex64 (n,), n / 0.04 samples a second
    low_hz: float  # edges of the band that it fills in 40 ms, from its centre; 99% of the power lies within
    high_hz: float
    instant_hz: float | None = None  # width of what is sent at one time, where it hops or sweeps; None: the whole band
    facts: dict = field(default_factory=dict)  # what was drawn: plain values, times in seconds

    @property
    def sample_rate(self):
        return len(self.samples) / FRAME_SECONDS

    def at_frame_rate(self):
        """The emission at 61.44 MS/s, complex64 (2457600,); what lies beyond that band is lost."""
        band = Band()
        band.add(self.samples, self.sample_rate, 0.0)
        return band.samples()


def log_uniform(rng, low, high):
    """A number from low to high whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def count_at(rate):
    """Samples in 40 ms."""
    return round(rate * FRAME_SECONDS)


def spectrum_of(samples):
    """Centred spectrum, complex64 (n,), of samples of any type."""
    return torch.fft.fftshift(torch.fft.fft(torch.from_numpy(samples.astype(np.complex64)))).numpy()


def samples_of(spectrum):
    """Samples, complex64 (n,), of a centred spectrum."""
    return torch.fft.ifft(torch.fft.ifftshift(torch.from_numpy(spectrum.astype(np.complex64)))).numpy()


SMOOTH = sorted(
    2**a * 3**b * 5**c * 7**d for a in range(11) for b in range(7) for c in range(5) for d in range(4)
    if 2**a * 3**b * 5**c * 7**d <= 1250
)  # fmt: skip


def smooth(number):
    """The smallest integer that is no less and has no prime factor above 7, up to 1250: transforms are fast then."""
    return SMOOTH[int(np.searchsorted(SMOOTH, number))]


def roomy_rate(width_hz):
    """A sample rate at which Band's interpolation leaves width_hz as it is, at most the frame's."""
    return min(60e3 * smooth(width_hz / 0.78 / 60e3), SAMPLE_RATE) if width_hz < 0.78 * SAMPLE_RATE else SAMPLE_RATE


def db(value):
    """Amplitude of a level in dB."""
    return 10 ** (np.asarray(value) / 20)


def qam(rng, order, shape):
    """Random points of square QAM (4, 16, 64, 256) of mean power 1: complex64 of the shape."""
    side = np.arange(1 - np.sqrt(order), np.sqrt(order), 2)
    points = (side[:, None] + 1j * side).ravel()
    points = (points / np.sqrt(np.mean(np.abs(points) ** 2))).astype(np.complex64)
    return points[rng.integers(0, order, shape, np.uint8 if order <= 256 else np.int64)]


def ofdm(bins, used, size, guard):
    """OFDM symbols with cyclic prefix: bins complex (symbols, len(used)) on subcarriers `used` -> complex64 samples.

    Args: used, integers, 0 the centre; size, samples of a symbol; guard, of its prefix. Mean power is about 1.
    """
    spectrum = np.zeros((len(bins), size), np.complex64)
    spectrum[:, np.asarray(used) % size] = bins
    symbols = torch.fft.ifft(torch.from_numpy(spectrum), norm="forward").numpy() / np.float32(np.sqrt(len(used)))
    return np.concatenate([symbols[:, size - guard :], symbols], 1).ravel() if guard else symbols.ravel()


def cut(rng, stream, rate):
    """40 ms of a longer stream that begin anywhere in it."""
    n = count_at(rate)
    start = int(rng.integers(len(stream) - n + 1))
    return stream[start : start + n]


def root_raised_cosine(share, rolloff):
    """Spectrum of the pulse at frequencies `share`, in parts of the symbol rate."""
    edge = np.clip((np.abs(share) - (1 - rolloff) / 2) / rolloff, 0, 1)
    return np.cos(np.pi / 2 * edge).astype(np.float32)


def single_carrier(values, rolloff):
    """Pulses of root raised cosine for the symbols of 40 ms: complex (n,) -> the centred spectrum, for `combine`."""
    n = len(values)
    m = 2 * int((0.5 + 0.5 * rolloff) * n + 1)
    k = np.arange(-(m // 2), m // 2)
    return spectrum_of(values)[(k + n // 2) % n] * root_raised_cosine(k / n, rolloff) * np.float32(m / n)


def combine(parts, rate):
    """Add signals of 40 ms, each moved in frequency: [(centred spectrum, hz)] -> complex64 at `rate`."""
    n = count_at(rate)
    spectrum = np.zeros(n, np.complex64)
    for part, hz in parts:
        start = n // 2 + round(hz * FRAME_SECONDS) - len(part) // 2
        low, high = max(start, 0), min(start + len(part), n)
        if low < high:
            spectrum[low:high] += part[low - start : high - start] * np.float32(n / len(part))
    return samples_of(spectrum)


def phasor(frequency_hz, rate):
    """exp(j 2 pi integral of the frequency): float (n,) in Hz -> complex64 (n,)."""
    turns = np.cumsum(frequency_hz, dtype=np.float64) / rate
    angle = (2 * np.pi * (turns - np.floor(turns))).astype(np.float32)
    out = np.empty(len(angle), np.complex64)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    return out


def keyed(symbols, seconds, deviation_hz, rate, bt=None, offset_hz=0.0):
    """Frequency keying with continuous phase: symbols -1 to 1 of `seconds` each -> complex64 at `rate`.

    Args: bt, bandwidth times symbol time of the Gaussian filter (GMSK, GFSK), None for none (MSK, FSK).
    """
    steps = np.repeat(np.asarray(symbols, np.float64), 8)
    if bt:
        clock = np.arange(-16, 17) / 8
        kernel = np.exp(-2 * (np.pi * bt * clock) ** 2 / np.log(2))
        steps = np.convolve(steps, kernel / kernel.sum(), "same")
    turns = np.r_[0, np.cumsum(steps)] * deviation_hz * seconds / 8
    clock = np.arange(int(len(symbols) * seconds * rate)) / rate
    turns = np.interp(clock, np.arange(len(turns)) * seconds / 8, turns) + offset_hz * clock
    return np.exp(2j * np.pi * (turns - np.floor(turns))).astype(np.complex64)


def add_burst(out, rate, start, burst, ramp=0.0):
    """Add a burst at `start` seconds to `out`, in place; what lies outside is lost. ramp: seconds of rise and fall."""
    first = round(start * rate)
    edge = min(int(ramp * rate), len(burst) // 2)
    if edge > 1:
        burst = burst.copy()
        rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)).astype(np.float32)
        burst[:edge] *= rise
        burst[-edge:] *= rise[::-1]
    low, high = max(first, 0), min(first + len(burst), len(out))
    if low < high:
        out[low:high] += burst[low - first : high - first]


def gate(spans, n, rate, ramp):
    """Amplitude over time, float32 (n,): levels of [(start, stop, level)] in seconds, with edges of `ramp` seconds."""
    out = np.zeros(n, np.float32)
    for start, stop, level in spans:
        out[max(0, round(start * rate)) : max(0, round(stop * rate))] = level
    width = max(1, round(ramp * rate))
    return np.convolve(out, np.full(width, 1 / width, np.float32), "same")


def held(values, seconds, n, rate):
    """Each value for `seconds`, which need not be whole samples: (n,)."""
    index = (np.arange(n) / (rate * seconds)).astype(np.int64)
    return np.asarray(values)[np.minimum(index, len(values) - 1)]


def low_passed(rng, n, rate, cutoff_hz, low_hz=0.0):
    """Real Gaussian noise from low_hz to cutoff_hz, float32 (n,), of rms 1."""
    hz = np.arange(n // 2 + 1) * rate / n
    spectrum = rng.standard_normal((len(hz), 2)).view(np.complex128)[:, 0] * ((hz >= low_hz) & (hz <= cutoff_hz))
    out = np.fft.irfft(spectrum, n)
    return (out / max(np.std(out), 1e-12)).astype(np.float32)


def active_power(samples):
    """Mean power while something is sent: the mean of the power, weighted by the power, in blocks of 32 samples."""
    blocks = samples[: len(samples) // 32 * 32].view(np.float32).reshape(-1, 64)
    energy = np.einsum("bi,bi->b", blocks, blocks) / 32
    total = float(energy.sum())
    return float(np.square(energy, dtype=np.float64).sum()) / total if total else 0.0

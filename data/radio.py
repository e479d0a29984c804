"""Simulate channel, transmitter and receiver: from the waveforms of carriers to samples at 61.44 MS/s.

Each carrier is generated at its own, lower sample rate. The carriers are added in the spectrum of the whole frame of
40 ms, which has 2,457,600 bins of 25 Hz. There a carrier moves in frequency by a shift of bins, a filter is a product,
and one inverse FFT gives the samples. The frame is treated as periodic, so delays and filters wrap around at its end.
"""

import numpy as np
import torch

from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
GAIN_BLOCKS = 2400  # gains are computed each 16.7 microseconds, and interpolated linearly between

# Delays in ns, mean powers in dB.
PROFILES = {
    "EPA": ([0, 30, 70, 90, 110, 190, 410], [0, -1, -2, -3, -8, -17.2, -20.8]),  # TS 36.104 annex B.2
    "EVA": ([0, 30, 150, 310, 370, 710, 1090, 1730, 2510], [0, -1.5, -1.4, -3.6, -0.6, -9.1, -7, -12, -16.9]),
    "ETU": ([0, 50, 120, 200, 230, 500, 1600, 2300, 5000], [-1, -1, -1, 0, 0, 0, -3, -5, -7]),
    "TDLA30": (  # TS 38.104 annex G.2.1.1, as the next two
        [0, 10, 15, 20, 25, 50, 65, 75, 105, 135, 150, 290],
        [-15.5, 0, -5.1, -5.1, -9.6, -8.2, -13.1, -11.5, -11, -16.2, -16.6, -26.2],
    ),
    "TDLB100": (
        [0, 10, 20, 30, 35, 45, 55, 120, 170, 245, 330, 480],
        [0, -2.2, -0.6, -0.6, -0.3, -1.2, -5.9, -2.2, -0.8, -6.3, -7.5, -7.1],
    ),
    "TDLC300": (
        [0, 65, 70, 190, 195, 200, 240, 325, 520, 1045, 1510, 2595],
        [-6.9, 0, -7.7, -2.5, -2.4, -9.9, -8, -6.6, -7.1, -13, -14.2, -16],
    ),
    "flat": ([0], [0]),
}


def fading(rng, doppler_hz, spread=np.pi, rays=16):
    """Draw the complex gain of one path over the frame: Rayleigh fading, of mean power 1 over many draws.

    It is a sum of rays that arrive within +-spread of the direction of travel (spread = pi is Clarke's model).

    Args: rng, a numpy Generator; doppler_hz, the largest Doppler shift; spread in radians; rays, how many.
    Returns: complex (GAIN_BLOCKS + 1,), or (1,) without Doppler.
    """
    angle = rng.uniform(-spread, spread, (rays, 1))
    phase = rng.uniform(0, 2 * np.pi, (rays, 1))
    time = np.linspace(0, FRAME_SECONDS, GAIN_BLOCKS + 1 if doppler_hz else 1)
    return np.exp(1j * (2 * np.pi * doppler_hz * np.cos(angle) * time + phase)).sum(0) / np.sqrt(rays)


def multipath(samples, sample_rate, profile, doppler_hz, rng, spread=np.pi):
    """Tapped delay line with Rayleigh taps. Delays are rounded to whole samples and wrap around.

    Args: samples, complex64 (n,), n a multiple of GAIN_BLOCKS unless doppler_hz is 0; sample_rate in Hz; profile, a key
    of PROFILES; the others as for `fading`.
    Returns: complex64 (n,).
    """
    # One gain for each delay of the profile, in samples.
    delays, powers = PROFILES[profile]
    power = 10 ** (np.array(powers) / 10)
    shifts = np.round(np.array(delays) * 1e-9 * sample_rate).astype(int)
    gains = {}
    for shift, p in zip(shifts, power / power.sum(), strict=True):
        gains[shift] = gains.get(shift, 0) + np.sqrt(p) * fading(rng, doppler_hz, spread)
    # The sum of delayed copies, each times its gain.
    out = np.zeros_like(samples)
    for shift, gain in gains.items():
        gain = gain.astype(np.complex64)
        if doppler_hz == 0:
            out += np.roll(samples, shift) * gain
        else:
            path = np.roll(samples, shift).reshape(GAIN_BLOCKS, -1)  # (n,) -> (blocks, samples between two gains)
            ramp = np.linspace(0, 1, path.shape[1], endpoint=False, dtype=np.float32)
            steps = np.diff(gain)[:, None] * ramp
            steps += gain[:-1, None]
            steps *= path
            out += steps.ravel()
    return out


def soft_limiter(samples, headroom_db):
    """A power amplifier that saturates headroom_db above the mean power: Rapp's model with smoothness 3.

    Args: samples, complex64 (n,).  Returns: complex64 (n,).
    """
    limit = np.sqrt(np.mean(np.abs(samples) ** 2)) * 10 ** (headroom_db / 20)
    ratio = np.square(samples.real / limit) + np.square(samples.imag / limit)
    return samples * (1 + ratio**3) ** np.float32(-1 / 6)


def snr_amplitude(samples, active_share, occupied_hz, snr_db, noise_power=1.0):
    """The factor by which to multiply a carrier's samples, so that it has the given signal-to-noise ratio.

    The ratio is the carrier's mean power during its active symbols, divided by the noise power within its occupied
    bandwidth.

    Args: active_share and occupied_hz, as in data.lte_nr.Waveform; noise_power, of white noise in the whole 61.44 MHz.
    """
    active_power = float(np.mean(np.abs(samples) ** 2)) / active_share
    wanted = 10 ** (snr_db / 10) * noise_power * occupied_hz / SAMPLE_RATE
    return float(np.sqrt(wanted / active_power))


class Band:
    """The spectrum of a frame that is being made: complex64 (2457600,), bins of 25 Hz, 0 Hz in the middle."""

    def __init__(self):
        self.spectrum = np.zeros(FRAME_SAMPLES, np.complex64)

    def add(self, samples, sample_rate, center_hz, amplitude=1.0, channel_hz=None, stopband_db=0.0):
        """Add a carrier.

        What lies outside the band is lost, as in a receiver. Interpolation to 61.44 MS/s follows the filter of the
        published generator: flat up to 0.395 of the carrier's sample rate, zero from 0.605 on. So a trace of the
        images remains.

        Args: samples, complex64, 40 ms at sample_rate; center_hz, the carrier's centre in the band; amplitude, a
        factor; channel_hz and stopband_db, a transmit filter that attenuates by stopband_db outside a channel of this
        width.
        """
        n = len(samples)
        spectrum = torch.fft.fftshift(torch.fft.fft(torch.from_numpy(samples))).numpy()
        hz = np.arange(-n // 2, n // 2, dtype=np.float32) / np.float32(FRAME_SECONDS)
        if sample_rate < SAMPLE_RATE:  # the filter passes a little more than one period of the spectrum
            extra = round(0.105 * n)
            spectrum = np.concatenate([spectrum[-extra:], spectrum, spectrum[:extra]])
            hz = np.arange(-n // 2 - extra, n // 2 + extra, dtype=np.float32) / np.float32(FRAME_SECONDS)
            roll = np.clip((np.abs(hz) / np.float32(sample_rate) - 0.395) / 0.21, 0, 1)
            spectrum *= 0.5 + 0.5 * np.cos(np.pi * roll)
        if stopband_db:  # falls linearly in dB within 2% of the channel's width
            beyond = np.clip((np.abs(hz) - channel_hz / 2) / (0.02 * channel_hz), 0, 1)
            spectrum *= 10 ** (-stopband_db / 20 * beyond)
        spectrum *= np.float32(amplitude * FRAME_SAMPLES / n)
        start = FRAME_SAMPLES // 2 + round(center_hz * FRAME_SECONDS) - len(spectrum) // 2
        low, high = max(start, 0), min(start + len(spectrum), FRAME_SAMPLES)
        if low < high:
            self.spectrum[low:high] += spectrum[low - start : high - start]

    def add_noise(self, power, rng, shape_db=None):
        """Add white Gaussian noise of the given power in the whole band. shape_db (4096,) changes its level in dB."""
        noise = rng.standard_normal((FRAME_SAMPLES, 2), np.float32).view(np.complex64)[:, 0]
        noise *= np.float32(np.sqrt(power * FRAME_SAMPLES / 2))
        if shape_db is not None:
            noise.reshape(len(shape_db), -1)[:] *= (10 ** (shape_db / 20)).astype(np.float32)[:, None]
        self.spectrum += noise

    def narrow(self, low_hz, high_hz, folded_hz=0.0):
        """Keep low_hz .. high_hz, as a receiver that samples at high_hz - low_hz does.

        Its anti-alias filter lets through what lies up to folded_hz beyond an edge. Sampling moves that to the other
        end of the band.
        """
        low, high, reach = (round(hz * FRAME_SECONDS) for hz in (low_hz, high_hz, folded_hz))
        low, high = low + FRAME_SAMPLES // 2, high + FRAME_SAMPLES // 2
        below, above = min(reach, low), min(reach, FRAME_SAMPLES - high)
        kept = self.spectrum[low:high].copy()
        if below:
            kept[-below:] += self.spectrum[low - below : low]
        if above:
            kept[:above] += self.spectrum[high : high + above]
        self.spectrum[:] = 0
        self.spectrum[low:high] = kept

    def add_tone(self, hz, level_db):
        """Add a permanent spur at hz, rounded to 25 Hz. level_db is relative to noise of power 1 within 15 kHz."""
        power = 10 ** (level_db / 10) * 15e3 / SAMPLE_RATE
        self.spectrum[FRAME_SAMPLES // 2 + round(hz * FRAME_SECONDS)] += FRAME_SAMPLES * np.sqrt(power)

    def samples(self):
        """The frame as samples, complex64 (2457600,) at 61.44 MS/s."""
        return torch.fft.ifft(torch.fft.ifftshift(torch.from_numpy(self.spectrum))).numpy()


def receive(iq, rng, dc_db=None, image_db=None, phase_noise_deg=0.0, bits=None):
    """Add a receiver's faults to its samples.

    Args: iq, complex64 (n,); dc_db, DC offset relative to the mean power; image_db, level of the mirror image that I/Q
    imbalance makes; phase_noise_deg, rms of a phase error with a bandwidth of 5 kHz; bits, resolution of the converter,
    whose full scale is the largest sample. None and 0 leave the fault out.
    Returns: complex64 (n,).
    """
    rms = float(np.sqrt(np.mean(np.abs(iq) ** 2)))
    if phase_noise_deg:
        points = 40_000  # one each microsecond, white noise through a first-order low-pass
        pole, walk = np.exp(-2 * np.pi * 5e3 * 1e-6), rng.standard_normal(points)
        kernel = pole ** np.arange(400)
        walk = np.convolve(walk, kernel, "same") * np.sqrt(1 - pole**2)
        phase = np.deg2rad(phase_noise_deg) * np.interp(np.arange(len(iq)), np.linspace(0, len(iq), points), walk)
        iq = iq * np.exp(1j * phase.astype(np.float32))
    if image_db is not None:
        iq = iq + np.conj(iq) * np.complex64(10 ** (image_db / 20) * np.exp(2j * np.pi * rng.random()))
    if dc_db is not None:
        iq = iq + np.complex64(rms * 10 ** (dc_db / 20) * np.exp(2j * np.pi * rng.random()))
    if bits is not None:
        step = np.float32(max(np.abs(iq.real).max(), np.abs(iq.imag).max()) / 2 ** (bits - 1))
        iq = (np.round(iq.real / step) + 1j * np.round(iq.imag / step)) * step
    return iq.astype(np.complex64)

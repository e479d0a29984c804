"""The waveforms as physics: sequences, detection, occupied band, SNR.  Run: pytest tests/test_lte_nr.py"""

from dataclasses import replace

import numpy as np
import pytest

from data.field_frames import _floor_shape, _narrow_capture, field_nr
from data.lte_nr import (
    LTE_RB,
    LTE_TDD,
    NR_RB,
    LteConfig,
    NrConfig,
    lte_grid,
    lte_waveform,
    nr_grid,
    nr_waveform,
    pdcch_bundles,
    pdcch_first_cce,
    prefix_lengths,
    random_qam,
)
from data.mathworks_frames import mathworks_nr
from data.radio import Band, fading, multipath, snr_amplitude
from data.sequences import gold_sequence, lte_pss, lte_sss, nr_pss, nr_sss
from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE, spectrogram_levels


def lte(bandwidth=5e6, load=1.0, **options):
    allocation = np.full((40, LTE_RB[bandwidth]), load, np.float32)
    return LteConfig(bandwidth, options.pop("cell_id", 0), allocation, **options)


def nr(bandwidth=20e6, scs=30e3, load=1.0, **options):
    slots = round(40 * scs / 15e3)
    allocation = np.full((slots, NR_RB[scs][bandwidth]), load, np.float32)
    return NrConfig(bandwidth, scs, options.pop("cell_id", 0), allocation, **options)


def test_gold_sequence_equals_the_shift_registers_of_the_standard():
    def one_bit_at_a_time(c_init, length):
        x1, x2 = [1] + [0] * 30, [(c_init >> i) & 1 for i in range(31)]
        for n in range(1600 + length):
            x1.append((x1[n + 3] + x1[n]) % 2)
            x2.append((x2[n + 3] + x2[n + 2] + x2[n + 1] + x2[n]) % 2)
        return [(a + b) % 2 for a, b in zip(x1[1600:], x2[1600:], strict=True)][:length]

    seeds = [0, 1, 12345, 2**31 - 1]
    ours = gold_sequence(seeds, 300)
    assert [row.tolist() for row in ours] == [one_bit_at_a_time(seed, 300) for seed in seeds]


def test_lte_pss_is_a_zadoff_chu_sequence():
    for number, root in enumerate((25, 29, 34)):
        full = np.exp(-1j * np.pi * root * np.arange(63) * np.arange(1, 64) / 63)
        np.testing.assert_allclose(lte_pss(number), np.delete(full, 31), atol=1e-12)
        # Zero circular autocorrelation is what defines it.
        correlation = np.fft.ifft(np.abs(np.fft.fft(full)) ** 2)
        assert np.abs(correlation[1:]).max() < 1e-9
    np.testing.assert_allclose(lte_pss(2), np.conj(lte_pss(1)), atol=1e-9)  # roots 29 and 34 add up to 63


def test_nr_sequences_have_the_autocorrelation_of_m_sequences():
    for number in range(3):
        spectrum = np.fft.fft(nr_pss(number))
        np.testing.assert_allclose(np.fft.ifft(np.abs(spectrum) ** 2).real, [127] + [-1] * 126, atol=1e-9)
    np.testing.assert_array_equal(nr_pss(1), np.roll(nr_pss(0), -43))
    assert len({tuple(nr_sss(n, m)) for n in range(0, 336, 5) for m in range(3)}) == 68 * 3


def test_lte_sss_tells_cell_and_half_frame_apart():
    words = {tuple(lte_sss(n, m, subframe)) for n in range(168) for m in range(3) for subframe in (0, 5)}
    assert len(words) == 168 * 3 * 2
    np.testing.assert_array_equal(lte_sss(10, 1, 0)[::2] ** 2, np.ones(31))


def correlate(samples, replica):
    """|circular correlation| of samples with a replica."""
    spectrum = np.fft.fft(samples) * np.conj(np.fft.fft(replica, len(samples)))
    return np.abs(np.fft.ifft(spectrum))


@pytest.mark.parametrize("cell_id, tdd", [(0, None), (301, None), (503, 2)])
def test_a_receiver_finds_lte_timing_and_cell_identity(cell_id, tdd):
    rng, shift, n_fft = np.random.default_rng(cell_id), 12345, 512
    wave = lte_waveform(lte(cell_id=cell_id, tdd=tdd, ports=1), rng)
    samples = np.roll(wave.samples, shift)
    samples = samples + rng.normal(0, 0.3, (len(samples), 2)) @ [1, 1j] * np.sqrt(np.mean(np.abs(samples) ** 2))
    place = np.r_[-31:0, 1:32]

    def in_time(values):
        bins = np.zeros(n_fft, complex)
        bins[place] = values
        return np.fft.ifft(bins)

    peaks = [correlate(samples, in_time(lte_pss(n))) for n in range(3)]
    n_id_2 = int(np.argmax([peak.max() for peak in peaks]))
    start = int(peaks[n_id_2].argmax())
    assert n_id_2 == cell_id % 3
    # The PSS closes slot 0 (FDD) or is the third symbol of subframe 1 (TDD), every 5 ms.
    prefix = prefix_lengths(n_fft, 15e3)
    symbols_before = 6 if tdd is None else 14 + 2
    expected = sum(prefix[i % 7] + n_fft for i in range(symbols_before)) + prefix[symbols_before % 7]
    assert (start - shift - expected) % (len(samples) // 8) == 0
    # The SSS lies one (FDD) or three (TDD) symbols earlier.
    back = n_fft + prefix[5] if tdd is None else sum(n_fft + prefix[i] for i in (1, 2, 0))
    bins = np.fft.fft(np.roll(samples, -(start - back))[:n_fft])[place]
    pss = np.fft.fft(np.roll(samples, -start)[:n_fft])[place]
    if tdd is None:
        bins = bins * np.conj(pss / lte_pss(n_id_2))
    scores = {(n, half): abs(np.vdot(lte_sss(n, n_id_2, half), bins)) for n in range(168) for half in (0, 5)}
    assert 3 * max(scores, key=scores.get)[0] + n_id_2 == cell_id


@pytest.mark.parametrize("cell_id", [pytest.param(5, marks=pytest.mark.slow), 1006])
def test_a_receiver_finds_nr_timing_and_cell_identity(cell_id):
    rng, shift = np.random.default_rng(cell_id), 4321
    config = nr(cell_id=cell_id, ssb_case="C", ssb_blocks=(0, 1, 0, 0), load=0.3)
    samples = np.roll(nr_waveform(config, rng).samples, shift)
    n_fft, place = 1024, np.arange(-120 + 56, -120 + 183)

    def in_time(values):
        bins = np.zeros(n_fft, complex)
        bins[place] = values
        return np.fft.ifft(bins)

    peaks = [correlate(samples, in_time(nr_pss(n))) for n in range(3)]
    n_id_2 = int(np.argmax([peak.max() for peak in peaks]))
    start = int(peaks[n_id_2].argmax())
    assert n_id_2 == cell_id % 3
    prefix = prefix_lengths(n_fft, 30e3)
    symbol = lambda i: sum(prefix[k % 14] + n_fft for k in range(i)) + prefix[i % 14]  # noqa: E731
    assert (start - shift - symbol(8)) % (len(samples) // 2) == 0  # block 1 of case C, every 20 ms
    two_later = start + symbol(10) - symbol(8)
    bins = np.fft.fft(np.roll(samples, -two_later)[:n_fft])[place]
    scores = [abs(np.vdot(nr_sss(n, n_id_2), bins)) for n in range(336)]
    assert 3 * int(np.argmax(scores)) + n_id_2 == cell_id


@pytest.mark.parametrize(
    "wave, resource_blocks, scs",
    [
        (lambda rng: lte_waveform(lte(10e6, window=20), rng), 50, 15e3),
        (lambda rng: lte_waveform(lte(1.4e6), rng), 6, 15e3),
        (lambda rng: nr_waveform(nr(20e6, 30e3), rng), 51, 30e3),
        (lambda rng: nr_waveform(nr(50e6, 15e3), rng), 270, 15e3),
    ],
)
def test_occupied_bandwidth_is_the_resource_blocks(wave, resource_blocks, scs):
    wave = wave(np.random.default_rng(1))
    size = 4096
    parts = wave.samples[: len(wave.samples) // size * size].reshape(-1, size) * np.hanning(size)
    density = np.mean(np.abs(np.fft.fft(parts, axis=1)) ** 2, 0)
    occupied = (density > np.median(density[density > density.max() / 100]) / 4).sum() * wave.sample_rate / size
    assert occupied == pytest.approx(resource_blocks * 12 * scs, rel=0.02)
    assert wave.occupied_hz == resource_blocks * 12 * scs


@pytest.mark.parametrize("snr_db", [0.0, pytest.param(15.0, marks=pytest.mark.slow), 30.0])
def test_requested_snr_is_measured_in_the_frame(snr_db):
    rng = np.random.default_rng(3)
    wave = nr_waveform(nr(20e6, 30e3, load=1.0, downlink_symbols=np.tile([14, 14, 0, 0], 20), ssb_blocks=(0,)), rng)
    samples = multipath(wave.samples, wave.sample_rate, "EPA", 50.0, rng)
    band, center = Band(), 5e6
    band.add(samples, wave.sample_rate, center, snr_amplitude(samples, wave.active_share, wave.occupied_hz, snr_db))
    band.add_noise(1.0, rng)
    # An independent view: energy in the occupied band, half the slots silent, against energy in an empty band.
    hz = (np.arange(FRAME_SAMPLES) - FRAME_SAMPLES // 2) * 25.0
    power = np.abs(band.spectrum.astype(np.complex128)) ** 2
    inside = np.abs(hz - center) < wave.occupied_hz / 2
    noise = power[np.abs(hz + 20e6) < 3e6].mean()
    measured = 10 * np.log10((power[inside].mean() / noise - 1) / 0.5)
    assert measured == pytest.approx(snr_db, abs=0.3)


@pytest.mark.parametrize("offset", [0, 1])  # the first subframe drawn is a downlink one, a special one
def test_a_control_region_of_three_symbols_leaves_the_pss_of_special_subframes_alone(offset):
    config = lte(1.4e6, cell_id=4, tdd=1, cfi=3, control_load=1.0, subframe_offset=offset)
    grid = lte_grid(config, np.random.default_rng(0)).reshape(40, 14, -1)
    assert np.allclose(grid[1 - offset, 2, 5:67], lte_pss(1), atol=1e-6)
    assert np.all(grid[4 - offset, 2, 5:67] != 0)  # an ordinary downlink subframe's third control symbol is full


def test_no_ss_pbch_block_is_sent_in_uplink_symbols():
    kinds = np.tile([14, 14, 0, 0], 20)
    grid = nr_grid(nr(load=0.0, ssb_blocks=(1,) * 8, ssb_case="B", downlink_symbols=kinds), np.random.default_rng(0))
    assert np.flatnonzero(np.abs(grid[:56]).any(1)).tolist() == list(range(4, 12)) + list(range(16, 24))
    assert not nr_grid(nr(load=0.0, downlink_symbols=kinds * 0), np.random.default_rng(0)).any()


def test_tdd_uplink_is_silent_and_downlink_is_not():
    for number, pattern in enumerate(LTE_TDD):
        grid = lte_grid(lte(1.4e6, tdd=number, dwpts=3), np.random.default_rng(0)).reshape(40, 14, -1)
        busy = np.abs(grid).sum(2) > 0
        for subframe in range(40):
            expected = {"D": 14, "S": 3, "U": 0}[pattern[subframe % 10]]
            assert busy[subframe].sum() == expected and busy[subframe, :expected].all()


def test_an_idle_nr_carrier_between_ss_pbch_bursts_has_no_energy():
    assert nr_waveform(nr(load=0.0, ssb_period_ms=160, ssb_start_ms=80), np.random.default_rng(0)).active_share == 0


def test_cell_specific_reference_signals_are_where_the_standard_puts_them():
    grid = lte_grid(lte(1.4e6, load=0.0, cell_id=4, control_load=0.0), np.random.default_rng(0))
    # Subframe 2 carries nothing else after the control region; ports 0: symbols 4, 7 and 11, shifted by cell mod 6.
    busy = np.abs(grid.reshape(40, 14, 72)[2]) > 0
    assert set(np.flatnonzero(busy[4])) == {k for k in range(72) if k % 6 == (3 + 4) % 6}
    assert set(np.flatnonzero(busy[7])) == {k for k in range(72) if k % 6 == 4}
    assert not busy[[3, 5, 6, 8, 9, 10, 12, 13]].any()


@pytest.mark.parametrize("order", [4, 16, 64, 256])
def test_qam_has_unit_power_and_all_its_points(order):
    symbols = random_qam(np.random.default_rng(0), order, (40_000,))
    assert len(np.unique(np.round(symbols, 4))) == order
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, abs=0.02)


# Which of the five places 50 MHz at 30 kHz use in the 20 slots of a frame: real frames of the published set show them.
PLACES_50_MHZ = (2, 0, 3, 2, 4, 1, 1, 1, 2, 4, 4, 0, 2, 0, 1, 3, 3, 0, 4, 4)


def test_the_pdcch_moves_from_slot_to_slot_as_the_search_space_says():
    assert tuple(pdcch_first_cce(44, 20, 8) // 8) == PLACES_50_MHZ
    assert set(pdcch_first_cce(8, 20, 8)) == {0}  # 10 MHz at 30 kHz: one place
    closed_form = [pow(39827, slot + 1, 65537) % 11 for slot in range(10)]
    assert (pdcch_first_cce(90, 10, 8) // 8).tolist() == closed_form  # 50 MHz at 15 kHz: eleven places
    assert len(set(closed_form)) > 5


def test_a_pdcch_of_eight_elements_lies_in_two_runs_of_four_bundles_half_a_carrier_apart():
    for n_rb, slots in ((133, 20), (24, 20), (270, 10), (52, 10)):
        bundles = pdcch_bundles(n_rb, slots)
        assert bundles.shape == (slots, n_rb // 3) and (bundles.sum(1) == 8).all()
        half = n_rb // 6
        np.testing.assert_array_equal(bundles[:, :half], bundles[:, half : 2 * half])
        firsts = bundles.argmax(1)
        assert all(bundles[slot, first : first + 4].all() for slot, first in enumerate(firsts))
    assert pdcch_bundles(24, 20).all()  # eight bundles: the whole carrier
    assert tuple(pdcch_bundles(133, 20).argmax(1) // 4) == PLACES_50_MHZ
    assert pdcch_bundles(11, 20).sum() == 20 * 2  # two elements are all that a carrier of 11 RBs has


def test_the_dashes_of_a_frame_at_100_db_are_where_the_standard_puts_the_pdcch():
    rng = np.random.default_rng(0)
    config = mathworks_nr(rng, 50e6)
    while config.scs != 30e3:
        config = mathworks_nr(rng, 50e6)
    config = replace(config, allocation=0 * config.allocation, ssb_blocks=(0,))  # nothing over the dashes
    wave, band = nr_waveform(config, rng), Band()
    band.add(wave.samples, wave.sample_rate, 0.0, 1 / 2048)
    band.add_noise(10 ** (-100 / 10), rng)
    levels = spectrogram_levels(band.samples())[::-1]  # start of the frame first

    # The picture's row i shows 4 microseconds from here on; a slot has 500, its first two symbols 72.
    start = 246 * np.floor((np.arange(256) + 0.5) * 9990 / 256) / SAMPLE_RATE
    slot, after = np.floor(start / 500e-6).astype(int), start % 500e-6
    shown = np.flatnonzero((after > 2e-6) & (after < 66e-6))
    assert len(set(slot[shown] % 20)) >= 8
    assert levels[(after > 75e-6) & (after < 495e-6)].mean() < 0.2 * levels[shown].max()
    # 4 bundles of 36 subcarriers are 18 columns; each half of the 44 bundles has five places, and two bundles over.
    edge = (SAMPLE_RATE / 2 - 133 * 6 * 30e3) / 240e3
    by_place = np.empty((5, 2, len(shown)))  # mean level over the columns within a run
    for place in range(5):
        for half in range(2):
            first = edge + (4 * place + 22 * half) * 36 * 30e3 / 240e3
            inside = slice(int(np.ceil(first)), int(first + 18))
            by_place[place, half] = levels[shown, inside].mean(1)
    sent = np.array(PLACES_50_MHZ)[slot[shown] % 20] == np.arange(5)[:, None]  # (places, rows)
    assert by_place.transpose(1, 0, 2)[:, sent].min() > 180 > 60 > by_place.transpose(1, 0, 2)[:, ~sent].max()


def test_fading_is_rayleigh_with_the_doppler_it_was_asked_for():
    rng = np.random.default_rng(0)
    gains = np.array([fading(rng, 400.0) for _ in range(200)])
    power = np.abs(gains) ** 2
    assert power.mean() == pytest.approx(1, abs=0.1)
    assert (power < 0.1).mean() == pytest.approx(1 - np.exp(-0.1), abs=0.03)
    # Clarke: the autocorrelation is a Bessel function, first zero at 2.405 / (2 pi f_d) = .957 ms.
    lag = round(0.957e-3 / 40e-3 * (gains.shape[1] - 1))
    assert abs(np.mean(gains[:, :-lag] * np.conj(gains[:, lag:]))) < 0.12


def test_a_carrier_lands_at_its_frequency_and_is_lost_outside_the_band():
    wave = lte_waveform(lte(5e6), np.random.default_rng(0))
    for center in (-20e6, 3.21e6):
        band = Band()
        band.add(wave.samples, wave.sample_rate, center)
        power = np.abs(band.spectrum) ** 2
        hz = (np.arange(FRAME_SAMPLES) - FRAME_SAMPLES // 2) * 25.0
        assert np.sum(power * hz) / power.sum() == pytest.approx(center, abs=20e3)
    band = Band()
    band.add(wave.samples, wave.sample_rate, SAMPLE_RATE / 2 + 10e6)
    assert not band.spectrum.any()


def test_a_slower_receiver_folds_what_its_filter_lets_through_to_the_other_edge():
    band = Band()
    for hz in (3e6, 6e6, -8e6, 20e6):  # at 10 MS/s the second and third are beyond the edges, within 4 MHz
        band.add_tone(hz, 20)
    band.narrow(-5e6, 5e6, 4e6)
    spectrum = np.abs(np.fft.fft(band.samples()))
    peaks = np.fft.fftfreq(FRAME_SAMPLES, 1 / SAMPLE_RATE)[spectrum > spectrum.max() / 2]
    assert sorted(np.round(peaks)) == [-4e6, 2e6, 3e6]
    noise = Band()
    noise.add_noise(1.0, np.random.default_rng(0))
    resolution = round(15e3 * FRAME_SAMPLES / SAMPLE_RATE)  # bins of the tone's level
    floor = np.mean(np.abs(noise.spectrum) ** 2) * resolution
    assert 10 * np.log10(spectrum.max() ** 2 / floor) == pytest.approx(20, abs=0.1)


def test_a_folded_carrier_is_labelled_where_its_energy_is():
    rng, bins = np.random.default_rng(3), FRAME_SAMPLES / SAMPLE_RATE  # bins a Hz

    def bin_of(hz):
        return round(np.clip(hz, -SAMPLE_RATE / 2, SAMPLE_RATE / 2) * bins) + FRAME_SAMPLES // 2

    folded = 0
    for _ in range(100):
        band, center = Band(), float(rng.uniform(-33e6, 33e6))
        low, high = (bin_of(center + side) for side in (-2e6, 2e6))
        band.spectrum[low:high] = 1
        seen, _ = _narrow_capture([band], [{"technology": "LTE", "center_hz": center, "bandwidth_hz": 4e6}], rng)
        labelled = np.zeros(FRAME_SAMPLES, bool)
        for carrier in seen:
            half = carrier["bandwidth_hz"] / 2
            labelled[bin_of(carrier["center_hz"] - half) : bin_of(carrier["center_hz"] + half)] = True
        different = np.count_nonzero(labelled != (band.spectrum != 0)) / bins
        assert different < 2 * 240e3  # parts of less than a pixel are not labelled
        folded += len(seen) > 0 and not np.any(labelled[low:high])
    assert folded >= 2


def test_a_noise_floor_has_no_blocks_that_could_be_carriers():
    rng, mhz = np.random.default_rng(0), 4096 / 61.44
    for _ in range(200):
        inner = _floor_shape(rng)[round(5 * mhz) : -round(5 * mhz)]
        assert np.abs(inner[round(mhz) :] - inner[: -round(mhz)]).max() < 1.5  # dB from one MHz to the next


def test_a_narrow_capture_is_filled_up_at_about_its_own_floor_and_at_its_own_edges():
    rng, steps = np.random.default_rng(1), []
    for _ in range(80):
        band = Band()
        band.spectrum[:] = 1
        _, floor = _narrow_capture([band], [{"technology": "NR", "center_hz": 4e6, "bandwidth_hz": 10e6}], rng)
        received = band.spectrum.reshape(4096, -1).real.min(1) > 0  # of the floor's points, those received in whole
        assert len(np.unique(floor)) == 2
        assert np.count_nonzero((floor == 0) != received) <= 2
        steps.append(np.median(floor[~received]))
    assert np.median(np.abs(steps)) < 1
    assert 0.01 < np.mean(np.array(steps) < -3) < 0.12


@pytest.mark.slow
def test_some_nr_carriers_of_the_field_send_no_ss_pbch_block():
    """Such as a secondary carrier; the others' first burst may still come after the frame's end."""
    rng = np.random.default_rng(2)
    without = [not any(field_nr(rng, 10e6, 15e3)[0].ssb_blocks) for _ in range(100)]
    assert 0.2 < np.mean(without) < 0.55


def test_a_steady_nr_carrier_fills_its_channel_in_every_slot():
    rng = np.random.default_rng(0)
    for _ in range(6):
        config, wave = field_nr(rng, 5e6, 15e3, data_only_share=1.0, steady_share=1.0)
        used = (np.abs(wave.grid).reshape(-1, 14, wave.grid.shape[1]) > 0).any(1)  # (slots, subcarriers)
        assert used.all() and not any(config.ssb_blocks) and config.downlink_symbols is None

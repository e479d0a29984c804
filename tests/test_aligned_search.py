"""Where the prefix tells when symbols begin, the same cells are found; where no block's power is, none is searched.

Run: pytest tests/test_aligned_search.py
The blind search of data/cell_search.py, whose own tests know the true cells, is the independent answer.
"""

import numpy as np
import pytest

from data import evidence
from data.aligned_search import symbol_starts
from data.block_screen import cell_power, possible_blocks
from data.cell_search import lte_cells, lte_cells_aligned, nr_cells, nr_cells_aligned
from data.cyclic_prefix import frame_spectrum, symbol_timings
from data.evidence import FrameEvidence
from tests.conftest import lte_carrier, nr_carrier, resampled

RATE, CENTER = 15.36e6, 2000.5e6
COUNT = round(0.04 * RATE)
FLOOR = 1 / RATE


def noise(seed=1, count=COUNT):
    return np.random.default_rng(seed).standard_normal((count, 2)).view(complex)[:, 0] / np.sqrt(2)


def at(wave, hz, db=10.0, late=0):
    """A carrier at hz, begun `late` samples late, its occupied band db above noise of power 1."""
    samples = np.roll(resampled(wave.samples, COUNT), late)
    samples *= np.sqrt(10 ** (db / 10) * wave.occupied_hz / RATE / np.mean(np.abs(samples) ** 2))
    return samples * np.exp(2j * np.pi * hz / RATE * np.arange(COUNT))


def look(samples, center=CENTER):
    return FrameEvidence(np.asarray(samples, np.complex64), RATE, center, FLOOR)


def names(cells):
    return sorted((cell.cell_id, getattr(cell, "duplex", "NR"), round(cell.offset_hz / 500)) for cell in cells)


@pytest.mark.parametrize("options", [{}, {"load": 0.0}, {"tdd": 2}], ids=["half load", "idle", "TDD"])
@pytest.mark.parametrize("late", [0, 12_345])
def test_an_aligned_search_finds_the_lte_cell_of_the_blind_one(options, late):
    wave = lte_carrier(3e6, 301, **options)
    view = look(at(wave, 1.2345e6, late=late) + noise())
    timings = symbol_timings(view.spectrum, -0.4e6, 2.8e6, 15e3, FLOOR)
    centers = np.arange(0.0, 2.5e6, 1e5)
    found = lte_cells_aligned(view.part(-1e6, 3.5e6), centers, CENTER, timings)
    samples, rate, middle = view.around(-1e6, 3.5e6)
    blind = [
        cell._replace(offset_hz=cell.offset_hz + middle)
        for cell in lte_cells(samples, rate, 1.2e6 - middle, CENTER + middle)
    ]
    assert names(found) == names(blind) and [cell.cell_id for cell in found] == [301]
    assert abs((found[0].start_s - blind[0].start_s + 5e-3) % 10e-3 - 5e-3) < 2e-6


def test_carriers_side_by_side_of_any_timing_and_subcarriers_are_all_found():
    waves = [lte_carrier(3e6, cell, 0.5, cell) for cell in (10, 200, 400)]
    places = ((-4.0035e6, 0), (0.9e6, 5000), (4.3075e6, 11_111))
    view = look(sum(at(wave, hz, late=late) for wave, (hz, late) in zip(waves, places, strict=True)) + noise())
    found = view.of(-5.4e6, 5.7e6, level_db=10.0).lte
    assert {cell.cell_id: round(cell.offset_hz / 500) for cell in found} == {10: -8007, 200: 1800, 400: 8615}


@pytest.mark.parametrize("spacing", [15e3, 30e3])
def test_an_aligned_search_finds_the_nr_cell_of_the_blind_one(spacing):
    wave = nr_carrier(5e6 if spacing == 15e3 else 10e6, spacing, 741, 0.6, ssb_case="A" if spacing == 15e3 else "C")
    view = look(at(wave, -47e3, late=2222) + noise())
    band = (-2.2e6, 2.2e6) if spacing == 15e3 else (-4.5e6, 4.5e6)
    timings = symbol_timings(view.spectrum, *band, spacing, FLOOR)
    found = nr_cells_aligned(view.part(*band), band, CENTER, timings)
    blind = nr_cells(view.samples[: round(0.0204 * RATE)], RATE, band, CENTER, spacing_hz=spacing)
    assert {cell.cell_id for cell in found} == {cell.cell_id for cell in blind} == {741}
    assert abs(found[0].offset_hz + 47e3) < 200 and found[0].raster_hz == blind[0].raster_hz
    unknown = nr_cells_aligned(view.part(*band), band, None, timings)  # the capture's centre is not known
    assert [cell.cell_id for cell in unknown] == [741] and np.isnan(unknown[0].raster_hz)


def test_a_timing_tells_when_symbols_begin_and_where_subcarriers_lie():
    late, hz = 7777, 1.234e6
    view = look(at(lte_carrier(5e6, 9, 1.0, 0), hz, late=late) + noise())
    (timing,) = symbol_timings(view.spectrum, -1.4e6, 3.8e6, 15e3, FLOOR)
    assert abs((timing.offset_hz - hz + 7.5e3) % 15e3 - 7.5e3) < 200
    starts = (timing.start_s + symbol_starts(15e3, False)) % 0.5e-3
    true = (late / RATE + symbol_starts(15e3, False)) % 0.5e-3
    away = (starts[:, None] - true + 0.25e-3) % 0.5e-3 - 0.25e-3
    assert np.abs(away).min(1).max() < 1e-6  # any symbol may count as the first
    assert symbol_timings(frame_spectrum(noise(), RATE), -2e6, 2e6, 15e3, FLOOR) == []


def test_symbols_of_half_a_millisecond_begin_as_the_standard_says():
    starts = symbol_starts(15e3, False)  # TS 36.211 table 6.12-1: prefixes of 160 and 144 samples at 30.72 MS/s
    assert np.allclose(starts * 30.72e6, [160 + i * (2048 + 144) for i in range(7)])
    assert np.allclose(symbol_starts(30e3, False)[[0, 1, 13]] * 30.72e6, [88, 88 + 1096, 88 + 13 * 1096])
    assert np.allclose(symbol_starts(15e3, True) * 30.72e6, [512 + i * 2560 for i in range(6)])


def test_where_the_prefix_is_seen_no_blind_search_runs(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a blind search")

    monkeypatch.setattr(evidence, "lte_cells", never)
    monkeypatch.setattr(evidence, "nr_cells", never)
    wave = nr_carrier(10e6, 15e3, 5, 1.0, ssb_case="A", ssb_blocks=(0, 0, 0, 0))
    seen = look(at(wave, 0.0) + noise()).of(-5e6, 5e6, level_db=10.0)
    assert seen.prefix.spacing_hz == 15e3 and not seen.lte and not seen.nr


# ---- where no block can be -------------------------------------------------------------------------------------------

RASTER = np.arange(-6.0e6, 6.1e6, 1.2e6)  # Hz


def block(hz, start_s, spacing, snr_db):
    """Power of an SS/PBCH block: noise of its width, four symbols long."""
    samples, long = np.zeros(COUNT, complex), round(4.3 / spacing * RATE)
    lines = np.fft.fft(noise(7, long))
    lines[np.abs(np.fft.fftfreq(long, 1 / RATE)) > 64 * spacing] = 0
    first = round(start_s * RATE)
    samples[first : first + long] = np.fft.ifft(lines) * 10 ** (snr_db / 20)
    return samples * np.exp(2j * np.pi * hz / RATE * np.arange(COUNT))


def places(samples, spacing):
    cells = cell_power(np.asarray(samples, np.complex64)[: round(0.0204 * RATE)], RATE)
    return possible_blocks(cells, RASTER, spacing, FLOOR)


@pytest.mark.parametrize("spacing", [15e3, 30e3])
def test_a_block_is_among_the_places_and_noise_leaves_next_to_none(spacing):
    searched = sum(
        (place.stop_s - place.start_s) * (1 + (place.last_hz - place.first_hz) / 1.2e6)
        for place in places(noise(), spacing)
    )
    assert searched < 0.05 * 0.02 * len(RASTER)
    hits = 0
    for seed in range(4):
        start = 0.001 + 0.0048 * seed
        found = places(noise(seed) + block(1.2e6, start, spacing, -3.0), spacing)
        hits += any(
            place.first_hz <= 1.2e6 <= place.last_hz and place.start_s <= start < start + 4.3 / spacing <= place.stop_s
            for place in found
        )
    assert hits == 4


def test_frequencies_above_the_floor_are_searched_all_the_time():
    lines = np.fft.fft(noise(3))
    lines[np.abs(np.fft.fftfreq(COUNT, 1 / RATE)) > 2e6] = 0
    (place,) = [place for place in places(noise() + np.fft.ifft(lines), 15e3) if place.stop_s - place.start_s > 0.02]
    assert place.first_hz <= -1.2e6 and place.last_hz >= 1.2e6 and place.last_hz < 4e6


def test_an_idle_nr_carrier_in_a_wide_band_of_noise_is_found_by_its_one_block():
    wave = nr_carrier(10e6, 30e3, 612, 0.0, ssb_case="C", ssb_blocks=(1, 0, 0, 0))
    samples = at(wave, -47e3, 0.0) * np.sqrt(wave.occupied_hz / 7.6e6 * 8)
    seen = look(samples + noise()).of(-7e6, 7e6, cut=True)
    assert [cell.cell_id for cell in seen.nr] == [612]

"""Cells that are there are found, with all that is said of them; nothing else is.

Run: pytest tests/test_cell_search.py

The carriers come from data/lte_nr.py, whose sequences tests/test_lte_nr.py compares with the standards' definitions.
"""

import ast
from pathlib import Path

import numpy as np
import pytest

from data import cell_search
from data.cell_search import THRESHOLD, LteCell, false_alarm_rate, lte_cells, nr_cells, on_the_raster
from data.lte_nr import LTE_FFT, LTE_TDD, LteConfig, lte_grid
from data.sync_signals import lte_centers, nr_raster
from tests.conftest import lte_carrier, nr_carrier, resampled

CAPTURES = Path(__file__).parent.parent / "../shared/data/captures"
CAPTURE_HZ = 2000.5e6  # a point of the raster of NR is at -50 kHz


def noise(rng, count, power=1.0):
    return rng.standard_normal((count, 2), np.float32).view(np.complex64)[:, 0] * np.float32(np.sqrt(power / 2))


def shift(samples, rate, hz):
    return (samples * np.exp(2j * np.pi * hz / rate * np.arange(len(samples)))).astype(np.complex64)


def receive(samples, rate, hz, snr_db=10.0, clock=0.0, milliseconds=40.0, seed=0):
    """The carrier at hz, by a receiver whose clock is off by a part `clock`, noise snr_db below a resource element."""
    spectrum = np.fft.fft(samples)
    if clock:  # a slow clock makes fewer samples
        size = round(len(samples) * (1 - clock))
        spectrum = np.fft.fftshift(spectrum)
        cut = (len(samples) - size) // 2
        spectrum = spectrum[cut : cut + size] if cut > 0 else np.pad(spectrum, (-cut, size - len(samples) + cut))
        samples = np.fft.ifft(np.fft.ifftshift(spectrum)) * (size / len(samples))
    samples = samples[: round(milliseconds / 1e3 * rate)]
    rng = np.random.default_rng(seed)
    return shift(samples, rate, hz) + noise(rng, len(samples), rate / 15e3 * 10 ** (-snr_db / 10))


def lte(cell_id=301, bandwidth=1.4e6, load=0.5, seed=0, **options):
    wave = lte_carrier(bandwidth, cell_id, load, seed, **options)
    return wave.samples, wave.sample_rate


def nr(cell_id=500, spacing=15e3, load=0.5, case="A", **options):
    wave = nr_carrier(5e6 if spacing == 15e3 else 10e6, spacing, cell_id, load, ssb_case=case, **options)
    return wave.samples, wave.sample_rate


def test_it_needs_numpy_and_the_sequences_alone():
    tree = ast.parse(Path(cell_search.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    ours = {"data.aligned_search", "data.sync_search", "data.sync_signals"}
    assert imported == {"time", "collections.abc", "typing", "numpy"} | ours


@pytest.mark.parametrize(
    "options",
    [{"load": 0.0}, {"load": 1.0}, {"mbsfn": (1, 2, 3, 6, 7, 8), "load": 0.0}, {"ports": 4}, {"bandwidth": 3e6},
     {"bandwidth": 5e6}],
    ids=["idle", "loaded", "MBSFN", "four antennas", "3 MHz", "5 MHz"],
)  # fmt: skip
def test_lte_fdd_cell_is_found_with_its_centre(options):
    samples, rate = lte(cell_id=167, **options)
    cells = lte_cells(receive(samples, rate, 23.4e3), rate, 0.0, CAPTURE_HZ)
    assert [(cell.cell_id, cell.duplex, cell.prefix) for cell in cells] == [(167, "FDD", "normal")]
    assert abs(cells[0].offset_hz - 23.4e3) < 150
    assert cells[0].statistic > THRESHOLD


@pytest.mark.parametrize("pattern", range(len(LTE_TDD)))
def test_lte_tdd_cell_is_found_in_every_pattern(pattern):
    samples, rate = lte(cell_id=29, tdd=pattern)
    cells = lte_cells(receive(samples, rate, -8e3), rate, 0.0, CAPTURE_HZ)
    assert [(cell.cell_id, cell.duplex, cell.prefix) for cell in cells] == [(29, "TDD", "normal")]
    assert abs(cells[0].offset_hz + 8e3) < 150


def extended_prefix(cell_id, tdd):
    """40 ms of LTE with extended prefix: 12 symbols a subframe, two of a normal subframe's 14 left out."""
    allocation = np.ones((40, 6), np.float32)
    grid = lte_grid(LteConfig(1.4e6, cell_id, allocation, tdd=tdd), np.random.default_rng(0)).reshape(40, 2, 7, 72)
    # The PSS is the last symbol of a slot (FDD) or the third (TDD), the SSS the last but one or the last.
    grid = np.delete(grid, 4 if tdd is None else 3, 2).reshape(-1, 72)
    bins = np.zeros((len(grid), LTE_FFT[6]), np.complex64)
    bins[:, -36:], bins[:, 1:37] = grid[:, :36], grid[:, 36:]
    symbols = np.fft.ifft(bins, norm="forward")
    return np.concatenate([symbols[:, -32:], symbols], 1).ravel(), 1.92e6


@pytest.mark.parametrize("tdd", [None, 2], ids=["FDD", "TDD"])
def test_extended_prefix_is_told(tdd):
    samples, rate = extended_prefix(244, tdd)
    cells = lte_cells(receive(samples, rate, 5e3), rate, 0.0, CAPTURE_HZ)
    duplex = "FDD" if tdd is None else "TDD"
    assert [(cell.cell_id, cell.duplex, cell.prefix) for cell in cells] == [(244, duplex, "extended")]


@pytest.mark.parametrize("ppm", [-53, 0, 58])
def test_a_receivers_error_of_60_ppm_moves_frequency_and_clock(ppm):
    samples, rate = lte(cell_id=86, bandwidth=3e6)
    offset = ppm * 1e-6 * 2600e6
    cells = lte_cells(receive(samples, rate, offset, 0.0, ppm * 1e-6), rate, 0.0, 2600e6)
    assert [cell.cell_id for cell in cells] == [86]
    assert abs(cells[0].offset_hz - offset) < 300


@pytest.mark.parametrize("rate", [1.92e6, 2e6, 2.4e6, 12.8e6, 20e6, 30.72e6])
def test_centre_and_frame_timing_are_told_at_any_sample_rate(rate):
    samples, own = lte(cell_id=3)
    samples, count = np.roll(samples, 1234), round(0.04 * rate)
    samples = resampled(samples, count)
    center = 0.3 * (rate - own)
    capture = receive(samples, rate, center, milliseconds=20)
    (cell,) = lte_cells(capture, rate, center - 7e3, CAPTURE_HZ)
    assert cell.cell_id == 3 and abs(cell.offset_hz - center) < 150
    assert abs(cell.start_s - 1234 / own) < 2e-6


def test_two_cells_of_one_carrier_and_one_inside_it_are_all_told():
    first, rate = lte(cell_id=142, bandwidth=5e6)
    second, _ = lte(cell_id=86, bandwidth=5e6, seed=1)
    inner, inner_rate = lte(cell_id=271, seed=2)
    assert inner_rate == rate / 4
    inner = resampled(inner, len(first))
    sent = receive(first + np.roll(second, 3000), rate, 10e3, 20) + shift(inner, rate, 1.21e6)
    assert {cell.cell_id for cell in lte_cells(sent, rate, 0.0, CAPTURE_HZ)} == {142, 86}
    found = {cell.cell_id: cell.offset_hz for cell in lte_cells(sent, rate, [0.0, 1.2e6], CAPTURE_HZ)}
    assert found.keys() == {142, 86, 271}
    assert abs(found[271] - 1.21e6) < 300


def test_the_centre_need_be_known_to_half_a_megahertz_only():
    samples, rate = lte(cell_id=77, bandwidth=5e6)
    edges = (-2.25e6 + 4e5, 2.25e6 + 5e5)  # .45 MHz beside
    centers = lte_centers(*edges, 2000e6)
    assert len(centers) == 10 and np.allclose((centers + 2000e6) % 100e3, 0) and 0.0 in centers
    (cell,) = lte_cells(receive(samples, rate, 12e3), rate, centers, 2000e6)
    assert cell.cell_id == 77 and abs(cell.offset_hz - 12e3) < 150


def test_cells_of_one_pss_at_one_time_are_told_and_no_third():
    first, rate = lte(cell_id=30, bandwidth=5e6)
    second, _ = lte(cell_id=63, bandwidth=5e6, seed=1)
    assert [cell.cell_id for cell in lte_cells(receive(first, rate, 0.0, 30), rate, 0.0, CAPTURE_HZ)] == [30]
    cells = lte_cells(receive(first + 0.6j * second, rate, 0.0, 20), rate, 0.0, CAPTURE_HZ)
    assert {cell.cell_id for cell in cells} == {30, 63}


@pytest.mark.parametrize("milliseconds", [10, 20, 120])
def test_lte_is_found_in_short_and_long_recordings(milliseconds):
    samples, rate = lte(cell_id=400)
    samples = np.tile(np.roll(samples, -4321), 3)
    cells = lte_cells(receive(samples, rate, 1e3, 5, milliseconds=milliseconds), rate, 0.0, CAPTURE_HZ)
    assert [cell.cell_id for cell in cells] == [400]


def test_lines_and_glitches_and_lost_samples_do_not_hide_a_cell():
    samples, rate = lte(cell_id=150, bandwidth=5e6)
    capture = receive(samples, rate, 4e3, 5)
    capture += 30 * np.std(capture) + shift(20 * np.std(capture) * np.ones(len(capture)), rate, 123e3)
    capture[[5000, 70000, 200000]] = 1e6
    capture[100000:110000] = 0
    capture[200500:200600] = np.nan
    assert [cell.cell_id for cell in lte_cells(capture, rate, 0.0, CAPTURE_HZ)] == [150]


@pytest.mark.parametrize(
    "options",
    [{}, {"load": 0.0}, {"load": 1.0}, {"spacing": 30e3, "case": "B"}, {"spacing": 30e3, "case": "C"},
     {"ssb_blocks": (0, 0, 1, 0), "ssb_start_ms": 5}],
    ids=["half load", "idle", "full load", "30 kHz, case B", "30 kHz, case C", "one block"],
)  # fmt: skip
def test_nr_cell_is_found_with_its_block(options):
    spacing = options.get("spacing", 15e3)
    samples, rate = nr(cell_id=741, **options)
    capture = receive(samples, rate, -47e3, 15)  # the block is in the carrier's middle, 3 kHz beside the raster
    cells = nr_cells(capture[: round(0.0204 * rate)], rate, (-2.5e6, 2.5e6), CAPTURE_HZ)
    assert [(cell.cell_id, cell.spacing_hz) for cell in cells] == [(741, spacing)]
    assert abs(cells[0].offset_hz + 47e3) < 200
    assert cells[0].raster_hz == pytest.approx(2000.45e6)


def test_nr_off_the_raster_is_found_by_the_blind_search_only():
    samples, rate = nr(cell_id=12)
    capture = receive(samples, rate, 600e3, 15)[: round(0.0204 * rate)]
    assert nr_cells(capture, rate, (-1.8e6, 1.8e6), CAPTURE_HZ) == []
    (cell,) = nr_cells(capture, rate, (-1.8e6, 1.8e6), spacing_hz=15e3, blind_seconds=60)
    assert cell.cell_id == 12 and abs(cell.offset_hz - 600e3) < 200 and np.isnan(cell.raster_hz)
    assert nr_cells(capture, rate, (-1.8e6, 1.8e6), spacing_hz=15e3, blind_seconds=0) == []
    with pytest.raises(ValueError, match="centre frequency"):
        nr_cells(capture, rate, (-1.8e6, 1.8e6))


def test_raster_is_that_of_38_104():
    # GSCN of TS 38.104 table 5.4.3.1-1: 3N + (M - 3) / 2 below 3 GHz, 7499 + N above.
    below = [2000.45e6, 2000.55e6, 2000.65e6, 2001.65e6, 2001.75e6, 2001.85e6]
    np.testing.assert_allclose(nr_raster(2000e6, 2002e6), below, atol=1)
    assert nr_raster(3549e6, 3552e6).tolist() == [3550.08e6, 3551.52e6]


def others():
    rng = np.random.default_rng(5)
    rate, count = 7.68e6, 307200
    time = np.arange(count) / rate
    bins = np.zeros((count // 20 // 4 + 1, 64), complex)
    bins[:, np.r_[-26:0, 1:27]] = rng.choice([-1, 1], (len(bins), 52))
    wifi = np.fft.ifft(bins)
    wifi = 30 * np.concatenate([wifi[:, -16:], wifi], 1).ravel()[:count]
    sweep = time % 5e-3
    yield "noise", noise(rng, count)
    yield "OFDM of 80 samples", wifi + noise(rng, count, 0.01)
    yield "tones", 5 * np.exp(2e5j * time) + 3 * np.exp(-1.3e6j * time) + noise(rng, count)
    yield "comb", np.tile(np.r_[30, np.zeros(511)], 600) + noise(rng, count)
    yield "chirps", np.exp(1j * np.pi * 0.93e6 / 66.67e-6 * sweep**2) * (sweep < 66.67e-6) * 20 + noise(rng, count)
    yield "looped", np.tile(noise(rng, 38400), 8)
    yield "silence", np.zeros(count)


@pytest.mark.parametrize("samples", [pytest.param(samples, id=name) for name, samples in others()])
def test_nothing_is_found_where_no_cell_is(samples):
    samples = samples.astype(np.complex64)
    assert lte_cells(samples, 7.68e6, 0.0, CAPTURE_HZ) == []
    assert nr_cells(samples[:156672], 7.68e6, (-2.5e6, 2.5e6), CAPTURE_HZ) == []


def test_lte_has_no_nr_cell_and_nr_no_lte_cell():
    samples, rate = lte(bandwidth=5e6)
    assert nr_cells(receive(samples, rate, 0.0, 30)[:156672], rate, (-2.5e6, 2.5e6), CAPTURE_HZ) == []
    samples, rate = nr()
    assert lte_cells(receive(samples, rate, 0.0, 30), rate, 0.0, CAPTURE_HZ) == []


def test_the_threshold_is_a_false_alarm_in_ten_thousand_searches():
    assert false_alarm_rate(THRESHOLD) < 1e-4 < false_alarm_rate(THRESHOLD - 2)


def test_a_capture_that_is_too_slow_or_short():
    with pytest.raises(ValueError, match="do not show a PSS"):
        lte_cells(np.zeros(1000, np.complex64), 0.5e6)
    for count in (0, 1, 500, 5000):
        assert lte_cells(np.ones(count, np.complex64), 1.92e6) == []
        assert nr_cells(np.ones(count, np.complex64), 7.68e6, (-3e6, 3e6), CAPTURE_HZ) == []


def real(name, kind):
    path = next(CAPTURES.glob(name + "*"))
    if kind == "cu8":
        return ((np.fromfile(path, np.uint8).astype(np.float32) - 128) / 128).view(np.complex64)
    if kind == "ci8":
        return (np.fromfile(path, np.int8).astype(np.float32) / 128).view(np.complex64)
    return (np.fromfile(path, "<i2").astype(np.float32) / 32768).view(np.complex64)


@pytest.mark.skipif(not CAPTURES.exists(), reason="captures of other people are not part of the repository")
class TestRealCaptures:
    def test_lte_fdd(self):
        cells = lte_cells(real("lte_fdd_1860MHz", "cu8")[:76800], 1.92e6, 0.0, 1860e6)
        assert cells[0].cell_id == 86 and cells[0].duplex == "FDD" and abs(cells[0].offset_hz + 42e3) < 5e3
        assert {cell.cell_id for cell in cells} <= {86, 142}

    def test_lte_tdd(self):
        cells = lte_cells(real("lte_tdd_2565MHz", "cu8")[:76800], 1.92e6, 0.0, 2565e6)
        assert cells[0].cell_id == 29 and cells[0].duplex == "TDD" and abs(cells[0].offset_hz + 135e3) < 2e3
        assert {cell.cell_id for cell in cells} <= {27, 28, 29}

    def test_lte_20_mhz(self):
        cells = lte_cells(real("lte_1815", "ci8")[:768000], 19.2e6, 0.0, 1815.3e6)
        assert [cell.cell_id for cell in cells] == [301]

    def test_lte_5_mhz_inside_15_mhz(self):
        samples = real("lte_1871", "ci8")[:768000]
        cells = lte_cells(samples, 19.2e6, [-4.25e6, -0.05e6], 1871.75e6)
        found = {cell.cell_id: cell.offset_hz for cell in cells}
        assert found.keys() == {86, 271}
        assert abs(found[86] + 4.22e6) < 10e3 and abs(found[271] + 0.02e6) < 10e3

    def test_wifi_and_adsb_have_no_cell(self):
        for name, kind, rate, hz in (
            ("wifi_11a", "ci16", 20e6, 2412e6), ("wifi_11n", "ci16", 20e6, 2412e6), ("adsb", "cu8", 2e6, 1090e6)
        ):  # fmt: skip
            samples = real(name, kind)
            assert lte_cells(samples, rate, 0.0, hz) == []
            assert nr_cells(samples, rate, (-2.5e6, 2.5e6), hz) == []


def test_between_the_raster_points_beside_a_found_cell_is_no_other_cell():
    def cell(cell_id, offset_hz, statistic):
        return LteCell(cell_id, "FDD", "normal", offset_hz, 0.0, statistic)

    strong, same, ghost, next_carrier = (
        cell(1, 0.0, 90.0), cell(2, 800.0, 60.0), cell(3, 31e3, 30.0), cell(4, 300.4e3, 25.0)
    )  # fmt: skip
    assert on_the_raster([strong, same, ghost, next_carrier]) == [strong, same, next_carrier]
    alone = [cell(1, 0.0, 15.0), cell(3, 31e3, 14.0)]  # neither is found
    assert on_the_raster(alone) == alone

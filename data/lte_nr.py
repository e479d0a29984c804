"""Generate LTE and 5G NR downlink waveforms as the 3GPP documents describe them, 40 ms at a time.

    lte_waveform(LteConfig(bandwidth_hz=10e6, cell_id=7, allocation=...), rng) -> Waveform
    nr_waveform(NrConfig(bandwidth_hz=20e6, scs=30e3, allocation=...), rng)    -> Waveform

LTE follows TS 36.211 (frame structure types 1 and 2, normal prefix). NR follows TS 38.211, and TS 38.213 for the places
of SS/PBCH blocks. Synchronisation and reference signals are exact. Payloads (transport blocks, DCI, MIB) are random
bits. A resource grid is complex64 (OFDM symbols, subcarriers) with ascending frequency; a resource element at 0 dB has
amplitude 1. 40 ms are four radio frames of 10 ms.

Abbreviations are 3GPP's: RB, resource block of 12 subcarriers; scs, subcarrier spacing in Hz; CORESET, where control
channels (PDCCH) may be; CCE, control channel element, the unit that a PDCCH is made of; DM-RS, demodulation reference
signal. Needs numpy, torch and data/sequences.py.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from data.sequences import gold_qpsk, gold_sequence, lte_pss, lte_sss, nr_pss, nr_sss  # noqa: F401  callers' names

FRAME_MS = 40

LTE_RB = {1.4e6: 6, 3e6: 15, 5e6: 25, 10e6: 50, 15e6: 75, 20e6: 100}  # TS 36.104 table 5.6-1
LTE_FFT = {6: 128, 15: 256, 25: 512, 50: 1024, 75: 2048, 100: 2048}
NR_RB = {  # TS 38.104 table 5.3.2-1
    15e3: {5e6: 25, 10e6: 52, 15e6: 79, 20e6: 106, 25e6: 133, 30e6: 160, 40e6: 216, 50e6: 270},
    30e3: {5e6: 11, 10e6: 24, 15e6: 38, 20e6: 51, 25e6: 65, 30e6: 78, 40e6: 106, 50e6: 133},
}
# TS 36.211 table 4.2-2: downlink (D), special (S) and uplink (U) subframes.
LTE_TDD = ("DSUUUDSUUU", "DSUUDDSUUD", "DSUDDDSUDD", "DSUUUDDDDD", "DSUUDDDDDD", "DSUDDDDDDD", "DSUUUDSUUD")
# First symbols of the candidate SS/PBCH blocks in a half frame, TS 38.213 clause 4.1, carriers above 3 GHz.
SSB_SYMBOLS = {
    "A": [base + 14 * n for n in range(4) for base in (2, 8)],
    "B": [base + 28 * n for n in range(2) for base in (4, 8, 16, 20)],
    "C": [base + 14 * n for n in range(4) for base in (2, 8)],
}


def standard_channels(classes, column_hz):
    """LTE's channel bandwidths and NR's of NR_RB, in columns of a spectrogram, for data.bands.

    Args: classes, names with "LTE" and "NR" among them; column_hz, width of a column in Hz.
    Returns: [(class number, channel width, occupied width)].
    """
    lte = [("LTE", width, 12 * blocks * 15e3 + 15e3) for width, blocks in LTE_RB.items()]  # and DC, unused
    nr = [("NR", width, 12 * blocks * scs) for scs, widths in NR_RB.items() for width, blocks in widths.items()]
    return [(classes.index(name), width / column_hz, used / column_hz) for name, width, used in lte + nr]


@dataclass
class Waveform:
    """40 ms of one carrier at its own sample rate.

    A resource element of amplitude 1 becomes a tone of amplitude 1 in `samples`.
    """

    samples: np.ndarray  # complex64 (round(sample_rate * 0.04),)
    sample_rate: float  # Hz
    active_share: float  # share of the OFDM symbols in which anything is sent, 0 to 1
    occupied_hz: float  # N_RB * 12 * subcarrier spacing
    grid: np.ndarray = field(repr=False)  # complex64 (OFDM symbols, subcarriers)


def random_qam(rng, order, shape):
    """Draw random square-QAM symbols of mean power 1, complex64 of the given shape.

    Args: order, 4, 16, 64 or 256, or an array of these that broadcasts against shape.
    """
    levels = np.sqrt(np.asarray(order, np.float32))
    draw = np.floor(rng.random((2, *shape), np.float32) * levels)
    iq = (2 * draw - levels + 1) / np.sqrt(2 * (levels**2 - 1) / 3)
    return iq[0] + 1j * iq[1]


# ---- OFDM -----------------------------------------------------------------------------------------------------------


def prefix_lengths(n_fft, scs):
    """Cyclic prefix in samples of each symbol within half a millisecond: int (7,) at 15 kHz, (14,) at 30 kHz."""
    prefix = np.full(round(7 * scs / 15e3), 144 * n_fft // 2048)
    prefix[0] += round(16 * n_fft * scs / 30.72e6)
    return prefix


def ofdm_modulate(grid, n_fft, scs, skip_dc, window=0):
    """OFDM with normal prefix. TS 36.211 clause 6.12, TS 38.211 clause 5.3.1.

    Args: grid, complex (symbols, subcarriers), whole half milliseconds; skip_dc, True for LTE, whose DC subcarrier is
    unused; window, samples over which a symbol fades into the next (raised cosine). The waveform repeats, so the first
    symbol follows the last.
    Returns: complex64 (samples,) at n_fft * scs samples a second.
    """
    n_sc, half = grid.shape[1], grid.shape[1] // 2
    # Negative frequencies lie in the upper half of the transform: (symbols, n_sc) -> (symbols, n_fft).
    bins = np.zeros((len(grid), n_fft), np.complex64)
    bins[:, -half:] = grid[:, :half]
    bins[:, skip_dc : skip_dc + n_sc - half] = grid[:, half:]
    symbols = torch.fft.ifft(torch.from_numpy(bins), norm="forward").numpy()
    prefix = prefix_lengths(n_fft, scs)
    symbols = symbols.reshape(-1, len(prefix), n_fft)  # (half milliseconds, symbols, samples)
    # Each symbol begins with a copy of its end.
    starts = np.concatenate([[0], np.cumsum(prefix + n_fft)])
    out = np.empty((len(symbols), starts[-1]), np.complex64)
    for i, cp in enumerate(prefix):
        out[:, starts[i] : starts[i] + cp] = symbols[:, i, n_fft - cp :]
        out[:, starts[i] + cp : starts[i + 1]] = symbols[:, i]
    if window:
        rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(window) + 0.5) / window)).astype(np.float32)
        for i in range(len(prefix)):
            before = symbols[:, i - 1, :window]  # the previous symbol runs on for `window` samples
            if i == 0:
                before = np.roll(before, 1, 0)
            head = slice(starts[i], starts[i] + window)
            out[:, head] = out[:, head] * rise + before * rise[::-1]
    return out.ravel()  # (half milliseconds, samples) -> (samples,)


def _waveform(grid, n_fft, scs, skip_dc, window):
    energy = (np.abs(grid) > 0).any(1)
    return Waveform(
        samples=ofdm_modulate(grid, n_fft, scs, skip_dc, window),
        sample_rate=n_fft * scs,
        active_share=float(energy.mean()),
        occupied_hz=grid.shape[1] * scs,
        grid=grid,
    )


# ---- LTE ------------------------------------------------------------------------------------------------------------


@dataclass
class LteConfig:
    """Settings of one LTE carrier."""

    bandwidth_hz: float
    cell_id: int  # 0 to 503
    allocation: np.ndarray  # float32 (40, N_RB), amplitude of the PDSCH in each subframe, 0 where nothing is scheduled
    order: int | np.ndarray = 4  # QAM order of the PDSCH, or one for each subframe (40, 1, 1)
    ports: int = 1  # antenna ports with cell-specific reference signals: 1, 2 or 4
    cfi: int = 2  # symbols of the control region; special and MBSFN subframes have two at most. TS 36.211 table 6.7-1
    control_load: float = 0.5  # share of the control region's element groups in use, 0 to 1
    tdd: int | None = None  # uplink-downlink configuration 0..6, None for FDD
    dwpts: int = 10  # downlink symbols of a special subframe
    mbsfn: tuple = ()  # subframes (of 10) that send nothing after the control region
    window: int = 0  # samples of overlap between symbols, see `ofdm_modulate`
    subframe_offset: int = 0  # number of the first subframe within its radio frame


def _port_gains(rng, ports, n_sc):
    """Draw the channel of each antenna port: complex64 (ports, n_sc), with random phase, level and a short delay."""
    if ports == 1:
        return np.ones((1, n_sc), np.complex64)
    gain = rng.normal(size=(ports, 2)) @ [1, 1j]
    delay = rng.uniform(0, 1e-6, (ports, 1))
    gain = gain[:, None] * np.exp(-2j * np.pi * delay * 15e3 * np.arange(n_sc))
    return (gain / np.sqrt(np.mean(np.abs(gain) ** 2))).astype(np.complex64)


def lte_reference_signals(cell_id, n_rb, subframes, ports):
    """Cell-specific reference signals, TS 36.211 clause 6.10.1.2.

    Args: subframes, int (n,), numbers 0 to 9 within the radio frame.
    Yields: (port, symbol within the subframe, subcarriers (2 N_RB,), values complex64 (n, 2 N_RB)).
    """
    for port in range(ports):
        for slot in (0, 1):
            for symbol in (0, 4) if port < 2 else (1,):
                number = 2 * np.asarray(subframes) + slot
                if port < 2:
                    v = 3 * ((port + (symbol > 0)) % 2)
                else:
                    v = 3 * slot + 3 * (port - 2)
                c_init = 1024 * (7 * (number + 1) + symbol + 1) * (2 * cell_id + 1) + 2 * cell_id + 1
                values = gold_qpsk(c_init, 220)[:, 110 - n_rb : 110 + n_rb]
                yield port, 7 * slot + symbol, 6 * np.arange(2 * n_rb) + (v + cell_id) % 6, values


def lte_grid(config, rng):
    """Resource grid of 40 subframes, complex64 (560, 12 N_RB). Needs an LteConfig and a numpy Generator."""
    n_rb = LTE_RB[config.bandwidth_hz]
    n_sc, centre = 12 * n_rb, 6 * n_rb
    number = (np.arange(FRAME_MS) + config.subframe_offset) % 10
    kind = np.array(list("D" * 10 if config.tdd is None else LTE_TDD[config.tdd]))[number]
    grid = np.zeros((FRAME_MS, 14, n_sc), np.complex64)
    free = np.ones(grid.shape, bool)  # resource elements that data may use
    gains = _port_gains(rng, config.ports, n_sc)

    def transmit(order, shape):
        """Random QAM symbols (..., n_sc) as they arrive from the antenna ports; transmit diversity uses two of them."""
        streams = [random_qam(rng, order, shape) * gains[p] for p in range(min(config.ports, 2))]
        return sum(streams) / np.float32(np.sqrt(len(streams)))

    # Reference signals of every antenna port.
    reference = list(lte_reference_signals(config.cell_id, n_rb, number, config.ports))
    for port, symbol, subcarriers, values in reference:
        grid[:, symbol, subcarriers] = values * gains[port, subcarriers]
        free[:, symbol, subcarriers] = False
    free[:, 0, (np.arange(n_sc) - config.cell_id) % 3 == 0] = False  # control never uses the places of ports 0 and 1

    # Synchronisation signals and PBCH, in the middle 72 subcarriers.
    middle, sync = slice(centre - 36, centre + 36), slice(centre - 31, centre + 31)
    pss_place = {0: 6, 5: 6} if config.tdd is None else {1: 2, 6: 2}  # subframe: symbol
    sss_symbol = 5 if config.tdd is None else 13
    for subframe in range(FRAME_MS):
        n = number[subframe]
        if n in pss_place:
            grid[subframe, pss_place[n], middle], free[subframe, pss_place[n], middle] = 0, False
            grid[subframe, pss_place[n], sync] = lte_pss(config.cell_id % 3) * gains[0, sync]
        if n in (0, 5):
            grid[subframe, sss_symbol, middle], free[subframe, sss_symbol, middle] = 0, False
            grid[subframe, sss_symbol, sync] = lte_sss(config.cell_id // 3, config.cell_id % 3, n) * gains[0, sync]
        if n == 0:
            pbch = transmit(4, (4, n_sc))[:, middle]
            four_ports = (np.arange(centre - 36, centre + 36) - config.cell_id) % 3 == 0
            pbch[:2, four_ports] = 0  # the PBCH leaves the places of four ports free, sent or not
            empty = grid[subframe, 7:11, middle] == 0
            grid[subframe, 7:11, middle] += pbch * empty
            free[subframe, 7:11, middle] = False

    # Control region: PCFICH and PHICH groups always, PDCCH groups by load. A group is four elements of one symbol.
    control = transmit(4, (FRAME_MS, config.cfi, n_sc))
    mbsfn = np.isin(number, config.mbsfn) & (kind == "D")
    cfi = np.where((kind == "S") | mbsfn, min(config.cfi, 2), config.cfi)  # (40,)
    for symbol in range(config.cfi):
        open_ = np.flatnonzero(free[:, symbol].any(0))
        groups = len(open_) // 4
        busy = rng.random((FRAME_MS, groups)) < config.control_load
        if symbol == 0:
            busy[:, :: max(1, groups // 4)] = True
        cells = np.repeat(busy, 4, 1) & (symbol < cfi)[:, None]
        grid[:, symbol, open_[: 4 * groups]] += control[:, symbol, open_[: 4 * groups]] * cells
        free[symbol < cfi, symbol] = False

    # Data, in what is left.
    amplitude = np.repeat(config.allocation, 12, 1)[:, None, :] * free  # (40, N_RB) -> (40, 14, n_sc)
    grid += transmit(config.order, grid.shape) * amplitude

    # What the cell does not send: MBSFN subframes after control, uplink, the guard period of special subframes.
    grid[mbsfn[:, None] & (np.arange(14) >= cfi[:, None])] = 0
    grid[kind == "U"] = 0
    grid[kind == "S", config.dwpts :] = 0
    return grid.reshape(14 * FRAME_MS, n_sc)


def lte_waveform(config, rng):
    """Waveform of an LteConfig. Payload and channels of the antenna ports are drawn from rng, a numpy Generator."""
    return _waveform(lte_grid(config, rng), LTE_FFT[LTE_RB[config.bandwidth_hz]], 15e3, True, config.window)


# ---- NR -------------------------------------------------------------------------------------------------------------


@dataclass
class NrConfig:
    """Settings of one NR carrier. Its 40 ms have 40 slots at 15 kHz and 80 at 30 kHz."""

    bandwidth_hz: float
    scs: float  # subcarrier spacing in Hz, 15e3 or 30e3
    cell_id: int  # 0 to 1007
    allocation: np.ndarray  # float32 (slots, N_RB), amplitude of the PDSCH, 0 where nothing is scheduled
    order: int | np.ndarray = 4  # QAM order of the PDSCH, or one for each slot (slots, 1, 1)
    ssb_case: str = "A"  # a key of SSB_SYMBOLS
    ssb_blocks: tuple = (1, 1, 1, 1)  # 1 for each candidate SS/PBCH block that is sent, else 0
    ssb_period_ms: int = 20
    ssb_start_ms: int = 0  # start of the first half frame with blocks
    ssb_subcarrier: int | None = None  # lowest subcarrier of the block, None for the middle of the carrier
    ssb_amplitude: float = 1.0
    coreset_symbols: int = 2  # symbols of the PDCCH, from the start of the slot
    control: np.ndarray | None = None  # bool (slots, N_RB // 3): bundles of 3 RBs with PDCCH
    pdsch_symbols: tuple = (0, 14)  # first symbol of a slot with PDSCH, and number of symbols
    dmrs_symbols: tuple = (2,)  # symbols of a slot with DM-RS
    dmrs_boost: float = 1.0  # amplitude of DM-RS relative to data
    dmrs_only: bool = True  # the other subcarriers of a DM-RS symbol stay empty ("two CDM groups without data")
    csi_rs_slots: np.ndarray | None = None  # bool (slots,): tracking reference signal in symbols 4 and 8
    downlink_symbols: np.ndarray | None = None  # int (slots,), symbols before the TDD guard period, None for FDD
    window: int = 0  # samples of overlap between symbols, see `ofdm_modulate`


def nr_fft_size(n_rb):
    """Smallest power of two, 128 or more, of which the carrier takes 85% at most."""
    return max(128, 2 ** int(np.ceil(np.log2(12 * n_rb / 0.85))))


def ss_pbch_block(cell_id, index, rng):
    """One SS/PBCH block with random payload, complex64 (4 symbols, 240 subcarriers). TS 38.211 clause 7.4.3.1."""
    block = np.zeros((4, 240), np.complex64)
    block[0, 56:183] = nr_pss(cell_id % 3)
    pbch = np.zeros((4, 240), bool)
    pbch[[1, 3]] = True
    pbch[2, :48] = pbch[2, 192:] = True
    block[pbch] = random_qam(rng, 4, (int(pbch.sum()),))
    dmrs = pbch & (np.arange(240) % 4 == cell_id % 4)
    c_init = 2**11 * (index + 1) * (cell_id // 4 + 1) + 2**6 * (index + 1) + cell_id % 4
    block[dmrs] = gold_qpsk(c_init, 144)[0]
    block[2, 56:183] = nr_sss(cell_id // 3, cell_id % 3)
    return block


def pdcch_first_cce(n_cce, slots, level, rnti=1):
    """First CCE of the PDCCH in each slot of a radio frame, int (slots,). TS 38.213 clause 10.1.

    UE-specific search space in CORESET 0, candidate 0, no carrier indicator: Y(-1) = RNTI,
    Y(n) = 39827 Y(n-1) mod 65537, first CCE = L (Y(n) mod floor(N_CCE / L)).

    Args: n_cce, CCEs of the CORESET; slots, in 10 ms; level, aggregation level L in CCEs; rnti, 1 to 65519.
    """
    y, first = rnti, []
    for _ in range(slots):
        y = 39827 * y % 65537
        first.append(level * (y % (n_cce // level)))
    return np.array(first)


def pdcch_bundles(n_rb, slots, level=8):
    """Which bundles of 3 RBs hold the PDCCH in each slot of a radio frame.

    A CORESET of two symbols over the whole carrier has one bundle for each CCE. Its interleaver has two rows and no
    shift, TS 38.211 clause 7.3.2.2.

    Args: n_rb, resource blocks of the carrier, 6 or more; slots, in 10 ms; level, highest aggregation level in CCEs.
    Returns: bool (slots, N_RB // 3).
    """
    n_cce = 2 * (n_rb // 6)
    level = min(level, 2 ** int(np.log2(n_cce)))
    cce = pdcch_first_cce(n_cce, slots, level)[:, None] + np.arange(level)  # (slots, level)
    bundles = np.zeros((slots, n_rb // 3), bool)
    np.put_along_axis(bundles, cce % 2 * (n_cce // 2) + cce // 2, True, 1)
    return bundles


def nr_grid(config, rng):
    """Resource grid of 40 ms, complex64 (560 or 1120, 12 N_RB)."""
    n_rb = NR_RB[config.scs][config.bandwidth_hz]
    n_sc, per_ms = 12 * n_rb, round(config.scs / 15e3)
    slots = FRAME_MS * per_ms
    slot = np.arange(slots) % (10 * per_ms)  # number within the radio frame
    grid = np.zeros((slots, 14, n_sc), np.complex64)

    # PDSCH, and its DM-RS of configuration type 1, port 1000. TS 38.211 clause 7.4.1.1
    first, length = config.pdsch_symbols
    span = np.zeros((14, 1), bool)
    span[first : first + length] = True
    amplitude = np.repeat(config.allocation, 12, 1)[:, None, :] * span  # (slots, N_RB) -> (slots, 14, n_sc)
    grid += random_qam(rng, config.order, grid.shape) * amplitude
    comb = np.arange(n_sc) % 2 == 0
    for symbol in config.dmrs_symbols:
        c_init = (2**17 * (14 * slot + symbol + 1) * (2 * config.cell_id + 1) + 2 * config.cell_id) % 2**31
        reference = gold_qpsk(c_init, n_sc // 2) * np.float32(config.dmrs_boost)
        grid[:, symbol, comb] = reference * amplitude[:, symbol, comb]
        if config.dmrs_only:
            grid[:, symbol, ~comb] = 0

    # PDCCH: bundles of 3 RBs over all symbols of the CORESET. Its DM-RS are QPSK, too, and drawn like the rest.
    for symbol in range(config.coreset_symbols if config.control is not None else 0):
        cells = np.repeat(config.control, 36, 1)  # (slots, subcarriers)
        grid[:, symbol, : cells.shape[1]][cells] = random_qam(rng, 4, (int(cells.sum()),))

    # Tracking reference signal: CSI-RS on every fourth subcarrier. TS 38.214 clause 5.1.6.1.1
    if config.csi_rs_slots is not None:
        comb = np.arange(config.cell_id % 4, n_sc, 4)
        for symbol in (4, 8):
            c_init = (2**10 * (14 * slot + symbol + 1) * (2 * config.cell_id + 1) + config.cell_id) % 2**31
            values = gold_qpsk(c_init, len(comb))
            grid[np.ix_(config.csi_rs_slots, [symbol], comb)] = values[config.csi_rs_slots][:, None]

    # TDD: nothing is sent in guard and uplink symbols.
    downlink = np.ones((slots, 14), bool)
    if config.downlink_symbols is not None:
        downlink = np.arange(14) < config.downlink_symbols[:, None]
        grid[~downlink] = 0
    grid, downlink = grid.reshape(14 * slots, n_sc), downlink.ravel()  # (slots, 14, n_sc) -> (symbols, n_sc)

    # SS/PBCH blocks, which are 20 RBs wide.
    if n_rb >= 20:
        start = config.ssb_subcarrier if config.ssb_subcarrier is not None else n_sc // 2 - 120
        low, high = start // 12 * 12, -(-(start + 240) // 12) * 12
        for ms in range(config.ssb_start_ms, FRAME_MS, config.ssb_period_ms):
            for index, symbol in enumerate(SSB_SYMBOLS[config.ssb_case][: len(config.ssb_blocks)]):
                rows = slice(14 * per_ms * ms + symbol, 14 * per_ms * ms + symbol + 4)
                if config.ssb_blocks[index] and downlink[rows].all():  # not in uplink symbols. TS 38.213 clause 11.1
                    grid[rows, low:high] = 0  # the PDSCH leaves out the block's resource blocks
                    block = ss_pbch_block(config.cell_id, index, rng)
                    grid[rows, start : start + 240] = block * np.float32(config.ssb_amplitude)
    return grid


def nr_waveform(config, rng):
    """Waveform of an NrConfig. Its payload is drawn from rng, a numpy Generator."""
    n_fft = nr_fft_size(NR_RB[config.scs][config.bandwidth_hz])
    return _waveform(nr_grid(config, rng), n_fft, config.scs, False, config.window)


def describe(technology, config, center, snr_db):
    """A carrier in words and numbers, as data/frames.py lists them: plain values that can be written as JSON."""
    about = {
        "technology": technology,
        "center_hz": round(float(center), 1),
        "bandwidth_hz": config.bandwidth_hz,
        "snr_db": round(float(snr_db), 2),
        "cell_id": config.cell_id,
        "load": round(float((config.allocation > 0).mean()), 3),
    }
    if technology == "NR":
        about["scs_hz"] = config.scs
    elif config.tdd is not None:
        about["tdd"] = config.tdd
    return about

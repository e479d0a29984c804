"""Synchronisation and pseudo-random sequences of LTE and 5G NR, after TS 36.211 and TS 38.211. Needs numpy alone."""

from functools import cache

import numpy as np


def gold_sequence(c_init, length):
    """Pseudo-random bits c(n), uint8 (n, length), for c_init, int or int array (n,).

    TS 36.211 clause 7.2, TS 38.211 clause 5.2.1; the first 1600 bits (N_C there) are dropped.
    """
    c_init = np.atleast_1d(np.asarray(c_init, np.int64))
    total = 1600 + length + 31
    x1, x2 = np.zeros((1, total + 28), np.uint8), np.zeros((len(c_init), total + 28), np.uint8)
    x1[:, 0] = 1
    x2[:, :31] = (c_init[:, None] >> np.arange(31)) & 1
    for i in range(0, total - 31, 28):  # the longest feedback tap is 3, so 28 new bits depend on known bits only
        x1[:, i + 31 : i + 59] = x1[:, i + 3 : i + 31] ^ x1[:, i : i + 28]
        x2[:, i + 31 : i + 59] = (
            x2[:, i + 3 : i + 31] ^ x2[:, i + 2 : i + 30] ^ x2[:, i + 1 : i + 29] ^ x2[:, i : i + 28]
        )
    return x1[:, 1600 : 1600 + length] ^ x2[:, 1600 : 1600 + length]


def gold_qpsk(c_init, length):
    """QPSK reference symbols of unit power from a Gold sequence: complex64 (n, length)."""
    bits = gold_sequence(c_init, 2 * length).astype(np.float32)
    return ((1 - 2 * bits[:, ::2]) + 1j * (1 - 2 * bits[:, 1::2])).astype(np.complex64) / np.float32(np.sqrt(2))


@cache
def m_sequence(taps, start, length):
    """Binary sequence x(i + n) = sum of x(i + t), t in taps, modulo 2; start (tuple) = x(0) .. x(n - 1)."""
    x = list(start)
    for i in range(length - len(start)):
        x.append(sum(x[i + t] for t in taps) % 2)
    x = np.array(x)
    x.flags.writeable = False  # all callers share it
    return x


def lte_pss(n_id_2):
    """Primary synchronisation signal, complex (62,): Zadoff-Chu of root 25, 29, 34. TS 36.211 clause 6.11.1."""
    root, n = (25, 29, 34)[n_id_2], np.arange(62)
    n = n + (n > 30)  # the element on the DC subcarrier is left out
    return np.exp(-1j * np.pi * root * n * (n + 1) / 63)


def lte_sss(n_id_1, n_id_2, subframe):
    """Secondary synchronisation signal, real (62,), for subframe 0 or 5. TS 36.211 clause 6.11.2.

    n_id_1 may be an array: (..., 62) for (...).
    """
    n_id_1 = np.asarray(n_id_1)[..., None]
    q = n_id_1 // 30
    q = (n_id_1 + q * (q + 1) // 2) // 30
    m = n_id_1 + q * (q + 1) // 2
    m0, m1 = m % 31, (m % 31 + m // 31 + 1) % 31
    start, n = (0, 0, 0, 0, 1), np.arange(31)
    s, c, z = (1 - 2 * m_sequence(taps, start, 31) for taps in ((0, 2), (0, 3), (0, 1, 2, 4)))
    first, second = (m0, m1) if subframe == 0 else (m1, m0)
    even = s[(n + first) % 31] * c[(n + n_id_2) % 31]  # (..., 31)
    odd = s[(n + second) % 31] * c[(n + n_id_2 + 3) % 31] * z[(n + first % 8) % 31]
    return np.stack([even, odd], -1).reshape(*even.shape[:-1], 62).astype(float)


def nr_pss(n_id_2):
    """Primary synchronisation signal, real (127,). TS 38.211 clause 7.4.2.2."""
    x = m_sequence((0, 4), (0, 1, 1, 0, 1, 1, 1), 127)
    return 1.0 - 2 * x[(np.arange(127) + 43 * n_id_2) % 127]


def nr_sss(n_id_1, n_id_2):
    """Secondary synchronisation signal, real (127,). TS 38.211 clause 7.4.2.3."""
    n, start = np.arange(127), (1, 0, 0, 0, 0, 0, 0)
    x0, x1 = m_sequence((0, 4), start, 127), m_sequence((0, 1), start, 127)
    m0, m1 = 15 * (n_id_1 // 112) + 5 * n_id_2, n_id_1 % 112
    return (1.0 - 2 * x0[(n + m0) % 127]) * (1 - 2 * x1[(n + m1) % 127])

"""Do two layer profiles agree beyond their trends in depth? Pearson's r of what a trend leaves.

Almost any two profiles that drift with depth correlate, so r is given three times:

    plain      of the profiles as they are
    linear     after the least-squares line in relative depth is removed from each
    quadratic  after the least-squares parabola is removed

    p          modified t-test (Clifford, Richardson and Hemon 1989; Dutilleul 1993): if the
               profiles are unrelated, the variance of r is close to
                   V = tr(M A M B) / (tr(M A) tr(M B))
               A and B the autocovariance matrices of the two profiles, M the projection that
               removes the trend, so that its degrees of freedom are taken off. r is compared with
               t of 1 / V - 1 degrees of freedom, at most layers - degree - 2, those of independent
               layers. Entry (i, j) of A is the mean of x(k) x(k + |i - j|) over the k there are, of
               the detrended profile x, up to lag layers / 3, and 0 beyond.
    shift_p    share of the circular shifts of one detrended profile along depth, the unshifted one
               among them, that correlate as strongly, the trend removed again from each. L layers
               have L shifts: fewer than 21 layers cannot reach 0.05

Only p of the quadratic row is near its level where both profiles carry unrelated monotone trends
(benchmarks/profile_calibration.py); the other rows show what the trends contribute.

Beside them, of the plain r, what other readings of the same two profiles give (`compare_nulls`):

    independent_p  t-test as if all layers were independent: what a published p usually is
    effective_n    of how many independent layers r is worth: dof + 2 of the plain row
    phase_p        share of phase-randomised profiles that correlate as strongly (Theiler et al.
                   1992): same spectrum, hence same autocorrelation, no common depth
    differences_r  of what changes from one layer to the next, with its modified t-test
    left_out_low, left_out_high  smallest and largest r when any one layer is left out
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.stats.moments import divide

TRENDS = {"plain": 0, "linear": 1, "quadratic": 2}  # degree of the polynomial that is removed
N_PHASES = 9999  # phase-randomised profiles; p is then known to +-0.005
ROUNDING = 1e-9  # what is left of a profile that is nothing but trend, of its size


class Agreement(NamedTuple):
    """Pearson's r of two detrended profiles, degrees of freedom, p of the t-test and of shifts."""

    r: float
    dof: float
    p: float
    shift_p: float


UNDEFINED = Agreement(np.nan, np.nan, np.nan, np.nan)


class Nulls(NamedTuple):
    """What other nulls say about the plain r of two profiles, see above."""

    independent_p: float
    effective_n: float
    phase_p: float
    differences_r: float
    differences_p: float
    left_out_low: float
    left_out_high: float


def align_profiles(left, right):
    """Both at the relative depths of the shallower: layer i of L lies at i / (L - 1); [..., layer].

    The deeper one is interpolated linearly.
    """
    sizes = left.shape[-1], right.shape[-1]
    depth = np.linspace(0, 1, min(sizes))
    return tuple(
        x if n == len(depth) else x @ _interpolation(n, depth)
        for x, n in zip((left, right), sizes, strict=True)
    )


def _interpolation(n, depth):
    """[n, point]: the weight of each of n layers in the value at each relative depth."""
    grid = np.linspace(0, 1, n)
    return np.stack([np.interp(depth, grid, one) for one in np.eye(n)])


def average_ranks(values):
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def trend_remover(n, degree):
    """The projection [n, n] onto what polynomials of this degree in relative depth leave."""
    basis, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, n), degree + 1))
    return np.eye(n) - basis @ basis.T


def scale_profile(values):
    """Values divided by the largest of them, so that their squares do not vanish."""
    return values / (np.abs(values).max() or 1.0)


def correlate_detrended(left, right, degree):
    """Agreement of two aligned profiles [layer] after a polynomial of this degree is removed.

    NaN throughout where one profile is nothing but trend, or there are fewer than degree + 3
    layers.
    """
    n = len(left)
    if n < degree + 3:
        return UNDEFINED
    remover = trend_remover(n, degree)
    scaled = [scale_profile(np.asarray(x, dtype=np.float64)) for x in (left, right)]
    a, b = (x @ remover for x in scaled)
    for rest, whole in ((a, scaled[0]), (b, scaled[1])):
        if np.linalg.norm(rest) <= ROUNDING * np.linalg.norm(whole):
            return UNDEFINED
    r = np.clip(correlate_rows(a, b), -1.0, 1.0)
    dof = effective_dof(a, b, remover)
    p = correlation_p(r, dof)
    shifted = np.stack([np.roll(b, k) for k in range(n)]) @ remover
    return Agreement(float(r), float(dof), float(p), share_reached(a, shifted))


def correlation_p(r, dof):
    """Two-sided p of Pearson's r by t of so many degrees of freedom."""
    r = np.float64(r)
    with np.errstate(divide="ignore"):  # |r| = 1: p = 0
        return 2 * stdtr(dof, -np.abs(r) * np.sqrt(dof / (1 - r * r)))


def compare_nulls(left, right):
    """The Nulls of two aligned profiles [layer]; NaN throughout where the plain r is undefined."""
    plain = correlate_detrended(left, right, TRENDS["plain"])
    if np.isnan(plain.r):
        return Nulls(*[np.nan] * len(Nulls._fields))
    changes = correlate_detrended(np.diff(left), np.diff(right), TRENDS["plain"])
    kept = ~np.eye(len(left), dtype=bool)
    without = [pearson_r(left[rows], right[rows]) for rows in kept]
    return Nulls(
        independent_p=float(correlation_p(plain.r, len(left) - 2)),
        effective_n=plain.dof + 2,
        phase_p=phase_share(scale_profile(left), scale_profile(right)),
        differences_r=changes.r,
        differences_p=changes.p,
        left_out_low=float(np.min(without)),
        left_out_high=float(np.max(without)),
    )


def phase_share(left, right, n_draws=N_PHASES, seed=DEFAULT_SEED):
    """Share of phase-randomised profiles, the observed one among them, that correlate as strongly.

    With A and B the Fourier transforms of the two, r is the sum over frequencies of |A| |B| cos of
    their phase difference, over its largest value where all are 0: only these are drawn, uniform,
    and 0 or pi at the highest frequency of an even number of layers.
    """
    n = len(left)
    product = (np.fft.rfft(left) * np.conj(np.fft.rfft(right)))[1:]
    strength = 2 * np.abs(product)
    random = np.random.default_rng(seed)
    cosines = np.cos(random.uniform(0, 2 * np.pi, (n_draws, len(product))))
    if n % 2 == 0:
        strength[-1] /= 2
        cosines[:, -1] = random.choice([-1.0, 1.0], n_draws)
    observed = abs((strength * np.cos(np.angle(product))).sum())
    reached = np.abs(cosines @ strength) >= observed * (1 - 1e-9)
    return float((reached.sum() + 1) / (n_draws + 1))


def correlate_rows(a, b):
    """Cosine of vectors along the last axis: Pearson's r where their means are removed."""
    return divide((a * b).sum(axis=-1), np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1)))


def pearson_r(left, right):
    """Pearson's r of two vectors; NaN where one is constant."""
    a, b = (scale_profile(x) for x in (left, right))
    return float(correlate_rows(a - a.mean(), b - b.mean()))


def share_reached(a, shifted):
    """Share of rows of `shifted`, row 0 the observed one, that correlate with a as strongly."""
    r = np.abs(correlate_rows(a, shifted))
    return float((r >= r[0] * (1 - 1e-9)).mean())


def effective_dof(a, b, remover):
    """Degrees of freedom 1 / V - 1 of r of two detrended profiles, see above; 1 at least."""
    left, right = (remover @ autocovariances(x) for x in (a, b))
    most = np.trace(remover) - 1  # layers - degree - 2
    totals = np.trace(left), np.trace(right)
    if min(totals) <= 0:
        return 1.0
    variance = np.trace(left @ right) / (totals[0] * totals[1])
    return float(np.clip(1 / variance - 1, 1.0, most)) if variance > 0 else most


def autocovariances(values):
    """The matrix [layer, layer] of a detrended profile's autocovariances, 0 beyond a third."""
    n = len(values)
    lags = [values[: n - k] @ values[k:] / (n - k) for k in range(max(1, n // 3) + 1)]
    by_lag = np.zeros(n)
    by_lag[: len(lags)] = lags
    return by_lag[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))]

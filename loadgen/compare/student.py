"""Student's t distribution for whole degrees of freedom.

Owns the quantile that a confidence interval of few repetitions needs, so that nobody has to install SciPy for it.
"""

from __future__ import annotations

from math import atan, cos, inf, pi, sin, sqrt

PRECISION = 1e-12


def t_quantile(probability: float, degrees: int) -> float:
    """The t below which a share of `probability` lies. Raises ValueError outside of (0, 1) and below one degree."""
    if not 0.0 < probability < 1.0:
        raise ValueError(f"a probability between 0 and 1 has a quantile, {probability:g} has none")
    if probability < 0.5:
        return -t_quantile(1.0 - probability, degrees)
    within = 2.0 * probability - 1.0
    low, high = 0.0, 1.0
    while central_share(high, degrees) < within and high < inf:
        high *= 2.0
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if central_share(middle, degrees) < within:
            low = middle
        else:
            high = middle
    return high


def central_share(t: float, degrees: int) -> float:
    """The share between -t and t, for t >= 0: Abramowitz and Stegun, 26.7.3 (odd degrees) and 26.7.4 (even ones)."""
    if degrees < 1:
        raise ValueError(f"the t distribution needs at least one degree of freedom, not {degrees}")
    angle = atan(t / sqrt(degrees))
    odd = degrees % 2
    # Odd: sin(cos + 2/3 cos^3 + 2·4/(3·5) cos^5 ...), even: sin(1 + 1/2 cos^2 + 1·3/(2·4) cos^4 ...).
    term = cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= cos(angle) ** 2 * (power - 1) / power
        total += term
    total *= sin(angle)
    return 2.0 / pi * (angle + total) if odd else total

"""The arithmetic by which the papers argue for their convolutions, as exact fractions.

"Rethinking": Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.
"Xception": Chollet, arXiv:1610.02357. "MobileNets": Howard et al., arXiv:1704.04861.
Every ratio assumes, as the papers do, stride 1, padding that keeps the size, and equal channel counts throughout.
"""

from dataclasses import dataclass
from fractions import Fraction

Window = tuple[int, int]


@dataclass(frozen=True)
class Factorization:
    """One window replaced by a stack of smaller ones that see the same pixels."""

    window: Window
    replacement: tuple[Window, ...]
    source: str

    def __post_init__(self) -> None:
        for axis in (0, 1):
            seen = 1 + sum(part[axis] - 1 for part in self.replacement)
            if seen != self.window[axis]:
                raise ValueError(f"expected a stack that sees {self.window}, got {seen} along axis {axis}")

    @property
    def cost_ratio(self) -> Fraction:
        """Multiply-adds of the replacement over those of the window."""
        return Fraction(sum(rows * columns for rows, columns in self.replacement), self.window[0] * self.window[1])

    @property
    def gain(self) -> Fraction:
        """How many times fewer multiply-adds: 25/18 for a 5x5 as two 3x3."""
        return 1 / self.cost_ratio

    @property
    def saved(self) -> Fraction:
        """Share of the multiply-adds (and weights) that is saved."""
        return 1 - self.cost_ratio

    def __str__(self) -> str:
        parts = " + ".join(f"{rows}x{columns}" for rows, columns in self.replacement)
        return f"{self.window[0]}x{self.window[1]} -> {parts}"


def stacked(n: int, part: int, source: str = "Rethinking, section 3.1") -> Factorization:
    """An n x n window as (n - 1) / (part - 1) windows of part x part (Rethinking, section 3.1).

    Raises ValueError where no such stack sees exactly n x n.
    """
    if part < 2 or n < part or (n - 1) % (part - 1):
        raise ValueError(f"expected n - 1 to be a multiple of part - 1 with 2 <= part <= n, got n={n}, part={part}")
    return Factorization((n, n), ((part, part),) * ((n - 1) // (part - 1)), source)


def asymmetric(n: int, source: str = "Rethinking, section 3.2") -> Factorization:
    """An n x n window as 1 x n followed by n x 1: costs 2 / n (Rethinking, section 3.2)."""
    if n < 2:
        raise ValueError(f"expected n >= 2, got {n}")
    return Factorization((n, n), ((1, n), (n, 1)), source)


def separable_cost_ratio(out_channels: int, window: int | Window) -> Fraction:
    """Depthwise separable over regular convolution: 1 / K + 1 / (R S) (MobileNets, section 3.1).

    K is `out_channels`, R x S the window; C R S + C K multiply-adds per output pixel instead of C K R S.
    """
    rows, columns = (window, window) if isinstance(window, int) else window
    if min(out_channels, rows, columns) < 1:
        raise ValueError(f"expected positive sizes, got out_channels={out_channels}, window={rows}x{columns}")
    return Fraction(1, out_channels) + Fraction(1, rows * columns)


def factorizations() -> list[Factorization]:
    """Those that the paper works out, with the sections that do."""
    return [
        stacked(5, 3),  # "28 % relative gain"
        stacked(7, 3, "Rethinking, section 6 (stem)"),
        stacked(3, 2, "Rethinking, section 3.2"),  # "11 %"
        asymmetric(3),  # "33 % cheaper"
        asymmetric(7, "Rethinking, sections 3.2 and 6 (n = 7 at 17x17)"),
    ]


# Output channels and window of separable layers in Xception's entry, middle and exit flow (Xception, figure 5).
SEPARABLE_EXAMPLES: tuple[tuple[int, int], ...] = ((128, 3), (728, 3), (2048, 3))

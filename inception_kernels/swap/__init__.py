"""Fused operators in a model that already exists: in place, reversible, trainable.

`plan(model)` says what would happen, `swap(model)` does it, `explain(model)` tells what ran, `unswap(model)` takes
everything out again.

How it works. `structure` and `trace` read what each module's own forward does (torch.fx, one module at a time),
`match` finds the runs of calls that one operator computes (convolution, batch norm, activation; by structure, never by
name), `probe` proves each kind on numbers in float64, `apply` reassigns the class of modules (`layers`), and `runtime`
decides at every call whether the fused operator does exactly what the modules would do now; where it does not, they
run, and `explain` says why.
"""

from .apply import SwapError, swap, swapped, unswap
from .explain import Explanation, LayerState, explain
from .plan import Plan, plan
from .records import LayerRecord
from .report import SwapReport
from .tune import TunedLayer
from .verify import OutputError, SwapVerificationError

__all__ = [
    "Explanation",
    "LayerRecord",
    "LayerState",
    "OutputError",
    "Plan",
    "SwapError",
    "SwapReport",
    "SwapVerificationError",
    "TunedLayer",
    "explain",
    "plan",
    "swap",
    "swapped",
    "unswap",
]

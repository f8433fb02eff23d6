"""Measure the operators and the networks against every implementation that is there; report it; render it.

The harness behind `python -m inception_kernels bench` and behind `benchmarks/`.
"""

from inception_kernels.bench.config import Config
from inception_kernels.bench.harness import run
from inception_kernels.bench.row import Environment, Row

__all__ = ["Config", "Environment", "Row", "run"]

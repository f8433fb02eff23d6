"""The machine's roofline, measured and not assumed: how fast a product runs, and how fast memory moves.

A layer's floor is the longer of two times: its multiply-adds at the product rate of its dtype, and its bytes (each
tensor once) at the copy bandwidth of a working set of that size. The roofline model is that of Williams, Waterman and
Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM 52(4), 2009.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# A product is best at different sizes on different machines: rows x inner x columns. The second one is the
# pointwise convolution of Xception's middle flow at batch 16.
_PRODUCTS = {
    "cpu": ((1024, 1024, 1024), (5776, 728, 728), (2048, 2048, 2048)),
    "cuda": ((4096, 4096, 4096), (92416, 728, 728), (8192, 8192, 8192)),
}
# Read + written, in bytes.
_COPIES = {
    "cpu": tuple(2**n for n in (20, 21, 23, 25, 27)),
    "cuda": tuple(2**n for n in (20, 22, 24, 26, 28, 30)),
}


@dataclass(frozen=True)
class Floor:
    """The least time a piece of work can take: `seconds`, and which of the two roofs sets it."""

    seconds: float
    bound: str  # "arithmetic" or "memory"


@dataclass(frozen=True)
class Roofline:
    """Measured: `product` in FLOP/s per dtype name, `copy` in bytes/s (read + written) per working set in bytes."""

    product: Mapping[str, float]
    copy: Mapping[int, float] = field(default_factory=dict)

    def bandwidth(self, working_set: float) -> float:
        """Bytes/s at a working set of so many bytes, interpolated between the measured sizes (log-linear)."""
        sizes = sorted(self.copy)
        if not sizes:
            raise ValueError("expected a roofline with at least one measured copy, got none: use roofline.measure()")
        if working_set <= sizes[0]:
            return self.copy[sizes[0]]
        for low, high in itertools.pairwise(sizes):
            if working_set <= high:
                share = math.log(working_set / low) / math.log(high / low)
                return self.copy[low] + share * (self.copy[high] - self.copy[low])
        return self.copy[sizes[-1]]

    def floor(self, macs: float, bytes_moved: float, dtype: str) -> Floor:
        """The floor of `macs` multiply-adds in `dtype` that move `bytes_moved` bytes.

        Raises:
            KeyError: the product was not measured in `dtype`.
        """
        if dtype not in self.product:
            raise KeyError(f"expected a dtype that was measured ({', '.join(self.product)}), got {dtype}")
        arithmetic = 2.0 * macs / self.product[dtype]
        memory = bytes_moved / self.bandwidth(bytes_moved) if bytes_moved else 0.0
        return Floor(arithmetic, "arithmetic") if arithmetic >= memory else Floor(memory, "memory")

    def network_floor(self, layers: Iterable[tuple[float, float]], dtype: str) -> Floor:
        """The sum of the floors of `(macs, bytes)` layers; bound by what bounds the larger part of that sum."""
        shares = {"arithmetic": 0.0, "memory": 0.0}
        for macs, bytes_moved in layers:
            part = self.floor(macs, bytes_moved, dtype)
            shares[part.bound] += part.seconds
        return Floor(sum(shares.values()), max(shares, key=lambda bound: shares[bound]))

    def best_of(self, other: Roofline) -> Roofline:
        """The higher of two measurements of one machine, rate by rate: what it can do when nobody disturbs it."""
        return Roofline(
            {
                key: max(self.product.get(key, 0.0), other.product.get(key, 0.0))
                for key in {**self.product, **other.product}
            },
            {size: max(self.copy.get(size, 0.0), other.copy.get(size, 0.0)) for size in {**self.copy, **other.copy}},
        )

    def to_dict(self) -> dict[str, Any]:
        return {"product": dict(self.product), "copy": {str(size): rate for size, rate in self.copy.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Roofline:
        return cls(dict(data["product"]), {int(size): rate for size, rate in data["copy"].items()})

    def summary(self) -> str:
        """One line: the product rate per dtype, and the bandwidth of the smallest and the largest working set."""
        products = ", ".join(f"{dtype} product {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in self.product.items())
        low, high = min(self.copy), max(self.copy)
        return (
            f"{products}; copy {self.copy[low] / 1e9:,.0f} GB/s at {_size(low)}, "
            f"{self.copy[high] / 1e9:,.0f} GB/s at {_size(high)} (read + written)"
        )


def measure(
    device: str | torch.device = "cpu", dtypes: Iterable[str] = ("float32", "bfloat16"), seconds: float = 0.25
) -> Roofline:
    """Probe the machine: the best of several products per dtype and copies of several sizes, `seconds` for each.

    A processor that multiplies 16 bits more slowly than float32, or a PyTorch that does, has float32's rate for them:
    widening a value costs next to nothing beside what is done with it.
    """
    kind = torch.device(device).type
    timer = _cuda_seconds if kind == "cuda" else _cpu_seconds
    with torch.inference_mode():
        product = {dtype: _product_rate(device, getattr(torch, dtype), timer, seconds) for dtype in dtypes}
        narrow = [dtype for dtype in product if getattr(torch, dtype).itemsize == 2]
        if kind == "cpu" and narrow:
            widened = product.get("float32") or _product_rate(device, torch.float32, timer, seconds)
            product.update({dtype: max(product[dtype], widened) for dtype in narrow})
        copy = {size: _copy_rate(device, size, timer, seconds) for size in _COPIES[kind]}
    return Roofline(product, copy)


Timer = Callable[[Callable[[], object], int], float]


def _product_rate(device: str | torch.device, dtype: torch.dtype, timer: Timer, seconds: float) -> float:
    best = 0.0
    hopeless: set[int] = set()
    for rows, inner, columns in _PRODUCTS[torch.device(device).type]:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        for number, call in enumerate(_products(a, b)):
            if number in hopeless:
                continue
            rate = _best_rate(call, timer, seconds / 3)
            best = max(best, 2.0 * rows * inner * columns * rate)
            # The larger ones would take PyTorch's bfloat16 without AVX-512 a minute and more.
            if rate * seconds < 0.25:
                hopeless.add(number)
    return best


def _products(a: torch.Tensor, b: torch.Tensor) -> list[Callable[[], object]]:
    """a b as a product of matrices and, on the CPU, as a pointwise convolution.

    PyTorch asks two libraries for them there, and which of them is the faster depends on the processor.
    """
    out = torch.empty(a.shape[0], b.shape[1], device=a.device, dtype=a.dtype)
    products: list[Callable[[], object]] = [lambda: torch.mm(a, b, out=out)]
    if a.device.type == "cpu":
        x = a.t()[None, :, :, None].to(memory_format=torch.channels_last)
        weight = b.t().contiguous()[:, :, None, None]
        products.append(lambda: torch.nn.functional.conv2d(x, weight))
    return products


def _copy_rate(device: str | torch.device, size: int, timer: Timer, seconds: float) -> float:
    source = torch.ones(size // 8, device=device)  # half of the bytes are read, half are written
    target = torch.empty_like(source)
    return size * _best_rate(lambda: target.copy_(source), timer, seconds / 3)


def _best_rate(call: Callable[[], object], timer: Timer, seconds: float) -> float:
    """Calls per second of the fastest block. The fastest, for a roof: whatever disturbs a probe only slows it."""
    better = min(timer(call, 1) for _ in range(2))
    if better > 8 * seconds:
        return 1.0 / better
    once = max(timer(call, 1), 1e-7)
    block = max(1, int(seconds / 8 / once))
    return 1.0 / min(timer(call, block) for _ in range(8))


def _cpu_seconds(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _cuda_seconds(call: Callable[[], object], count: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def _size(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"

"""The CUDA kernels, Triton's and the original, layer by layer in both networks, as `swap(tune=...)` measures them."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections import Counter
from typing import Any

import torch
from torch import nn

import inception_kernels as ik
from inception_kernels.models import load
from tools.gpu.options import Options, parse


def main(options: Options) -> int:
    begun = time.monotonic()
    layers: list[dict[str, Any]] = []
    for network, batch in _wanted(options):
        if time.monotonic() - begun > options.seconds:
            break
        found = _tune(network, batch, options)
        layers += [{"network": network, "batch": batch, **dataclasses.asdict(each)} for each in found]
        choices = Counter(each["choice"] for each in layers)
        summary = ", ".join(f"{count} {choice}" for choice, count in choices.items())
        options.write(f"{len(layers)} layers: {summary}", layers=[] if options.rehearse else layers)
    return 0 if layers else 1


def _wanted(options: Options) -> list[tuple[str, int]]:
    if options.rehearse:
        return [("xception", 1)]
    batches = (32,) if options.quick else (1, 32, 256)
    return list(itertools.product(("xception", "inception_v3"), batches))


def _tune(network: str, batch: int, options: Options) -> Any:
    size = 71 if options.rehearse else 299
    dtype = torch.float32 if options.rehearse else torch.bfloat16
    model = (_one_layer() if options.rehearse else _network(network)).to(options.device, dtype).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    x = torch.randn(batch, 3, size, size, device=options.device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return ik.swap(model, tune=x).tuning


def _network(name: str) -> nn.Module:
    return load(name, **({"aux_logits": False} if name == "inception_v3" else {}))


def _one_layer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())


if __name__ == "__main__":
    sys.exit(main(parse()))

"""Who is raced, by device."""

from __future__ import annotations

from inception_kernels.bench.config import Config
from inception_kernels.bench.contenders.base import Contender, Prepared, Unfit
from inception_kernels.bench.contenders.compiled import Compiled
from inception_kernels.bench.contenders.eager import CudaGraph, Eager
from inception_kernels.bench.contenders.onnx_runtime import OnnxRuntime
from inception_kernels.bench.contenders.openvino import OpenVino
from inception_kernels.bench.contenders.ours import Optimised, Ours

EAGER = "eager"


def contenders(config: Config) -> list[Contender]:
    """Eager PyTorch first, because the others' errors are judged by its error; ours last.

    Raises:
        ValueError: `config.backends` names one that this device does not have.
    """
    every: list[Contender] = [Eager(EAGER), Eager("channels_last", channels_last=True)]
    if config.device.startswith("cuda"):
        every += [
            CudaGraph(),
            Compiled("torch.compile", training=config.compile_training),
            Compiled("max_autotune", mode="max-autotune", training=config.compile_training),
            Ours("inception_kernels:cuda", backend="cuda"),
            Ours("inception_kernels:cuda_graph", backend="cuda", graph=True),
            Ours("inception_kernels:triton", backend="triton"),
        ]
    else:
        every += [
            Compiled("torch.compile", training=config.compile_training),
            OpenVino(),
            OnnxRuntime(),
            Ours(),
            Optimised(),
        ]
    if config.tune:
        every.append(Ours("inception_kernels:tuned", tune=True))
    if not config.backends:
        return every
    names = [each.name for each in every]
    unknown = [name for name in config.backends if name not in names]
    if unknown:
        raise ValueError(f"expected backends out of {', '.join(names)}, got {', '.join(unknown)}")
    return [each for each in every if each.name in config.backends or each.name == EAGER]


__all__ = ["EAGER", "Contender", "Prepared", "Unfit", "contenders"]

"""What a swapped layer's call on a GPU costs the host, measured without one.

    python -m tools.host_time

The operators with their CUDA bodies run on CPU tensors (tests/hosted_operators.py) and launch kernels that are not
executed. What is missing: the launches themselves and CUDA's allocator. Of the dense layers' gradients PyTorch computes
the convolution's, here on the CPU. Microseconds per layer, medians.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import hosted_operators

LAYERS = 40
CHANNELS = 16
LARGEST_CONTEXT = (90, 132)  # architecture and multiprocessors


def _network(operator: str) -> nn.Sequential:
    def convolution(window: tuple[int, int], groups: int = 1) -> nn.Conv2d:
        padding = window[0] // 2, window[1] // 2
        return nn.Conv2d(CHANNELS, CHANNELS, window, padding=padding, groups=groups, bias=False)

    modules: list[nn.Module] = []
    for _ in range(LAYERS):
        if operator == "separable_conv2d":
            modules += [convolution((3, 3), CHANNELS), convolution((1, 1)), nn.BatchNorm2d(CHANNELS)]
        else:
            modules += [convolution((1, 3)), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    model = nn.Sequential(*modules)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model


def _microseconds(call: Callable[[], object], repeats: int) -> float:
    """Of one layer."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times[repeats // 5 :]) / LAYERS


def measure(operator: str, mixed: bool, repeats: int) -> dict[str, float]:
    """`mixed`: training under autocast and evaluation of the bfloat16 network, else float32."""
    import inception_kernels as ik

    model = _network(operator)
    with ik.use_backend("cuda"):  # the probe compares numbers
        assert len(ik.swap(model).swapped) == LAYERS
    x = torch.randn(2, CHANNELS, 4, 4).to(memory_format=torch.channels_last)
    parameters = list(model.parameters())

    def forward() -> Tensor:
        context = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
        with context:
            y: Tensor = model(x)
        return y

    gradient = torch.ones_like(forward())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        forward().backward(gradient)

    hosted_operators.hosted.execution(False)
    with ik.use_backend("cuda"):
        in_training = _microseconds(forward, repeats)
        whole = _microseconds(step, repeats)
    model.eval()
    if mixed:
        model, x = model.bfloat16(), x.bfloat16()
    with torch.no_grad():
        in_evaluation = _microseconds(lambda: model(x), repeats)
    hosted_operators.hosted.execution(True)
    return {"forward": in_training, "backward": whole - in_training, "evaluation": in_evaluation}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.host_time", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=60, help="passes that are measured (default: 60)")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    hosted_operators.pytest_load_initial_conftests()
    hosted_operators.hosted.context(*LARGEST_CONTEXT)
    print("us per layer                   forward  backward  evaluation")
    for operator in ("conv2d_bn_act", "separable_conv2d"):
        for mixed in (False, True):
            found = measure(operator, mixed, repeats)
            name = f"{operator}, {'bfloat16' if mixed else 'float32'}"
            print(f"{name:28}{found['forward']:10.1f}{found['backward']:10.1f}{found['evaluation']:12.1f}", flush=True)


if __name__ == "__main__":
    main()

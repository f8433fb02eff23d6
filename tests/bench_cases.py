"""Small layers, cases and contenders for the tests of the benchmark harness."""

import dataclasses

import torch

from inception_kernels.bench import Config, Row, harness
from inception_kernels.bench.contenders import Eager
from inception_kernels.bench.contenders.base import Baseline, Prepared, Unfit
from inception_kernels.bench.plain import (
    PlainConv,
    PlainLoss,
    PlainPair,
    PlainPointwiseDepthwise,
    PlainPool,
    PlainSeparable,
)
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import NOT_INSTALLED


def conv(channels: tuple[int, int] = (6, 10), kernel: tuple[int, int] = (1, 3)) -> PlainConv:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return PlainConv(channels, kernel, (1, 1), padding, (1, 1), "relu", 1e-3)


def separable() -> PlainSeparable:
    return PlainSeparable((6, 10), (3, 3), (1, 1), (1, 1), (1, 1), "relu", "none", 1e-5)


def pair() -> PlainPair:
    return PlainPair(conv((6, 8), (1, 3)), conv((8, 10), (3, 1)))


def pointwise_first() -> PlainPointwiseDepthwise:
    return PlainPointwiseDepthwise((6, 10), (3, 3), (1, 1), "relu", "relu", 1e-3)


def max_pool() -> PlainPool:
    return PlainPool("max_pool2d", (3, 3), (2, 2), (1, 1))


def average_pool() -> PlainPool:
    return PlainPool("avg_pool2d", (3, 3), (1, 1), (1, 1))


LOSS = "label_smoothing_cross_entropy"
IMAGE_BUILDERS = {
    "conv2d_bn_act": conv,
    "separable_conv2d": separable,
    "asymmetric_pair": pair,
    "pointwise_depthwise_conv2d": pointwise_first,
    "max_pool2d": max_pool,
    "avg_pool2d": average_pool,
}
BUILDERS = {**IMAGE_BUILDERS, LOSS: lambda: PlainLoss(2, 11)}


def small_case(operator: str = "conv2d_bn_act", dtype: str = "float32", pass_: str = "inference") -> Case:
    return Case(
        name=f"small {operator}",
        kind="operator",
        operator=operator,
        batch=2,
        dtype=dtype,
        pass_=pass_,
        input_shape=(2, 11) if operator == LOSS else (2, 6, 7, 7),
        build=BUILDERS[operator],
        layers=((1000.0, 500.0),),
    )


CONFIG = Config(rounds=2, slot_seconds=1e-4, dtypes=("float32", "bfloat16"))


class Wrong(Baseline):
    """Eager PyTorch whose answer is a little off, or not a number, at one element."""

    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value

    def prepare(self, problem: Problem) -> Prepared:
        right = Eager().prepare(problem)

        def outputs() -> list[torch.Tensor]:
            found = right.outputs()
            found[-1].view(-1)[3] += self.value
            return found

        return dataclasses.replace(right, outputs=outputs)


class Broken(Baseline):
    name = "broken"

    def prepare(self, problem: Problem) -> Prepared:
        raise RuntimeError("no kernel for this\nand a second line")


class Missing(Baseline):
    name = "missing"

    def unfit(self, case: Case) -> Unfit:
        return Unfit(NOT_INSTALLED, "missing is not installed: pip install missing")

    def prepare(self, problem: Problem) -> Prepared:
        raise AssertionError("not installed, so never prepared")


def measured(*extra: Baseline, case: Case | None = None, config: Config = CONFIG) -> dict[str, Row]:
    rows = harness.run(config, cases=[case or small_case()], contenders=[Eager(), *extra])
    assert len(rows) == 1 + len(extra)
    return {row.backend: row for row in rows}

"""A schedule as numbers, in the format that csrc/run_program.h describes, and its constants as bytes."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, fx

from .layout import ALIGNMENT, Schedule, ScheduledStep
from .steps import AveragePool, Convolution, Elementwise, MaxPool, Separable

_MAGIC, _VERSION = 0x4D4152474F5250, 2
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_KINDS = {Convolution: 0, Separable: 1, MaxPool: 2, AveragePool: 3, Elementwise: 4}
_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "elu": 3, "silu": 4}
_NONE, _ARENA, _INPUT, _OUTPUT = range(4)
_HEADER_NUMBERS, _STEP_NUMBERS = 5, 48


class Constants:
    """Packed weights and vectors of the steps, one after the other in one buffer that all programs of a graph share."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.accumulation = torch.float64 if dtype == torch.float64 else torch.float32
        self._offsets: dict[Any, list[int]] = {}
        self._parts: list[Tensor] = []
        self._size = 0
        self._buffer: Tensor | None = None
        self._lock = threading.Lock()  # a program may run while another is made

    def of(self, step: Any) -> list[int]:
        """Byte offsets of weight, second weight, depthwise bias, scale and shift; -1 for none."""
        if step not in self._offsets:
            weights: list[Tensor | None] = [None, None]
            if isinstance(step, Convolution):
                weights[0] = torch.ops.inception_kernels.conv2d_bn_act_pack(
                    step.weight.to(self.dtype), step.stride, step.padding, step.dilation
                )
            elif isinstance(step, Separable):
                weights = list(
                    torch.ops.inception_kernels.separable_conv2d_pack(
                        step.depthwise_weight.to(self.dtype), step.pointwise_weight.to(self.dtype),
                        step.stride, step.padding, step.dilation,
                    )
                )  # fmt: skip
            vectors = [getattr(step, "depthwise_bias", None), step.scale, step.shift]
            parts = [*weights, *(None if v is None else v.to(self.accumulation).contiguous() for v in vectors)]
            self._offsets[step] = [-1 if part is None else self._add(part.view(torch.uint8)) for part in parts]
        return self._offsets[step]

    def _add(self, part: Tensor) -> int:
        with self._lock:
            offset = self._size
            padding = -part.numel() % ALIGNMENT
            self._parts += [part, part.new_zeros(padding)]
            self._size += part.numel() + padding
            self._buffer = None
            return offset

    @property
    def buffer(self) -> Tensor:
        """Another one when parts have been added; their offsets stay."""
        buffer = self._buffer
        if buffer is None:
            with self._lock:
                buffer = torch.cat(self._parts) if self._parts else torch.empty(0, dtype=torch.uint8)
                self._parts, self._buffer = [buffer], buffer
        return buffer


def encode(schedule: Schedule, constants: Constants, element_bytes: int) -> tuple[Tensor, list[int]]:
    """The program, and N, C, H, W of its outputs."""
    steps = [_step(schedule, step, image, begins, constants, element_bytes) for step, image, begins in schedule.order()]
    header = [_MAGIC, _VERSION, _DTYPES[constants.dtype], schedule.arena_bytes, len(steps)]
    sizes = [size for output in schedule.outputs for size in schedule.shapes[output]]
    return torch.tensor(header + [number for step in steps for number in step], dtype=torch.int64), sizes


def multiply_adds(program: Tensor) -> int:
    """Of the convolutions in an encoded program; its other steps have none."""
    total = 0
    for numbers in program[_HEADER_NUMBERS:].reshape(-1, _STEP_NUMBERS).tolist():
        kind, N, C, K, R, S, P, Q = (numbers[i] for i in (0, 5, 6, 9, 10, 11, 18, 19))
        if kind == _KINDS[Convolution]:
            total += N * P * Q * K * C * R * S
        elif kind == _KINDS[Separable]:
            total += N * P * Q * C * (R * S + K)
    return total


def _step(
    schedule: Schedule,
    scheduled: ScheduledStep,
    image: int | None,
    begins: bool,
    constants: Constants,
    element_bytes: int,
) -> list[int]:
    step = scheduled.step
    N, C, H, W = schedule.shapes[scheduled.x]
    N = N if image is None else 1
    _, K, P, Q = step.output_shape((N, C, H, W))
    geometry = [1, 1, 1, 1, 0, 0, 1, 1]  # R, S, stride, padding, dilation
    include_pad, divisor = 1, 0
    if isinstance(step, Convolution | MaxPool | AveragePool | Separable):
        window = step.depthwise_weight.shape[2:] if isinstance(step, Separable) else step.window
        geometry = [*((H, W) if window is None else window), *step.stride, *step.padding, *step.dilation]
    if isinstance(step, AveragePool):
        include_pad, divisor = int(step.count_include_pad), step.divisor or 0
    channel = scheduled.channel if scheduled.copies else 0  # of y
    views = [
        _view(schedule, value, channel if value is scheduled.y else 0, image or 0, element_bytes)
        for value in (scheduled.x, scheduled.residual, scheduled.y)
    ]
    return [
        _KINDS[type(step)],
        int(begins),
        _ACTIVATIONS[step.activation],
        _ACTIVATIONS[getattr(step, "input_activation", "none")],
        _ACTIVATIONS[getattr(step, "mid_activation", "none")],
        N, C, H, W, K, *geometry, P, Q,
        include_pad, divisor,
        *constants.of(step),
        *(number for view in views for number in view),
    ]  # fmt: skip


def _view(schedule: Schedule, value: fx.Node | None, channel: int, image: int, element_bytes: int) -> list[int]:
    """Space, index, offset, strides of N, H, W and C, from this image on."""
    if value is None:
        return [_NONE, 0, 0, 0, 0, 0, 1]
    place = schedule.places[value]
    if place.root in schedule.inputs:
        return [_INPUT, schedule.inputs.index(place.root), place.channel, image, 0, 0, 1]
    _, channels, height, width = schedule.shapes[place.root]
    strides = [height * width * channels, width * channels, channels, 1]
    offset = place.channel + channel + (0 if place.root in schedule.one_image else image * strides[0])
    if place.root in schedule.outputs:
        return [_OUTPUT, schedule.outputs.index(place.root), offset, *strides]
    return [_ARENA, 0, schedule.offsets[place.root] // element_bytes + offset, *strides]

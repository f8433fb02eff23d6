"""A case made concrete: the plain module that defines it, its input, and its answer in float64."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inception_kernels.bench.plain import before_activation


@dataclass(frozen=True)
class Case:
    """What is measured: a network or one operator at one shape.

    `build` makes the plain `torch.nn` module in float32. `layers` are the (multiply-adds, elements moved) of each
    layer at batch `batch`, forward only.
    """

    name: str
    kind: str  # "network" or "operator"
    operator: str
    batch: int
    dtype: str
    pass_: str
    input_shape: tuple[int, ...]  # [N, C, H, W], of a loss [N, K]
    build: Callable[[], nn.Module]
    layers: tuple[tuple[float, float], ...]

    @property
    def training(self) -> bool:
        return self.pass_ == "training"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def autocast(self) -> bool:
        """Training below float32 keeps float32 parameters; inference holds everything in the dtype."""
        return self.training and self.torch_dtype.itemsize < 4

    @property
    def shape(self) -> str:
        return "x".join(map(str, self.input_shape))

    @property
    def work(self) -> tuple[tuple[float, float], ...]:
        """(Multiply-adds, bytes) per layer of this pass.

        Backward is two more products of the size of the forward one; each of the three reads or writes the input,
        the weights and the output once. The gradient of a network's image is not computed, and not taken off here.
        """
        factor = 3.0 if self.training else 1.0
        size = self.torch_dtype.itemsize
        return tuple((factor * macs, factor * elements * size) for macs, elements in self.layers)


class Problem:
    """The module (float32 parameters that the dtype can hold), input and gradient of one case.

    All implementations get copies of the same values, so that float64 on these values is the truth for all.
    """

    def __init__(self, case: Case, device: str = "cpu", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.case = case
        self.device = device
        module = case.build()
        x = torch.randn(case.input_shape)
        set_statistics(module, x)
        parameter_dtype = torch.float32 if case.autocast else case.torch_dtype
        self.module = module.to(parameter_dtype).to(device).train(case.training)
        self.x = x.to(torch.float32 if case.kind == "network" and case.autocast else case.torch_dtype).to(device)
        self._grad_seed = seed + 1

    def mode(self) -> contextlib.AbstractContextManager[object]:
        """How the calls are made: in inference mode, or recording for backward. Models are prepared outside of it."""
        return torch.inference_mode(not self.case.training)

    def grad(self, y: Tensor) -> Tensor:
        """The gradient that enters backward, the same values whatever the dtype and layout of `y`."""
        generator = torch.Generator().manual_seed(self._grad_seed)
        values = torch.randn(y.shape, generator=generator).to(self.case.torch_dtype)
        if self._undecided is not None:
            values[self._undecided.cpu()] = 0
        return torch.empty_like(y).copy_(values)

    def copy_of_module(self, channels_last: bool = False) -> nn.Module:
        module = copy.deepcopy(self.module)
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        return module

    def copy_of_input(self, channels_last: bool = False) -> Tensor:
        """The input; in training it requires a gradient for an operator, not for a network's image."""
        images = channels_last and self.x.dim() == 4
        x = self.x.clone(memory_format=torch.channels_last if images else torch.contiguous_format)
        return x.requires_grad_(self.case.training and self.case.kind == "operator")

    def step(self, function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]) -> Step:
        """The call to be timed: forward, or forward and backward into fresh gradients."""
        return Step(self, function, x, tuple(parameters))

    @functools.cached_property
    def _undecided(self) -> Tensor | None:
        """The outputs of an operator that lie so near a kink that rounding decides on which side.

        Its gradient would be right or wrong there as a whole, by chance. In 16 bits that happens to so many, whoever
        computes them, that it is part of the error of all.
        """
        dtype = self.case.torch_dtype
        module = before_activation(self.module)
        if module is None or self.case.kind == "network" or dtype.itemsize < 4:
            return None
        with torch.no_grad():
            z = module.double()(self.x.double())
        near = 64 * torch.finfo(dtype).eps * z.abs().max()
        return (z.abs() < near) | ((z - 6).abs() < near)  # of ReLU or ReLU6

    @functools.cached_property
    def truth(self) -> list[Tensor]:
        """Output, then in training the gradients, in float64 on the case's device."""
        module = copy.deepcopy(self.module).double()
        x = self.x.double().requires_grad_(self.case.training and self.case.kind == "operator")
        with torch.autocast(torch.device(self.device).type, enabled=False), self.mode():
            if not self.case.training:
                return [module(x)]
            y = module(x)
            y.backward(self.grad(y))
        leaves = [x, *module.parameters()]
        return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def error(self, outputs: Sequence[Tensor]) -> float:
        """The error against float64, relative to the largest magnitude of each tensor.

        Of an operator the largest over the output and the gradients. Of a network the root mean square: its
        gradients pass through fifty batch norms of a small batch, and the worst of 300 tensors is then noise.
        """
        if len(outputs) != len(self.truth):
            raise ValueError(f"expected {len(self.truth)} tensors (output and gradients), got {len(outputs)}")
        errors = []
        for got, want in zip(outputs, self.truth, strict=True):
            if got.shape != want.shape:
                raise ValueError(f"expected shape {list(want.shape)}, got {list(got.shape)}")
            scale = want.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            errors.append(float((got.detach().to(want) - want).abs().max() / scale))
        if self.case.kind == "network":
            return (sum(value * value for value in errors) / len(errors)) ** 0.5
        return float(torch.tensor(errors).max())  # unlike max(), keeps a NaN


class Step:
    """One forward, or forward and backward, of a torch callable. Called for timing; `outputs` for its results."""

    def __init__(
        self,
        problem: Problem,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        parameters: tuple[Tensor, ...],
    ) -> None:
        self.case, self.function, self.x, self.parameters = problem.case, function, x, parameters
        self.make_grad = problem.grad
        self.grad_y: Tensor | None = None
        self.device_type = torch.device(problem.device).type

    def __call__(self) -> Tensor:
        if not self.case.training:
            return self.function(self.x)
        self.x.grad = None
        for parameter in self.parameters:
            parameter.grad = None
        with torch.autocast(self.device_type, self.case.torch_dtype, enabled=self.case.autocast):
            y = self.function(self.x)
        if self.grad_y is None:
            self.grad_y = self.make_grad(y)
        y.backward(self.grad_y)
        return y

    def outputs(self) -> list[Tensor]:
        """Output, then the gradients of the input and of every parameter, in the order of `Problem.truth`."""
        y = self().detach().clone()
        leaves = (self.x, *self.parameters) if self.case.training else ()
        return [y, *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)]


def set_statistics(module: nn.Module, x: Tensor) -> None:
    """Give batch norms statistics that fit the activations of `x`, and an affine part that is not the identity.

    Mean 0 and variance 1, as in a fresh module, let random weights drive activations out of any sane range. The batch's
    own statistics keep the range, but fifty layers of random weights then amplify rounding until half precision is
    noise. Half the mean and a larger variance keep range and signal.
    """
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.1)
        norm.momentum = 1.0
    module.train()
    with torch.no_grad():
        module(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None and var is not None
            var.add_(0.75 * mean.square())
            mean.mul_(0.5)

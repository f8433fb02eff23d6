"""What the operators compute, in plain torch calls, and how wrong an implementation may be.

The compositions below are written from the definitions and share no code with the package. Run in float64 they are the
truth; run in the tensors' own dtype they are PyTorch's answer, whose error sets the error that we may make.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "elu", "silu")
KINKS: dict[str, tuple[float, ...]] = {"none": (), "relu": (0.0,), "relu6": (0.0, 6.0), "elu": (), "silu": ()}
MAX_RATIO = 2.0  # the error against float64 may be this many times PyTorch's own


def activate(t: Tensor, name: str) -> Tensor:
    if name == "none":
        return t
    return {"relu": F.relu, "relu6": F.relu6, "elu": F.elu, "silu": F.silu}[name](t)


@dataclass
class Trace:
    """Intermediate tensors of one evaluation, with their gradients once backward has run."""

    before_norm: dict[str, Tensor] = field(default_factory=dict)  # layer -> [N, K, P, Q]
    before_act: dict[str, Tensor] = field(default_factory=dict)  # layer -> [N, K, P, Q], without the residual
    output_preactivation: Tensor | None = None

    def keep(self, where: dict[str, Tensor], layer: str, t: Tensor) -> None:
        if t.requires_grad:
            t.retain_grad()
        where[layer] = t


# Adds nothing to a variance of one; F.batch_norm of torch 2.11 refuses 0.
NO_EPS = 1e-300


def _norm(z: Tensor, bn: Sequence[Tensor | None], training: bool, momentum: float, eps: float, truth: bool) -> Tensor:
    weight, bias, mean, var = bn
    if mean is None and weight is None and bias is None:
        return z
    if truth and training and z.numel() > 0:
        return _norm_by_definition(z, bn, momentum, eps)
    return F.batch_norm(z, mean, var, weight, bias, training, momentum, eps)


def _norm_by_definition(z: Tensor, bn: Sequence[Tensor | None], momentum: float, eps: float) -> Tensor:
    """Batch norm of a batch with its mean to the last place: F.batch_norm's is off by up to 10 ulp in float64 too."""
    weight, bias, running_mean, running_var = bn
    mean = z.mean((0, 2, 3), keepdim=True)
    mean = mean + (z - mean).mean((0, 2, 3), keepdim=True)
    var = (z - mean).square().mean((0, 2, 3), keepdim=True)
    if running_mean is not None and running_var is not None:
        count = z.numel() // z.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.flatten(), momentum)
            running_var.lerp_(var.flatten() * (count / (count - 1)), momentum)
    u = (z - mean) * (var + eps).rsqrt()
    if weight is not None:
        u = u * weight.view(1, -1, 1, 1)
    return u if bias is None else u + bias.view(1, -1, 1, 1)


def conv2d_bn_act(
    x: Tensor, weight: Tensor, bn_weight: Tensor | None = None, bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None, running_var: Tensor | None = None, bias: Tensor | None = None,
    residual: Tensor | None = None, stride=1, padding=0, dilation=1, activation: str = "relu",
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *, trace: Trace | None = None, layer: str = "",
) -> Tensor:  # fmt: skip
    z = F.conv2d(x, weight, bias, stride, padding, dilation)
    u = _norm(z, (bn_weight, bn_bias, running_mean, running_var), training, momentum, eps, trace is not None)
    if trace is not None:
        trace.keep(trace.before_norm, layer, z)
        trace.keep(trace.before_act, layer, u)
    if residual is not None:
        u = u + residual
    if trace is not None:
        trace.output_preactivation = u.detach()
    return activate(u, activation)


def separable_conv2d(
    x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    residual: Tensor | None = None, stride=1, padding=0, dilation=1, depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None, input_activation: str = "none", mid_activation: str = "none",
    activation: str = "none", training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    *, trace: Trace | None = None,
) -> Tensor:  # fmt: skip
    d = F.conv2d(
        activate(x, input_activation), depthwise_weight, depthwise_bias, stride, padding, dilation, groups=x.shape[1]
    )
    if trace is not None:
        trace.keep(trace.before_norm, "depthwise_", d)
    return conv2d_bn_act(
        activate(d, mid_activation), pointwise_weight, bn_weight, bn_bias, running_mean, running_var, bias, residual,
        activation=activation, training=training, momentum=momentum, eps=eps, trace=trace,
    )  # fmt: skip


def asymmetric_pair(
    x: Tensor, weight1: Tensor, weight2: Tensor, bn1=None, bn2=None, bias1: Tensor | None = None,
    bias2: Tensor | None = None, padding1=(0, 3), padding2=(3, 0), stride1=1, stride2=1, activation: str = "relu",
    mid_activation: str = "relu", training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    *, trace: Trace | None = None,
) -> Tensor:  # fmt: skip
    none = (None, None, None, None)
    mid = conv2d_bn_act(
        x, weight1, *(bn1 or none), bias1, None, stride1, padding1, 1, mid_activation, training, momentum, eps,
        trace=trace, layer="1",
    )  # fmt: skip
    return conv2d_bn_act(
        mid, weight2, *(bn2 or none), bias2, None, stride2, padding2, 1, activation, training, momentum, eps,
        trace=trace, layer="2",
    )  # fmt: skip


COMPOSITIONS = {
    "conv2d_bn_act": conv2d_bn_act,
    "separable_conv2d": separable_conv2d,
    "asymmetric_pair": asymmetric_pair,
}


def conv2d_bn_act_reversed(x: Tensor, weight: Tensor, *args, **kwargs) -> Tensor:
    """The same sums with the input channels in reverse order: PyTorch's answer as good as the other."""
    return conv2d_bn_act(x.flip(1), weight.flip(1), *args, **kwargs)


def separable_conv2d_reversed(
    x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, *args, depthwise_bias: Tensor | None = None, **kwargs
) -> Tensor:
    depthwise_bias = None if depthwise_bias is None else depthwise_bias.flip(0)
    return separable_conv2d(
        x.flip(1), depthwise_weight.flip(0), pointwise_weight.flip(1), *args, depthwise_bias=depthwise_bias, **kwargs
    )


def asymmetric_pair_reversed(x: Tensor, weight1: Tensor, *args, **kwargs) -> Tensor:
    return asymmetric_pair(x.flip(1), weight1.flip(1), *args, **kwargs)


REVERSED = {
    "conv2d_bn_act": conv2d_bn_act_reversed,
    "separable_conv2d": separable_conv2d_reversed,
    "asymmetric_pair": asymmetric_pair_reversed,
}


def near_kink(preactivation: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
    """Where the float64 pre-activation is so near a kink that a correct rounding may choose the other slope."""
    margin = 2 * torch.finfo(dtype).eps * max(1.0, preactivation.abs().max().item()) if preactivation.numel() else 0.0
    near = torch.zeros_like(preactivation, dtype=torch.bool)
    for kink in KINKS[activation]:
        near |= (preactivation - kink).abs() <= margin
    return near


@dataclass(frozen=True)
class Sum:
    """What each entry of a [K] result adds up: how many terms, and the (largest) root of the sum of their squares."""

    count: int = 0
    norm: float = 0.0

    @staticmethod
    def of(terms: Tensor, factor: float = 1.0) -> Sum:
        """terms: [N, K, P, Q], added over all but K."""
        if terms.numel() == 0:
            return Sum()
        norm = math.sqrt(terms.square().sum(dim=(0, 2, 3)).max().item())
        return Sum(terms.numel() // terms.shape[1], factor * norm)

    def rounding(self, term_dtype: torch.dtype) -> float:
        """What rounding every term once, and every partial sum in the accumulation type, may add up to.

        Independent roundings of half an ulp of each term give 0.3 ulp of the norm; one ulp is a 3.5 sigma event. The
        partial sums of n terms grow like the square root, so adding in order gives sqrt(n) / 5 ulp of the norm.
        """
        accumulation = torch.finfo(torch.float64 if term_dtype == torch.float64 else torch.float32).eps
        return self.norm * (torch.finfo(term_dtype).eps + accumulation * math.sqrt(self.count) / 5)


def rms(t: Tensor) -> Tensor:
    return t.square().mean().sqrt()


def geometric_mean(ratios: Sequence[Tensor]) -> float:
    return torch.stack(list(ratios)).log().mean().exp().item()


def _errors(got: Tensor, exact: Tensor) -> tuple[float, float]:
    difference = got.to(torch.float64) - exact
    return difference.abs().max().item(), rms(difference).item()


def assert_as_accurate_as_torch(
    ours: Tensor, exact: Tensor, torchs: Sequence[Tensor], *, name: str, total: Sum | None = None,
    noise: float = 0.0, compute_dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """The largest and the root-mean-square error of `ours` against `exact` are at most twice PyTorch's, plus a floor.

    ours: any shape and dtype. exact: the float64 truth. torchs: PyTorch's own results in the dtype of `ours`, one or
    more equivalent evaluations (layouts, summation orders); the worst of them counts.

    The floor is what rounding alone explains, where chance may have made PyTorch exact:
    - 4 ulp of the result's dtype at the largest magnitude of the result. One ulp is the final rounding; the others allow
      for a product, a scale and a shift that each round once where PyTorch happened not to. For the root mean square
      1 ulp, and 3 / sqrt(n) for the scatter of the mean of n entries (with one entry both are the same number).
    - one ulp of `compute_dtype` of `noise`: the root of the sum of the squares of rounded terms, where known.
    - for per-channel sums (`total`) what :meth:`Sum.rounding` says. Without it a gradient that cancels to zero (a bias
      in front of batch statistics), or that has one entry, could have no error at all.
    For float64 the floor is four times as high: there the truth is no more precise than what it judges.
    """
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == torchs[0].dtype, f"{name}: dtype {ours.dtype}, PyTorch gives {torchs[0].dtype}"
    if exact.numel() == 0:
        return
    assert torch.isfinite(ours).all(), f"{name}: {int((~torch.isfinite(ours)).sum())} of {ours.numel()} not finite"
    our_max, our_rms = _errors(ours, exact)
    worst = [_errors(t, exact) for t in torchs]
    torch_max, torch_rms = max(w[0] for w in worst), max(w[1] for w in worst)
    scale = 4 if ours.dtype == torch.float64 else 1
    ulp = scale * (torch.finfo(ours.dtype).eps * exact.abs().max().item() + torch.finfo(ours.dtype).tiny)
    spread = scale * (torch.finfo(compute_dtype or ours.dtype).eps * noise)
    spread += 0.0 if total is None else scale * total.rounding(compute_dtype or ours.dtype)
    max_limit = MAX_RATIO * torch_max + 4 * ulp + spread
    rms_limit = MAX_RATIO * torch_rms + ulp * (1 + 3 / math.sqrt(exact.numel())) + spread
    if our_max > max_limit or our_rms > rms_limit:
        difference = (ours.to(torch.float64) - exact).abs()
        where = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        raise AssertionError(
            f"{name} {tuple(ours.shape)} {ours.dtype}: largest error {our_max:.3e} at {where}, allowed {max_limit:.3e} "
            f"(PyTorch {torch_max:.3e}); rms {our_rms:.3e}, allowed {rms_limit:.3e} (PyTorch {torch_rms:.3e}); "
            f"largest magnitude {exact.abs().max().item():.3e}"
        )

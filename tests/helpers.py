"""Shared by the tests: random models with sane activations, and the one tolerance rule."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from inception_kernels import _extension

# For an installation without them, which is supported: what a marked test calls does not exist there. CI does not start
# without them (conftest.pytest_configure).
needs_kernels = pytest.mark.skipif(not _extension.available, reason=f"no compiled operators: {_extension.reason}")


def randomize_batch_norm(model: nn.Module, seed: int = 0, example_input: torch.Tensor | None = None) -> nn.Module:
    """Give every batch norm random affine parameters and statistics under which activations stay near 1.

    Fresh statistics (mean 0, variance 1) let activations of a deep random network vanish or explode, which
    hides errors. With `example_input` one evaluation pass measures the input of each batch norm as it is
    reached and the running statistics become the measured ones times random factors: give it the image size
    that the test uses, since padding weighs more in small images and the mean then shifts layer by layer.
    Layers that the pass does not reach (an auxiliary head) and models without `example_input` get plain
    random statistics. Returns `model`.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return (torch.rand(like.shape, generator=generator) * (high - low) + low).to(like)

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            if norm.affine:
                norm.weight.copy_(uniform(norm.weight, 0.7, 1.3))
                norm.bias.copy_(uniform(norm.bias, -0.3, 0.3))
            if norm.running_mean is not None:
                norm.running_mean.copy_(uniform(norm.running_mean, -0.3, 0.3))
                norm.running_var.copy_(uniform(norm.running_var, 0.5, 1.5))
    if example_input is None:
        return model

    def calibrate(norm: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        dims = [d for d in range(x.dim()) if d != 1]
        mean = x.mean(dim=dims)
        # One variance for the layer, and a floor: where the image is down to one pixel there is almost none.
        variance = (x.var(dim=dims, unbiased=False).mean() + 0.1 * mean.square().mean()).clamp_min(1e-6).item()
        noise = uniform(norm.running_mean, -0.3, 0.3) * variance**0.5
        norm.running_mean.copy_(mean + noise)
        norm.running_var.copy_(uniform(norm.running_var, 0.7, 1.4) * variance)

    modes = {module: module.training for module in model.modules()}
    handles = [norm.register_forward_pre_hook(calibrate) for norm in norms if norm.running_mean is not None]
    try:
        with torch.no_grad():
            model.eval()(example_input)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return model


def assert_as_accurate(actual: torch.Tensor, baseline: torch.Tensor, exact: torch.Tensor, name: str = "result") -> None:
    """Error of `actual` against float64 `exact`: at most twice that of PyTorch's `baseline` in the same
    dtype.

    The floor is 4 units in the last place of the dtype at the largest magnitude, for results where the
    baseline happens to be exact. A baseline that is not finite, where the truth is, allows nothing.
    """
    assert actual.dtype == baseline.dtype, f"{name}: expected {baseline.dtype}, got {actual.dtype}"
    assert actual.shape == exact.shape, f"{name}: expected shape {tuple(exact.shape)}, got {tuple(actual.shape)}"
    assert torch.isfinite(actual).all(), f"{name}: has values that are not finite"
    if actual.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()
    allowed = 2 * (baseline.double() - exact).abs().max().nan_to_num(0, 0).item()
    floor = 4 * torch.finfo(actual.dtype).eps * exact.abs().max().item()
    assert error <= max(allowed, floor), (
        f"{name}: error {error:.3e}, PyTorch's own x 2 {allowed:.3e}, floor {floor:.3e}"
    )


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_layouts(wide: torch.Tensor, C: int, P: int, Q: int) -> dict[str, torch.Tensor]:
    """Gradients `[N, C, P, Q]` in every layout that autograd may hand to a backward pass; wide: `[N, 2 C, 2 P, Q]`."""
    N = wide.shape[0]
    return {
        "contiguous": wide[:, :C, :P].contiguous(),
        "slice": wide.contiguous(memory_format=torch.channels_last)[:, C // 3 : C // 3 + C, P:],
        "every_other": wide[:, ::2, ::2],
        "expanded": wide[:1, :1, :1, :1].expand(N, C, P, Q),
        "one_image": wide[:1, :C, :P].expand(N, C, P, Q),
        "pixels": wide[:, :C, :1, :1].expand(N, C, P, Q),
    }


GRADIENT_LAYOUTS = tuple(gradient_layouts(torch.empty(1, 2, 2, 1), 1, 1, 1))

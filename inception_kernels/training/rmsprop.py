"""RMSProp as TensorFlow computes it, which is what both papers trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


class RMSPropTF(Optimizer):
    """RMSProp with epsilon inside of the root and the learning rate inside of the momentum.

    For a gradient g (with ``weight_decay * parameter`` added)::

        square_average = decay * square_average + (1 - decay) * g^2
        velocity = momentum * velocity + lr * g / sqrt(square_average + eps)
        parameter = parameter - velocity

    ``torch.optim.RMSprop`` adds eps outside of the root, starts from a square average of zero and keeps the learning
    rate out of the velocity; with the papers' eps of 1.0 the difference decides whether training works.

    Args:
        params: tensors or parameter groups, as for every torch optimizer.
        lr: learning rate.
        decay: of the average of squared gradients; Szegedy et al. 2016, section 8: 0.9.
        momentum: 0 keeps no velocity.
        eps: inside of the root; Szegedy et al. 2016, section 8: 1.0.
        weight_decay: L2, added to the gradient.
        initial_square_average: TensorFlow starts from one, so that the first steps are not too long.

    Raises:
        ValueError: a number outside of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.045,
        decay: float = 0.9,
        momentum: float = 0.0,
        eps: float = 1.0,
        weight_decay: float = 0.0,
        initial_square_average: float = 1.0,
    ) -> None:
        for name, value, highest in (
            ("lr", lr, None),
            ("decay", decay, 1.0),
            ("momentum", momentum, 1.0),
            ("eps", eps, None),
            ("weight_decay", weight_decay, None),
            ("initial_square_average", initial_square_average, None),
        ):
            if not value >= 0 or (highest is not None and value >= highest):
                limit = "" if highest is None else f" and < {highest:g}"
                raise ValueError(f"{name}: expected a number >= 0{limit}, got {value}")
        defaults = dict(
            lr=lr,
            decay=decay,
            momentum=momentum,
            eps=eps,
            weight_decay=weight_decay,
            initial_square_average=initial_square_average,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter with a gradient. Returns what `closure` returns, if there is one.

        Raises:
            RuntimeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.is_sparse:
            raise RuntimeError("RMSPropTF: expected dense gradients, got a sparse one")
        state = self.state[parameter]
        if not state:
            state["square_average"] = torch.full_like(parameter, group["initial_square_average"])
            if group["momentum"] > 0:
                state["velocity"] = torch.zeros_like(parameter)
        if group["weight_decay"] != 0:
            grad = grad.add(parameter, alpha=group["weight_decay"])
        average = state["square_average"]
        average.mul_(group["decay"]).addcmul_(grad, grad, value=1 - group["decay"])
        root = average.add(group["eps"]).sqrt_()
        if group["momentum"] > 0:
            velocity = state["velocity"]
            velocity.mul_(group["momentum"]).addcdiv_(grad, root, value=group["lr"])
            parameter.sub_(velocity)
        else:
            parameter.addcdiv_(grad, root, value=-group["lr"])

"""What a benchmark run measures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

NETWORKS = ("inception_v3", "xception")
LAYER_OPERATORS = ("separable_conv2d", "conv2d_bn_act", "asymmetric_pair")
OPERATORS = (
    *LAYER_OPERATORS,
    "pointwise_depthwise_conv2d",
    "label_smoothing_cross_entropy",
    "max_pool2d",
    "avg_pool2d",
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
PASSES = ("inference", "training")
KINDS = ("network", "operator")


def usual_dtypes(device: str) -> tuple[str, ...]:
    """float32, and bfloat16 where PyTorch has kernels for it: its loops take up to minutes for an image."""
    if device.startswith("cpu") and not (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return ("float32",)
    return ("float32", "bfloat16")


@dataclass(frozen=True)
class Config:
    """Cases are the networks, and their layers by operator, times `batches`, `dtypes` and `passes`.

    `slot_seconds` is how long one implementation runs before the next one has its turn, `rounds` how often each has
    one; after `case_seconds` of timing a case gets no further round. `max_seconds` ends the run early: cases that are
    left then are rows with the status "left out".
    """

    kinds: tuple[str, ...] = KINDS
    networks: tuple[str, ...] = NETWORKS
    operators: tuple[str, ...] = LAYER_OPERATORS  # those with weights that the two networks have
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    passes: tuple[str, ...] = PASSES
    backends: tuple[str, ...] = ()  # all that fit the device
    device: str = "cpu"
    threads: int | None = None  # torch's own choice
    image_size: int = 299
    layers: int | None = None  # at most so many layers per operator: those with the most work
    compile_training: bool = True
    tune: bool = False
    rounds: int = 9
    slot_seconds: float = 0.05
    max_seconds: float | None = None
    case_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("networks", NETWORKS),
            ("operators", OPERATORS),
            ("dtypes", DTYPES),
            ("passes", PASSES),
        ):
            unknown = [value for value in getattr(self, name) if value not in allowed]
            if unknown:
                raise ValueError(f"expected {name} out of {', '.join(allowed)}, got {', '.join(unknown)}")
        for name in (
            "batches",
            "rounds",
            "slot_seconds",
            "image_size",
            "layers",
            "threads",
            "max_seconds",
            "case_seconds",
        ):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number <= 0:
                    raise ValueError(f"expected {name} above zero, got {number}")

    def quick(self, batches: tuple[int, ...] | None = None, layers: int | None = None) -> Config:
        """The same within about five minutes on two cores: batch 1, two layers per operator, no compiled training."""
        return replace(
            self,
            batches=batches or (1,),
            layers=layers or 2,
            compile_training=False,
            rounds=min(self.rounds, 7),
            slot_seconds=min(self.slot_seconds, 0.04),
            max_seconds=self.max_seconds or 270.0,
            case_seconds=self.case_seconds or 15.0,
        )

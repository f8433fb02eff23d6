"""Models by name, for the command line and the tests: ours, torchvision's, timm's, or any callable."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inception_kernels.models.inception_v3 import inception_v3
from inception_kernels.models.xception import xception

_OURS: dict[str, Callable[..., nn.Module]] = {"inception_v3": inception_v3, "xception": xception}
_stub_library: torch.library.Library | None = None


def make_torchvision_importable() -> None:
    """Declare torchvision's two NMS schemas where its compiled operators cannot load.

    torchvision's only wheel on PyPI links CUDA, so under a CPU-only torch `import torchvision` fails with
    "operator torchvision::nms does not exist". No model of ours calls these operators; declaring them is
    enough. Does nothing where torchvision is not installed or its operators load. Safe to call twice.
    """
    global _stub_library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    libraries = [*Path(spec.origin).parent.glob("_C*.so"), *Path(spec.origin).parent.glob("_C*.pyd")]
    for library in libraries:
        try:
            torch.ops.load_library(library)
        except OSError:
            continue  # the case that this function is for: the schemas are declared below
        return
    _stub_library = torch.library.Library("torchvision", "DEF")  # schemas live as long as this object
    for operator in ("nms", "qnms"):
        _stub_library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _import(module: str, needed_for: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model {needed_for!r} needs the module {error.name!r}: install it, or check the name"
        ) from error


def load(name: str, **options: Any) -> nn.Module:
    """Build a model with random weights. Nothing is downloaded.

    `name` is `inception_v3` or `xception` (this package), `torchvision:<constructor>`, `timm:<model>`, or
    `package.module:callable`; `options` go to the constructor. Raises ValueError, naming the forms, where
    there is no such model, and TypeError where a callable does not build a `torch.nn.Module`.
    """
    source, separator, model = name.partition(":")
    if not separator:
        if name not in _OURS:
            raise ValueError(
                f"expected inception_v3, xception, torchvision:NAME, timm:NAME or package.module:callable, got {name!r}"
            )
        return _OURS[name](**options)
    if source in ("torchvision", "timm"):
        make_torchvision_importable()
    if source == "torchvision":
        module = _import("torchvision.models", name)
        if model not in module.list_models(module=module):
            raise ValueError(f"torchvision.models has no model {model!r}; torchvision.models.list_models() lists them")
        if model in ("inception_v3", "googlenet"):
            options.setdefault("init_weights", False)  # their truncated-normal initialisation takes minutes
        return module.get_model(model, weights=None, **options)
    if source == "timm":
        module = _import("timm", name)
        if not module.is_model(model):
            raise ValueError(f"timm has no model {model!r}; timm.list_models() lists them")
        return module.create_model(model, pretrained=False, **options)
    constructor = getattr(_import(source, name), model, None)
    if constructor is None:
        raise ValueError(f"module {source!r} has no {model!r}")
    if not callable(constructor):
        raise TypeError(f"expected a callable that builds a model, got {name!r} of type {type(constructor).__name__}")
    built = constructor(**options)
    if not isinstance(built, nn.Module):
        raise TypeError(f"{name!r} returned {type(built).__name__}, expected a torch.nn.Module")
    return built

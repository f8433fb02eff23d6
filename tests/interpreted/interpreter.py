"""Makes Triton's interpreter tell the truth about kernels; the process has to start with TRITON_INTERPRET=1.

Without it bfloat16 products multiply bit patterns, float32 -> bfloat16 truncates, other bfloat16 arithmetic is silently
wrong, and an access outside of every tensor reads or writes whatever lies there. Here products and conversions are
right, other bfloat16 arithmetic raises, and every unmasked lane of a load or store has to lie inside an argument.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_Builder: Any = interpreter.InterpreterBuilder
_Handle: Any = interpreter.TensorHandle


def _is_bf16(handle: Any) -> bool:
    return getattr(getattr(handle, "dtype", None), "scalar", None) == tl.bfloat16


def _bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _f32_to_bf16(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


def _as_float(handle: Any) -> np.ndarray:
    return _bf16_to_f32(handle.data) if _is_bf16(handle) else np.asarray(handle.data)


def _round_to_tf32(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    left, right = (_as_float(h).astype(d.data.dtype, copy=False) for h in (a, b))
    if a.dtype.scalar == tl.float32 and "TF32" in str(input_precision) and "x3" not in str(input_precision):
        left, right = _round_to_tf32(left), _round_to_tf32(right)
    return _Handle(np.matmul(left, right) + d.data, d.dtype.scalar)


def _install_conversions() -> None:
    original = _Builder.cast_impl

    def cast(self: Any, source: Any, to: Any) -> Any:
        if _is_bf16(source) and to.scalar == tl.float32:
            return _Handle(_bf16_to_f32(source.data), tl.float32)
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return _Handle(_f32_to_bf16(source.data), tl.bfloat16)
        return original(self, source, to)

    _Builder.cast_impl = cast


def _refuse_bf16_arithmetic() -> None:
    def guarded(name: str) -> Callable[..., Any]:
        original = getattr(_Builder, name)

        def operation(self: Any, *arguments: Any) -> Any:
            if any(_is_bf16(a) for a in arguments):
                raise TypeError(f"{name}: bfloat16 arithmetic is wrong in the interpreter; upcast to float32 first")
            return original(self, *arguments)

        return operation

    for name in ("binary_op", "unary_op", "ternary_op", "create_fma"):
        setattr(_Builder, name, guarded(name))

    def guarded_reduction(original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(self: Any, values: Any) -> Any:
            if any(t.dtype == tl.bfloat16 for t in (values if isinstance(values, tuple) else (values,))):
                raise TypeError("reduction: bfloat16 is wrong in the interpreter; upcast to float32 first")
            return original(self, values)

        return apply

    for kind in (interpreter.ReduceOps, interpreter.ScanOps):
        kind.apply = guarded_reduction(kind.apply)


def _let_scalars_bound_loops() -> None:
    """Triton 3.6 converts them in a way that numpy does no more."""
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


# ---- bounds

_allowed: list[tuple[int, int]] = []  # address ranges of the running launch's arguments


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(getattr(value, "base", None), torch.Tensor):
        yield value.base
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _span(t: torch.Tensor) -> tuple[int, int]:
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _remember_arguments() -> None:
    original = interpreter.GridExecutor._init_args_hst

    def initialise(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = original(self, *arguments, **keywords)
        _allowed[:] = [_span(t) for t in _tensors(result)]
        return result

    interpreter.GridExecutor._init_args_hst = initialise


def _check(pointers: Any, mask: Any, operation: str) -> None:
    addresses = np.asarray(pointers.data).astype(np.int64)
    if mask is not None:
        addresses = addresses[np.broadcast_to(np.asarray(mask.data).astype(bool), addresses.shape)]
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    inside = np.zeros(addresses.shape, bool)
    for first, last in _allowed:
        inside |= (addresses >= first) & (addresses + size <= last)
    if not inside.all():
        raise IndexError(f"{operation}: {int((~inside).sum())} unmasked lanes outside of every tensor argument")


def _check_bounds() -> None:
    def checked(name: str, mask_at: int | None) -> Callable[..., Any]:
        original = getattr(_Builder, name)

        def access(self: Any, *arguments: Any, **keywords: Any) -> Any:
            arguments = tuple(arguments)
            if mask_at is not None and isinstance(arguments[mask_at], _Handle):
                # Triton 3.9 hands over masks as int32 where a scalar took part in the comparison.
                mask = _Handle(np.asarray(arguments[mask_at].data).astype(bool), tl.int1)
                arguments = (*arguments[:mask_at], mask, *arguments[mask_at + 1 :])
            _check(arguments[0], None if mask_at is None else arguments[mask_at], name)
            return original(self, *arguments, **keywords)

        return access

    for name, mask_at in (
        ("create_masked_load", 1), ("create_masked_store", 2), ("create_load", None), ("create_store", None),
    ):  # fmt: skip
        if hasattr(_Builder, name):
            setattr(_Builder, name, checked(name, mask_at))


def install() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("these tests interpret the kernels: start them with TRITON_INTERPRET=1 (make test does)")
    _Builder.create_dot = _dot
    _install_conversions()
    _refuse_bf16_arithmetic()
    _let_scalars_bound_loops()
    _remember_arguments()
    _check_bounds()


install()

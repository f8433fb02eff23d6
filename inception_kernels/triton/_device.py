"""What the kernels share. Arithmetic is in float32: every load is upcast at once."""

import triton
import triton.language as tl


@triton.jit
def activate(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        u = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        u = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
        u = tl.minimum(u, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "elu":
        u = tl.where(u > 0.0, u, _expm1(tl.minimum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)))
    elif ACTIVATION == "silu":
        u = u / (1.0 + tl.exp(-u))
    return u


@triton.jit
def _expm1(u):
    # Kahan: the rounding error of exp(u) cancels in (e - 1) / log(e).
    e = tl.exp(u)
    less = e - 1.0
    inside = (less != 0.0) & (less != -1.0)
    ratio = u / tl.where(inside, tl.log(e), 1.0)
    return tl.where(less == 0.0, u, tl.where(less == -1.0, -1.0, less * ratio))


@triton.jit
def activation_gradient(grad, u, ACTIVATION: tl.constexpr):
    """grad * act'(u), with PyTorch's choice at the kinks and for NaN."""
    if ACTIVATION == "relu":
        grad = tl.where(u <= 0.0, 0.0, grad)
    elif ACTIVATION == "relu6":
        grad = tl.where((u <= 0.0) | (u >= 6.0), 0.0, grad)
    elif ACTIVATION == "elu":
        grad = grad * tl.where(u > 0.0, 1.0, tl.exp(tl.minimum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)))
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-u))
        grad = grad * sigmoid * (1.0 + u * (1.0 - sigmoid))
    return grad


@triton.jit
def load_vector(pointer, index, inside, GIVEN: tl.constexpr, OTHERWISE: tl.constexpr):
    """A [K] vector of any float dtype as float32; OTHERWISE where the argument was None."""
    vector = tl.full(index.shape, OTHERWISE, tl.float32)
    if GIVEN:
        vector = tl.load(pointer + index, mask=inside, other=0.0).to(tl.float32)
    return vector


@triton.jit
def merge_moments(mean_a, m2_a, count_a, mean_b, m2_b, count_b):
    """Chan, Golub and LeVeque: mean and sum of squared differences of two groups together."""
    count = count_a + count_b
    share = tl.where(count > 0.0, count_b / tl.where(count > 0.0, count, 1.0), 0.0)
    delta = mean_b - mean_a
    return mean_a + delta * share, m2_a + m2_b + delta * delta * count_a * share, count


@triton.jit
def in_elements(size, stride_a, stride_b, stride_c, UNIT: tl.constexpr):
    """What was passed in units (see unit_of), as numbers of elements that the compiler knows to be multiples."""
    return size * UNIT, stride_a * UNIT, stride_b * UNIT, stride_c * UNIT


@triton.jit
def advance(inner, middle, outer, STEP, INNER, MIDDLE):
    """The next of three nested counters that one loop goes through, the inner one by STEP: carries, not divisions."""
    inner += STEP
    carries = inner >= INNER
    inner = tl.where(carries, 0, inner)
    middle = tl.where(carries, middle + 1, middle)
    carries = middle >= MIDDLE
    return inner, tl.where(carries, 0, middle), tl.where(carries, outer + 1, outer)


def unit_of(*sizes: int) -> int:
    """8 where all sizes are multiples of 8: passed as multiples of it, the compiler knows, and accesses 16 bytes.

    Triton by itself looks for multiples of 16, which 728 is not; every access would be 2 bytes wide.
    """
    return 8 if all(size % 8 == 0 for size in sizes) else 1

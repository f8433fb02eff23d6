"""The pool that outputs of the CPU operators come from."""

from __future__ import annotations

import ctypes
import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import needs_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import inception_kernels as ik
from inception_kernels import memory

pytestmark = needs_kernels

MIB = 2**20
empty_bytes = torch.ops.inception_kernels._empty_bytes


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """The pool is on, also where a build (AddressSanitizer) starts without, and nothing of other tests waits in it."""
    gc.collect()
    memory.release()
    before = memory.keep(True)
    yield
    memory.keep(before)


def taken() -> int:
    return memory.use().taken


def held() -> int:
    return memory.use().taken + memory.use().kept


def test_memory_of_a_dead_tensor_goes_to_the_next():
    first = empty_bytes(3 * MIB)
    address = first.data_ptr()
    assert address % 64 == 0
    before = memory.use()
    del first
    after = memory.use()
    assert (before.taken - after.taken, after.kept - before.kept) == (3 * MIB + 64, 3 * MIB + 64)
    assert empty_bytes(3 * MIB).data_ptr() == address


def test_neighbours_that_die_are_one_block_again():
    start = taken()
    parts = [empty_bytes(8 * MIB) for _ in range(3)]
    lowest = min(part.data_ptr() for part in parts)
    whole = held()
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        for index in order:
            parts[index] = torch.empty(0)
        assert taken() == start
        one = empty_bytes(24 * MIB)  # fits the three only together
        assert one.data_ptr() == lowest
        assert held() == whole
        del one
        parts = [empty_bytes(8 * MIB) for _ in range(3)]


@given(st.lists(st.one_of(st.integers(16384, 3 * MIB), st.just(None)), min_size=1, max_size=60), st.randoms())
@settings(max_examples=60, deadline=None)
def test_living_tensors_never_share_memory(sizes, random):
    start = taken()
    alive: list[tuple[Tensor, int]] = []
    for number, size in enumerate(sizes):
        if size is None:
            if alive:
                tensor, value = alive.pop(random.randrange(len(alive)))
                assert bool((tensor == value).all())
        else:
            alive.append((empty_bytes(size).fill_(number), number))
    spans = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.numel()) for tensor, _ in alive)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(bool((tensor == value).all()) for tensor, value in alive)
    tensor = None
    alive.clear()
    assert taken() == start


def test_threads_share_the_pool():
    def work(value: int) -> None:
        for size in (20_000, 700_000, 5 * MIB, 90_000) * 20:
            tensor = empty_bytes(size).fill_(value)
            if not bool((tensor == value).all()):
                wrong.append(value)

    wrong: list[int] = []
    start = taken()
    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert taken() == start


def test_release_gives_back_what_nobody_has():
    at_first = held()
    alive, dead = empty_bytes(100 * MIB), empty_bytes(50 * MIB)
    with_both = held()
    del dead
    assert held() == with_both
    memory.release()
    assert at_first + 100 * MIB <= held() <= with_both - 50 * MIB
    assert alive.fill_(1).sum() == 100 * MIB
    del alive
    memory.release()
    assert held() <= at_first


def test_a_segment_that_is_not_needed_goes_back_by_itself():
    small = empty_bytes(MIB)  # its segment serves what follows
    dead = empty_bytes(50 * MIB)
    before = held()
    del dead
    for _ in range(2 * 8192):
        empty_bytes(16384)
    assert held() <= before - 50 * MIB
    del small


def test_what_waits_goes_back_where_the_system_has_no_more():
    code = """
import resource, sys, torch, inception_kernels as ik
empty_bytes = torch.ops.inception_kernels._empty_bytes
empty_bytes(20_000)
if sys.platform == "linux":  # macOS has the limit and does not enforce it: there, only the last request is too much
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + 700 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
first = empty_bytes(400 * 2**20)
del first
assert ik.memory.use().kept > 400 * 2**20
second = empty_bytes(500 * 2**20)
assert ik.memory.use().taken >= 500 * 2**20
try:
    empty_bytes(2**60)
except RuntimeError as error:
    print(f"not enough memory for an output [{2**60}] of {2**60} bytes" in str(error), second.numel())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout.split(), result.stderr) == (["True", str(500 * MIB)], "")


def test_small_tensors_and_a_pool_that_is_off_are_pytorchs():
    before = memory.use()
    small = empty_bytes(16383)
    assert memory.keep(False)
    large = empty_bytes(MIB)
    assert memory.use() == before
    assert large.untyped_storage().resize_(2 * MIB).nbytes() == 2 * MIB
    assert not memory.keep(True)
    again = empty_bytes(MIB)
    assert taken() == before.taken + MIB + 64
    assert (small.numel(), again.numel()) == (16383, MIB)
    with pytest.raises(TypeError, match="expected True or False, got 1"):
        memory.keep(1)


@pytest.mark.usefixtures("poisoned_memory")
def test_poisoned_memory_reaches_the_pool():
    one = empty_bytes(MIB).zero_()
    address = one.data_ptr()
    del one
    again = empty_bytes(MIB)
    assert again.data_ptr() == address
    assert bool(again.view(torch.float32).isnan().all())


def output() -> Tensor:
    x = torch.randn(2, 8, 40, 40).contiguous(memory_format=torch.channels_last)
    return ik.conv2d_bn_act(x, torch.randn(16, 8, 1, 3), padding=(0, 1), activation="relu")


def test_outputs_of_operators_are_from_the_pool():
    before = taken()
    y = output()
    assert taken() == before + y.numel() * 4 + 64
    assert y.is_contiguous(memory_format=torch.channels_last)
    del y
    assert taken() == before


def test_an_output_is_a_tensor_like_any_other():
    y = output()
    expected = y.detach().clone()
    buffer = io.BytesIO()
    torch.save(y, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), expected)
    view = y[1:, 2:5]
    storage = view.untyped_storage().data_ptr()
    del y
    assert view.untyped_storage().data_ptr() == storage  # a view keeps it alive
    assert torch.equal(view, expected[1:, 2:5])
    array = view.numpy()
    del view
    assert (array == expected[1:, 2:5].numpy()).all()
    shared = output()
    copy = shared.clone()
    shared.share_memory_()
    assert torch.equal(shared, copy)
    with pytest.raises(RuntimeError, match="not resizable"):
        output().resize_(4, 16, 40, 40)
    assert output().resize_(1, 16, 40, 40).shape == (1, 16, 40, 40)


def test_gradients_live_as_long_as_parameters_hold_them():
    weight = torch.nn.Parameter(torch.randn(64, 64, 3, 3))
    x = torch.randn(1, 64, 20, 20).contiguous(memory_format=torch.channels_last)
    before = taken()
    ik.conv2d_bn_act(x, weight, padding=1).sum().backward()
    assert weight.grad is not None
    expected = weight.grad.clone()
    assert taken() > before
    for _ in range(3):
        ik.conv2d_bn_act(x, weight.detach().clone().requires_grad_(), padding=1).sum().backward()
    assert torch.equal(weight.grad, expected)
    weight.grad = None
    assert taken() == before


def test_a_fork_while_other_threads_allocate():
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():  # most of the time behind the pool's lock: the system gives and takes segments there
            tensors = [empty_bytes(40 * MIB) for _ in range(16)]
            del tensors
            memory.release()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:  # only the pool: PyTorch's threads do not survive a fork
                ctypes.memset(empty_bytes(5 * MIB).data_ptr(), 1, 5 * MIB)
                os._exit(0)
            deadline = time.monotonic() + 30
            while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    pytest.fail("the child waits for a lock of a thread that it does not have")
                time.sleep(0.001)
            assert status == (child, 0)
    finally:
        stop.set()
        thread.join()


def test_tensors_that_outlive_the_interpreter():
    code = """
import torch, inception_kernels, sys
kept = torch.ops.inception_kernels._empty_bytes(2**20)
sys.modules["holder"] = kept  # dies with the interpreter
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")


def test_compiled_functions_return_tensors_of_the_pool():
    weight = torch.randn(16, 8, 3, 3)

    def function(x: Tensor) -> Tensor:
        return F.relu(ik.conv2d_bn_act(x, weight, padding=1)) + 1

    x = torch.randn(2, 8, 24, 24).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(x), function(x))

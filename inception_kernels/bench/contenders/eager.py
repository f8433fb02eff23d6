"""Eager PyTorch, contiguous or channels-last, and under a CUDA graph."""

from __future__ import annotations

import torch

from inception_kernels.bench.contenders.base import Baseline, Prepared
from inception_kernels.bench.problem import Problem, Step


class Eager(Baseline):
    def __init__(self, name: str = "eager", channels_last: bool = False) -> None:
        self.name = name
        self.channels_last = channels_last

    def prepare(self, problem: Problem) -> Prepared:
        step = module_step(problem, self.channels_last)
        return Prepared(step, step.outputs, layout_name(self.channels_last))


class CudaGraph(Baseline):
    """The channels-last step captured once and replayed: no launch overhead."""

    name = "cuda_graph"

    def prepare(self, problem: Problem) -> Prepared:
        return captured(problem, module_step(problem, channels_last=True))


def captured(problem: Problem, step: Step) -> Prepared:
    """The replay of a CUDA graph of one step."""
    with problem.mode():
        graph, y = _capture(step)
    leaves = (step.x, *step.parameters) if problem.case.training else ()

    def outputs() -> list[torch.Tensor]:
        graph.replay()
        torch.cuda.synchronize()
        return [y.detach().clone(), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)]

    return Prepared(graph.replay, outputs, layout_name(True))


def _capture(step: Step) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    return graph, y


def module_step(problem: Problem, channels_last: bool) -> Step:
    module = problem.copy_of_module(channels_last)
    return problem.step(module, problem.copy_of_input(channels_last), tuple(module.parameters()))


def layout_name(channels_last: bool) -> str:
    return "channels-last" if channels_last else "contiguous"

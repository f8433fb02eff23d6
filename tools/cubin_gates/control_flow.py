"""Natural loops of a kernel, and the path of one iteration that costs most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tools.cubin_gates.disassembly import Instruction, Kernel

_ENDS = {"EXIT", "RET", "BRX", "JMX", "KILL", "BPT"}
_BRANCHES = {"BRA", "JMP"}
# A loop of a few such instructions polls a barrier or a resource, it does no work.
_SPINS = ("SYNCS.PHASECHK", "USETMAXREG.TRY_ALLOC", "ATOM", "NANOSLEEP")
_LONGEST_SPIN = 12


@dataclass
class Block:
    first: int
    last: int  # inclusive
    successors: list[int] = field(default_factory=list)


@dataclass
class Loop:
    header: int
    latch: int  # the block of the backward branch
    blocks: frozenset[int]
    inner: list[Loop] = field(default_factory=list)

    def own_blocks(self) -> frozenset[int]:
        return self.blocks - frozenset(block for loop in self.inner for block in loop.blocks)


@dataclass
class Flow:
    kernel: Kernel
    blocks: list[Block]
    order: list[int]  # reverse postorder of the reachable blocks
    loops: list[Loop]  # outer before inner
    spins: frozenset[int]  # blocks that poll

    def instructions(self, block: int) -> list[Instruction]:
        if block in self.spins:
            return []
        found = self.blocks[block]
        return [each for each in self.kernel.instructions[found.first : found.last + 1] if each.is_executed]

    def heaviest_path(self, loop: Loop, weight: Callable[[Instruction], tuple[float, ...]]) -> list[Instruction]:
        """The instructions of one iteration, without those of inner loops, along the heaviest path to a latch.

        Weights are compared like tuples, after adding them up along the path.
        """
        own = loop.own_blocks()
        best: dict[int, tuple[tuple[float, ...], list[int]]] = {}
        for block in reversed([each for each in self.order if each in loop.blocks]):
            # Successors that are not there yet are back edges.
            tails = [best[each] for each in self.blocks[block].successors if each in best]
            total, path = max(tails, default=((), []))
            if block in own:
                total = _add([total, *map(weight, self.instructions(block))])
                path = [block, *path]
            best[block] = (total, path)
        return [each for block in best[loop.header][1] for each in self.instructions(block)]


def analyse(kernel: Kernel) -> Flow:
    blocks = _blocks(kernel)
    order = _reverse_postorder(blocks)
    dominators = _immediate_dominators(blocks, order)
    bodies: dict[int, tuple[int, set[int]]] = {}
    predecessors = _predecessors(blocks, order)
    for block in order:
        for header in blocks[block].successors:
            if _dominates(header, block, dominators):
                latch, body = bodies.get(header, (block, {header}))
                bodies[header] = (max(latch, block), body | _body(header, block, predecessors))
    loops = [Loop(header, latch, frozenset(body)) for header, (latch, body) in bodies.items()]
    flow = Flow(kernel, blocks, order, [], frozenset())
    spins = [loop for loop in loops if _is_spin(flow, loop)]
    flow.loops = _nest([loop for loop in loops if loop not in spins and not _runs_once(flow, loop)])
    polling = {block for loop in spins for block in loop.blocks}
    ways_back = {
        block
        for block in order
        if predecessors[block] and set(predecessors[block]) <= polling and blocks[block].first == blocks[block].last
    }
    flow.spins = frozenset(polling | ways_back)
    return flow


def _blocks(kernel: Kernel) -> list[Block]:
    instructions = kernel.instructions
    starts = {0, *(index for index in kernel.labels.values() if index < len(instructions))}
    for index, each in enumerate(instructions):
        if each.name in _ENDS | _BRANCHES and index + 1 < len(instructions):
            starts.add(index + 1)
    firsts = sorted(starts)
    number = {first: index for index, first in enumerate(firsts)}
    blocks = []
    for index, first in enumerate(firsts):
        last = firsts[index + 1] - 1 if index + 1 < len(firsts) else len(instructions) - 1
        block = Block(first, last)
        end = instructions[last]
        falls_through = True
        if end.name in _BRANCHES and end.target in kernel.labels and end.is_executed:
            target = kernel.labels[end.target]
            block.successors += [number[target]] if target in number else []
            falls_through = _is_conditional(end)
        elif end.name in _ENDS:
            falls_through = bool(end.predicate)
        if falls_through and index + 1 < len(firsts) and index + 1 not in block.successors:
            block.successors.append(index + 1)
        blocks.append(block)
    return blocks


def _is_conditional(branch: Instruction) -> bool:
    operands = branch.text.split()
    return bool(branch.predicate) or ".ANY" in branch.opcode or ".DIV" in branch.opcode or len(operands) > 2


def _reverse_postorder(blocks: list[Block]) -> list[int]:
    seen, order = {0}, []
    stack = [(0, iter(blocks[0].successors))]
    while stack:
        block, successors = stack[-1]
        following = next((each for each in successors if each not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].successors)))
    return order[::-1]


def _predecessors(blocks: list[Block], order: list[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for each in blocks[block].successors:
            found[each].append(block)
    return found


def _immediate_dominators(blocks: list[Block], order: list[int]) -> dict[int, int]:
    """Cooper, Harvey and Kennedy's iteration."""
    rank = {block: index for index, block in enumerate(order)}
    predecessors = _predecessors(blocks, order)
    dominators = {order[0]: order[0]}

    def common(first: int, second: int) -> int:
        while first != second:
            if rank[first] > rank[second]:
                first = dominators[first]
            else:
                second = dominators[second]
        return first

    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [each for each in predecessors[block] if each in dominators]
            new = known[0]
            for each in known[1:]:
                new = common(new, each)
            if dominators.get(block) != new:
                dominators[block] = new
                changed = True
    return dominators


def _dominates(header: int, block: int, dominators: dict[int, int]) -> bool:
    while block != header:
        if dominators[block] == block:
            return False
        block = dominators[block]
    return True


def _body(header: int, latch: int, predecessors: dict[int, list[int]]) -> set[int]:
    body, pending = {header}, [latch]
    while pending:
        block = pending.pop()
        if block not in body:
            body.add(block)
            pending += predecessors[block]
    return body


def _is_spin(flow: Flow, loop: Loop) -> bool:
    body = [each for block in loop.blocks for each in flow.instructions(block)]
    is_short = len(body) <= _LONGEST_SPIN
    return is_short and (len(body) == 1 or any(each.opcode.startswith(_SPINS) for each in body))


def _runs_once(flow: Flow, loop: Loop) -> bool:
    """The loop around an instruction with uniform operands, one turn per distinct value, of which there is one."""
    return ".ANY" in flow.kernel.instructions[flow.blocks[loop.latch].last].opcode


def _nest(loops: list[Loop]) -> list[Loop]:
    ordered = sorted(loops, key=lambda loop: (-len(loop.blocks), loop.header))
    for index, loop in enumerate(ordered):
        parents = [outer for outer in ordered[:index] if loop.blocks < outer.blocks]
        if parents:
            min(parents, key=lambda outer: len(outer.blocks)).inner.append(loop)
    return ordered


def _add(weights: list[tuple[float, ...]]) -> tuple[float, ...]:
    length = max(map(len, weights))
    return tuple(sum(each[i] for each in weights if i < len(each)) for i in range(length))

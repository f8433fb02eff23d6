"""What the compiler made of the CUDA kernels, read from cubins without a GPU.

Registers, spills, shared memory, occupancy, the instructions that a kernel is meant to contain, and per main loop a
lower bound in clocks for every execution pipe. `python -m tools.cubin_gates --help`.
"""

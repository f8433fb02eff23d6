"""Builds the package's C++ and CUDA extensions; used by pip (through `hooks`) and by setup.py."""

"""The AMX kernels on processors without AMX."""

"""The operators as Triton kernels; imported when the backend is first asked for, because Triton is slow to import."""

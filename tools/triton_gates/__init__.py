"""What becomes of the Triton kernels: every configuration that may be chosen, compiled without a GPU and read."""

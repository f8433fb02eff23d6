"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

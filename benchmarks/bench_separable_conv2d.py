"""`separable_conv2d` at the layer shapes of the two networks."""

OPERATOR = "separable_conv2d"


def bench_separable_conv2d(measure, case, contender):
    measure(case, contender)

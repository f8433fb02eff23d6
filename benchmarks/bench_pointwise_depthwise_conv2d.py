"""`pointwise_depthwise_conv2d` at the shapes of the networks' separable convolutions."""

OPERATOR = "pointwise_depthwise_conv2d"


def bench_pointwise_depthwise_conv2d(measure, case, contender):
    measure(case, contender)

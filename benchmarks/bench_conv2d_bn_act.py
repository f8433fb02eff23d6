"""`conv2d_bn_act` at the layer shapes of the two networks."""

OPERATOR = "conv2d_bn_act"


def bench_conv2d_bn_act(measure, case, contender):
    measure(case, contender)

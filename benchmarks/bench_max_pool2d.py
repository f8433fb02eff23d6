"""`max_pool2d` at the shapes of the max pools of the two networks."""

OPERATOR = "max_pool2d"


def bench_max_pool2d(measure, case, contender):
    measure(case, contender)

"""`avg_pool2d` at the shapes of the average pools of the two networks."""

OPERATOR = "avg_pool2d"


def bench_avg_pool2d(measure, case, contender):
    measure(case, contender)

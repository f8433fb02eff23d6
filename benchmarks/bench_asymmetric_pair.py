"""`asymmetric_pair` at the layer shapes of the two networks."""

OPERATOR = "asymmetric_pair"


def bench_asymmetric_pair(measure, case, contender):
    measure(case, contender)

"""Whole networks, plain and swapped."""


def bench_networks(measure, case, contender):
    measure(case, contender)

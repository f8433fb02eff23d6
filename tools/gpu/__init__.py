"""Everything that needs a GPU, in one command: `make gpu OUT=folder`, or `python -m tools.gpu folder --help`.

Steps (steps.py) run one after the other, each in a process of its own with a time limit, the most valuable first, and
write their results as they come: whatever fails, hangs or does not fit the time costs nothing of the others.
`--rehearse` runs all of it on a machine without a GPU, on tiny shapes; its numbers mean nothing and are not kept.
"""

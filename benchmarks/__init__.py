"""What the budgets are held to: six benchmarks, each beside what people use today. `python -m benchmarks --help`.

Contestants take turns within one run, in an order that moves by one each round, so that a machine that gets slower
hurts all of them alike. What is kept is every single measurement (`record.py`); medians, spreads, ratios and verdicts
are made from those when they are shown. The pods, groups and engines are those of the tests.
"""

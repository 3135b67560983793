"""The paper's ablations: the runs of each table, how they are trained and evaluated, and the table.

It imports training and evaluation; the command `ablate` alone imports it.
"""

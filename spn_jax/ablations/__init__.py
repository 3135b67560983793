"""Trains, evaluates and tabulates the paper's ablations.

It imports training and evaluation; the command `ablate` alone imports it.
"""

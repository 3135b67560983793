"""Scores pictures (`image`) and sets of features (`sets`): arrays in, numbers out.

It imports `errors` and nothing else of ours; evaluation imports it.
"""

"""Scores: of pictures (`image`) and of sets of features (`sets`). Arrays in, numbers out.

It imports `errors` and nothing else of ours; evaluation imports it.
"""

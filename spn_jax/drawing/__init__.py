"""Draws arrays as pictures: grids, curves, clusters, colours and labelled pages.

It imports `errors` and nothing else of ours; filling, evaluation, views and the web page import it.
"""

"""Draws pictures of what a model does, one module for each kind of picture.

Each module has `add`, which declares its options, and `draw`. The command `visualize` imports them;
they import evaluation, filling, drawing and what these use.
"""

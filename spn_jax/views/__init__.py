"""Pictures of what a model does, a module a kind of picture.

Each offers `add`, its options, and `draw`. The command `visualize` imports them; they import
evaluation, filling, drawing and what these use.
"""

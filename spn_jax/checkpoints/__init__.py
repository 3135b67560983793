"""Stores parameters on disk: checkpoints, small model files, released and fixed networks' weights.

`store` holds checkpoints of runs, `parameters` names arrays in trees, `released` converts files of
the released programs, and `weights` reads networks that are used but not trained. It builds models,
so it imports `models`, `config` and `runtime`. Training, filling, evaluation and all that builds on
them import it.
"""

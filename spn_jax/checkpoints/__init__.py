"""Parameters on disk: checkpoints of runs (`store`), names of arrays in trees (`parameters`), files
of released programs (`released`) and of networks that are used and not trained (`weights`).

It builds models, so it imports `models`, `config` and `runtime`; training, filling, evaluation and
what stands on them import it.
"""

"""Defines all networks: SPN, its discriminators, and the fixed networks of losses and scores.

It imports `config` alone, and no data loader. Checkpoints, training, filling and all that builds on
them import it.
"""

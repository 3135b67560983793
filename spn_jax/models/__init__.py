"""What has parameters: the SPN, its discriminators, and the fixed networks of losses and scores.

It imports `config` alone, and no data loader; checkpoints, training, filling and what stands on
them import it.
"""

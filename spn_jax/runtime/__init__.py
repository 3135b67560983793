"""What programs stand on: the device and its memory, where arrays live, whole files and locked
folders, logs and progress lines.

Every room may import it, but `data`, which knows no JAX, takes `files` and `progress` alone. It
imports `errors` and nothing else of ours.
"""

"""Serves all programs: devices, memory, sharding, file writing, folder locks, logs and progress.

Every package may import it, but `data`, which does not use JAX, imports only `files` and
`progress`. It imports nothing else of ours but `errors`.
"""

"""Reads, writes and batches photos, masks and teacher features (NumPy, Grain, Pillow, OpenCV).

Nothing in it imports JAX: reader processes start fast and hold no device. It imports `config`,
`errors`, `runtime.files` and `runtime.progress`; the packages that run programs import it.
"""

"""Photos, masks and the teacher's features, read, written and brought into batches with NumPy,
Grain, Pillow and OpenCV.

Nothing in it imports JAX: reader processes start fast and hold no device. It imports `config`,
`errors`, `runtime.files` and `runtime.progress`; the rooms of programs import it.
"""

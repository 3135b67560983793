"""Holes in people's photos: photos of any format and size, the windows of them that the network
sees, completions in 8 bits, folders of photos, models as archives that run elsewhere, and networks
in .onnx files, ours and anybody's.

It imports models, checkpoints, drawing, runtime and `data`; evaluation takes completions from it,
the commands and the web page the rest.
"""

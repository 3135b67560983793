"""Fills holes in photos of any format and size, with checkpoints, archives or .onnx files.

Its modules read and write photos, plan the windows that a network sees, make 8-bit completions, and
fill folders of photos. It imports models, checkpoints, drawing, runtime and `data`; evaluation
takes completions from it, the commands and the web page the rest.
"""

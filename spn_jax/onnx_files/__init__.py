"""Exports a model to run outside Python: as .onnx files, and as a web page that runs one.

    graph.py    nodes and weights of a graph, in float32 or float16
    network.py  the layers of `spn_jax.models` as nodes
    write.py    a checkpoint's model as one .onnx file
    photo.py    the same with everything around it: a photo of any size in, the completed photo out
    web.py      the web page without a server, from the scripts in static/

Only the command `spn_jax.export` imports from here. It needs the package `onnx`, of the extra
`onnx`. `spn_jax.filling.onnx_network` reads such files, ours and anybody's.
"""

"""A model as a program outside Python: .onnx files, and a web page that runs one.

    graph.py    nodes and weights of a graph, in float32 or float16
    network.py  the layers of `spn_jax.models` as nodes
    write.py    a checkpoint's model as one .onnx file
    photo.py    the same with everything around it: a photo of any size in, the completed photo out
    web.py      the web page without a server, from the scripts in static/

The command `spn_jax.export` imports from here, nobody else. The package `onnx` is needed, of the
extra `onnx`. Files are read by `spn_jax.filling.onnx_network`, ours and anybody's.
"""

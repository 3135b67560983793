"""ONNX files, written and read: the model as a program of its own, and other people's inpainting networks in our windows.

    graph.py     nodes and weights of a graph, in float32 or float16
    network.py   the layers of `spn_jax.models` as nodes
    write.py     a checkpoint's model as one .onnx file
    photo.py     the same with everything around it: a photo of any size in, the completed photo out
    contract.py  what a file's inputs and outputs mean: ours, LaMa's, MI-GAN's, or any that a JSON file beside it describes
    foreign.py   a network in a file, as `spn_jax.inpainter` calls it
    options.py   --checkpoint or --model, for commands that take either
    web.py       the web page without a server, from the scripts in static/

Commands (`export`, `predict`, `demo`, `evaluate`) and `inpainter` may import from here; models, data and training may not. The package
`onnx` is imported only by what writes, `onnxruntime` only by what reads; both are the extra `onnx`.
"""

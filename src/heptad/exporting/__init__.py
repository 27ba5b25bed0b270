"""Runs as single files that can be used elsewhere, compared with the run before they are kept.

`document` is what every such file carries beside the network, `onnx_file` and `safetensors_file`
are the formats, `export` writes and compares, `loading` reads them back.
"""

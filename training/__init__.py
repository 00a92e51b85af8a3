"""Foldserve's training side: train, fold BatchNorm, export ONNX, prove that nothing changed, publish.

One model: recipe -> train -> export -> fold -> verify -> publish. `training/pipeline.py` is the file to read first.
"""

"""Foldserve's service: answers Open Inference Protocol requests from a model repository with ONNX Runtime.

One request: http_api -> decode -> validate -> scheduler -> batch -> session -> batch -> encode.
"""

__version__ = "0.1.0"

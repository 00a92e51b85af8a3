"""The one way in which every rival opens the model, with the options that foldserve gives ONNX Runtime.

Which model and how, each rival is told by its environment: SERVE_MODEL (a file), SERVE_THREADS (of one run).
"""

from __future__ import annotations

import os

import onnxruntime


def open_session(model: str = "", threads: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ["SERVE_THREADS"])
    options.inter_op_num_threads = 1
    # A pool that spins after its run takes a core from the client and from the server's own loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = model or os.environ["SERVE_MODEL"]
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def row_shape(session: onnxruntime.InferenceSession) -> tuple[int, ...]:
    return tuple(session.get_inputs()[0].shape[1:])

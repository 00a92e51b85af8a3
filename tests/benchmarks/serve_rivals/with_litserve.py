"""LitServe with dynamic batching: `python with_litserve.py PORT TIMEOUT_S`. One HTTP process and one worker a route.

Batches of up to SERVE_ROWS; no waiting for one to fill (batch_timeout 0, its default); its fast queue, which its
documentation recommends for many requests. Numbers travel as raw bytes. (LitServe reads annotations as they are: they
must not be put off with `from __future__ import annotations`.)
"""

import os
import sys
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from session import open_session, row_shape


class OfJson(litserve.LitAPI):
    def setup(self, device):
        self.session = open_session()
        self.shape = row_shape(self.session)

    def decode_request(self, request):
        return np.array(request["input"], dtype=np.float32).reshape(self.shape)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.session.run(None, {"x": x})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"output": output.tolist()}


class OfBinary(OfJson):
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]):
        return np.frombuffer(request, dtype=np.float32).reshape(self.shape)

    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    rows = int(os.environ["SERVE_ROWS"])
    apis = [OfJson(max_batch_size=rows, api_path="/json"), OfBinary(max_batch_size=rows, api_path="/binary")]
    server = litserve.LitServer(apis, accelerator="cpu", timeout=float(sys.argv[2]), fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")

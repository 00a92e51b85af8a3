"""mosec with dynamic batching: `python with_mosec.py --address 127.0.0.1 --port PORT --timeout MS --capacity N`.

One worker a route. Batches of up to SERVE_ROWS, and the shortest time that it can wait for one to fill, 1 ms: its
default of 10 ms would answer no more than 100 requests a second of a single client. Values travel as its documentation
shows: JSON by its own serialisation, numbers as raw bytes.
"""

from __future__ import annotations

import os

import numpy as np
from mosec import Server, Worker
from session import open_session, row_shape


class OfJson(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.session = open_session()

    def forward(self, data):
        x = np.array([body["input"] for body in data], dtype=np.float32)
        (y,) = self.session.run(None, {"x": x})
        return [{"output": row} for row in y.tolist()]


class OfBinary(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.session = open_session()
        self.shape = row_shape(self.session)

    def deserialize(self, data):
        return np.frombuffer(data, dtype=np.float32).reshape(self.shape)

    def serialize(self, data):
        return data.tobytes()

    def forward(self, data):
        (y,) = self.session.run(None, {"x": np.stack(data)})
        return list(y)


if __name__ == "__main__":
    rows = int(os.environ["SERVE_ROWS"])
    server = Server()
    server.append_worker(OfJson, max_batch_size=rows, max_wait_time=1, route="/json")
    server.append_worker(OfBinary, max_batch_size=rows, max_wait_time=1, route="/binary")
    server.run()

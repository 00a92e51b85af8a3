"""FastAPI and session.run, as one writes it in ten minutes: `python plain_fastapi.py PORT def|async`. One process.

def: as its documentation has it, a pydantic model, and functions that block are `def`, which run in the thread pool.
async: what is faster for a small model and holds up everybody for a large one: nothing declared, session.run on the
event loop. Both with uvloop and httptools, without an access log.
"""

import sys
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, Request, Response
from pydantic import BaseModel
from session import open_session, row_shape

app = FastAPI()
session = open_session()
shape = row_shape(session)


class Row(BaseModel):
    input: list[float]


class Answer(BaseModel):
    output: list[float]


def run(x):
    return session.run(None, {"x": x.reshape(1, *shape)})[0][0]


def answer_json(row: Row) -> Answer:
    return Answer(output=run(np.array(row.input, dtype=np.float32)).tolist())


def answer_binary(body: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
    return Response(run(np.frombuffer(body, dtype=np.float32)).tobytes(), media_type="application/octet-stream")


async def answer_json_at_once(request: Request):
    body = await request.json()
    return {"output": run(np.array(body["input"], dtype=np.float32)).tolist()}


async def answer_binary_at_once(request: Request):
    y = run(np.frombuffer(await request.body(), dtype=np.float32))
    return Response(y.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    of_json, of_binary = {
        "def": (answer_json, answer_binary),
        "async": (answer_json_at_once, answer_binary_at_once),
    }[sys.argv[2]]
    app.post("/json")(of_json)
    app.post("/binary")(of_binary)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")

"""Everything that KServe's REST client can ask, in both of its protocols; prints what it made of the answers, as JSON.

Runs in the environment that `make test-clients` makes, in which nothing of ours is installed; started by
test_kserve_client.py with the service's address as its argument.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

ROWS = np.array([[1.5, -2], [3, 4.25]], np.float32)


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer, or the words of the exception."""
    try:
        return await call
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def request(*, binary: bool, identifier: str | None = None) -> InferRequest:
    tensor = InferInput("x", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    parameters = {"binary_data_output": binary}
    return InferRequest("double", [tensor], request_id=identifier, parameters=parameters)


async def infer(client: InferenceRESTClient, url: str, data: Any, model: str = "double") -> Any:
    answer = await client.infer(url, data, model_name=model)
    return {
        "model_name": answer.model_name,
        "id": answer.id,
        "outputs": {one.name: [one.datatype, list(one.shape), one.as_numpy().tolist()] for one in answer.outputs},
    }


async def ask(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found["v2 live"] = await outcome(client.is_server_live(url))
        found["v2 ready"] = await outcome(client.is_server_ready(url))
        found["v2 model ready"] = await outcome(client.is_model_ready(url, "double"))
        found["v2 broken model ready"] = await outcome(client.is_model_ready(url, "broken"))
        found["v2 json"] = await outcome(infer(client, url, request(binary=False)))
        found["v2 binary"] = await outcome(infer(client, url, request(binary=True, identifier="q")))
        found["v2 unknown model"] = await outcome(infer(client, url, request(binary=False), model="none"))
        misfit = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
        found["v2 misfit"] = await outcome(infer(client, url, misfit))
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        found["v1 live"] = await outcome(client.is_server_live(url))
        found["v1 model ready"] = await outcome(client.is_model_ready(url, "double"))
        found["v1 broken model ready"] = await outcome(client.is_model_ready(url, "broken"))
        rows = {"instances": [[1.5, -2.0], [3.0, 4.0]]}
        found["v1 predict"] = await outcome(client.infer(url, rows, model_name="double"))
        found["v1 unknown model"] = await outcome(client.infer(url, rows, model_name="none"))
    return found


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(asyncio.run(ask(sys.argv[1]))))

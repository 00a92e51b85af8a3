"""/docs works without internet access and shows how to infer, with an example that works when pasted."""

from __future__ import annotations

import re
from typing import Any

from tests.end_to_end.material import DIGITS
from tests.end_to_end.running import Foldserve

REFERENCE = re.compile(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""")


def test_page_refers_to_nothing_outside_and_all_it_refers_to_is_there(service: Foldserve) -> None:
    answer = service.get("/docs")
    assert answer.status == 200
    html = answer.body.decode()
    references = REFERENCE.findall(html)
    assert len(references) >= 2, "the pattern no longer finds what the page loads"
    assert [one for one in references if re.match(r"(https?:)?//", one)] == []
    assert not re.search(r"https?://", html)
    for reference in references:
        loaded = service.get(reference)
        assert loaded.status == 200, reference
        if loaded.headers["content-type"].startswith("text/css"):
            assert not re.search(rb"(@import|url\()\s*['\"]?(https?:)?//", loaded.body)


def test_document_describes_every_route_of_the_protocol(service: Foldserve) -> None:
    paths = {re.sub(r"\{[^}]+\}", "{}", path) for path in service.get("/openapi.json").json()["paths"]}
    model = "/v2/models/{}"
    version = f"{model}/versions/{{}}"
    expected = {"/v2", "/v2/health/live", "/v2/health/ready"}
    expected |= {one + tail for one in (model, version) for tail in ("", "/ready", "/infer")}
    assert expected <= paths


def test_infer_example_works_when_pasted(service: Foldserve) -> None:
    document = service.get("/openapi.json").json()
    (path,) = [one for one in document["paths"] if one.endswith("/infer") and "versions" not in one]
    operation = document["paths"][path]["post"]
    examples = request_examples(operation)
    assert examples, "the infer route shows no example request"
    name = next(one for one in operation["parameters"] if one["in"] == "path")
    suggested = name.get("example", name["schema"].get("example", DIGITS))
    assert suggested in examples, "the model that the page suggests has no example"
    for model, example in examples.items():
        answer = service.post(path.replace("{" + name["name"] + "}", model), example)
        assert answer.status == 200, answer.body
        assert answer.json()["outputs"]


def request_examples(operation: dict[str, Any]) -> dict[str, Any]:
    """Every JSON request body that the page offers, by the model that it is for."""
    media = operation["requestBody"]["content"]["application/json"]
    return {model: one["value"] for model, one in media["examples"].items()}

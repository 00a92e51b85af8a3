"""`/metrics`, statistics and `Server-Timing` after mixed traffic, against what the clients counted; the dashboard."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.queueing import Sender, body, infer, save_queueing_models, slow_when_told
from tests.end_to_end.running import Answer, Foldserve, foldserve
from tests.service.handmade import publish

MODELS = ("picky", "slow", "small")
MAX_BODY_BYTES = 100_000
INVENTED = "invented"
# Turns that take about a second: what is sent meanwhile waits, on any machine.
LONG = 800_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foldserve]:
    repository = tmp_path_factory.mktemp("models")
    save_queueing_models(repository, slow_when_told(), slow_when_told())
    publish(repository)
    limits = ("--max-body-bytes", str(MAX_BODY_BYTES), "--server-timing")
    with foldserve("--model-repository", repository, *limits) as running:
        yield running


class Metrics:
    """One reading of `/metrics`."""

    def __init__(self, service: Foldserve) -> None:
        answer = service.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.body.decode()
        # The client's reader puts `_total` behind every counter's name; Prometheus itself takes names as they are.
        names = set(re.findall(r"^(\w+)[ {]", self.text, re.M))
        self.samples = [
            one if one.name in names else one._replace(name=one.name.removesuffix("_total"))
            for family in text_string_to_metric_families(self.text)
            for one in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, f"no {name} with {labels}"
        return sum(found)

    def by(self, label: str, name: str) -> dict[str, float]:
        found: dict[str, float] = Counter()
        for one in self.samples:
            if one.name == name:
                found[one.labels[label]] += one.value
        return dict(found)


def chunked(service: Foldserve, content: bytes, model: str = "picky") -> Answer:
    """Through the ASGI route: the lane takes no chunks."""
    # urllib sends an iterable in chunks.
    return service.request("POST", f"/v2/models/{model}/infer", iter([content]))  # type: ignore[arg-type]


def mixed_traffic(service: Foldserve) -> dict[str, Counter[int]]:
    """By model, what the clients were answered: status to requests. One more of `slow` hangs up while it waits."""
    told: dict[str, Counter[int]] = {name: Counter() for name in (*MODELS, INVENTED, "linear")}

    def note(model: str, *answers: Answer) -> None:
        told[model].update(answer.status for answer in answers)

    def wait_until_busy(model: str) -> None:
        """What has little time is tried by an idle model, and refused behind what runs."""

        def refused() -> bool:
            note(model, answer := infer(service, [1, 2], model=model, timeout=1000))
            return answer.status == 503

        service.wait_until(refused, "busy")

    note("picky", *(infer(service, [number, 0], model="picky") for number in range(12)))
    note("picky", *(chunked(service, body([number, 0], 0)) for number in range(5)))
    note("picky", *(service.request("POST", "/v2/models/picky/infer", b"{") for _ in range(3)))
    note("picky", service.request("POST", "/v2/models/picky/versions/7/infer", body([1, 2], 0)))
    note("picky", service.request("POST", "/v2/models/picky/infer", bytes(MAX_BODY_BYTES + 1)))
    note(INVENTED, *(infer(service, [1, 2], model=INVENTED) for _ in range(2)), chunked(service, b"{}", INVENTED))
    linear = {"instances": [[1.0, 0.0], [0.0, 1.0]]}
    note("linear", service.post("/v1/models/linear:predict", linear), service.post("/v1/models/linear:predict", {}))

    # One runs, and others wait behind it: one of them is guilty, one's time is too short, and one goes away.
    running = Sender(service, body([LONG, 2], 0), chunked=False)
    wait_until_busy("slow")
    leaving = Sender(service, body([1, 2], 0), chunked=False)
    service.wait_until(lambda: Metrics(service).sum("foldserve_queue_requests", model="slow") == 1, "queueing")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(infer, service, [1, 2], index) for index in (0, 1, 7, 0)]
        leaving.hang_up()
        note("slow", *(one.result() for one in waiting))
    told["slow"][running.status()] += 1
    with ThreadPoolExecutor(9) as pool:
        holding = pool.submit(infer, service, [LONG, 2], model="small")
        wait_until_busy("small")
        note("small", *pool.map(lambda _: infer(service, [1, 2], model="small"), range(8)), holding.result())
    return told


@pytest.fixture(scope="module")
def told(service: Foldserve) -> dict[str, Counter[int]]:
    return mixed_traffic(service)


@pytest.fixture(scope="module")
def metrics(service: Foldserve, told: dict[str, Counter[int]]) -> Metrics:
    return Metrics(service)


def statistics(service: Foldserve, model: str) -> dict[str, Any]:
    (found,) = service.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return dict(found)


def test_traffic_was_mixed(told: dict[str, Counter[int]]) -> None:
    assert told["picky"] == {200: 17, 400: 3, 404: 1, 413: 1}
    assert told["slow"].keys() == told["small"].keys() | {400} == {200, 400, 503}
    assert told["slow"][400] == 1
    assert told["small"][503] >= 6
    assert told[INVENTED] == {404: 3}
    assert told["linear"] == {200: 1, 400: 1}


@pytest.mark.parametrize("model", [*MODELS, "linear"])
def test_answers_are_counted_exactly_and_alike_everywhere(
    model: str, service: Foldserve, told: dict[str, Counter[int]], metrics: Metrics
) -> None:
    answered = told[model][200]
    stats = statistics(service, model)
    success = stats["inference_stats"]["success"]
    assert metrics.sum("nv_inference_request_success", model=model) == success["count"] == answered
    assert metrics.sum("nv_inference_request_duration_us", model=model) == pytest.approx(success["ns"] / 1e3, abs=1)
    assert metrics.sum("foldserve_request_seconds_count", model=model) == answered
    for stage in ("decode", "queue", "compute", "encode"):
        assert metrics.sum("foldserve_stage_seconds_count", model=model, stage=stage) == answered
    assert metrics.sum("nv_inference_count", model=model) == stats["inference_count"]
    assert metrics.sum("foldserve_batch_rows_sum", model=model) == stats["inference_count"]
    assert metrics.sum("nv_inference_exec_count", model=model) == stats["execution_count"]
    assert metrics.sum("foldserve_batch_rows_count", model=model) == stats["execution_count"]


@pytest.mark.parametrize("model", [*MODELS, "linear"])
def test_stages_add_up_to_the_whole(model: str, metrics: Metrics) -> None:
    assert metrics.sum("foldserve_stage_seconds_sum", model=model) == pytest.approx(
        metrics.sum("foldserve_request_seconds_sum", model=model), rel=1e-6
    )


def test_every_refusal_has_its_reason(told: dict[str, Counter[int]], metrics: Metrics) -> None:
    reasons = Counter(metrics.by("reason", "foldserve_refusals_total"))
    statuses: Counter[int] = sum(told.values(), Counter())
    assert reasons["invalid_request"] == statuses[400]
    assert reasons["not_found"] == statuses[404]
    assert reasons["too_large"] == statuses[413]
    assert reasons["queue_full"] == metrics.sum("foldserve_refusals_total", model="small", reason="queue_full") > 0
    assert reasons["queue_full"] + reasons["deadline"] + reasons["expired_in_queue"] == statuses[503]
    assert reasons.total() == statuses.total() - statuses[200]


@pytest.mark.parametrize("model", [*MODELS, "linear"])
def test_failures_are_told_in_tritons_words(
    model: str, service: Foldserve, told: dict[str, Counter[int]], metrics: Metrics
) -> None:
    expected = {"REJECTED": told[model][503], "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    if model == "slow":
        expected |= {"CANCELED": 1, "BACKEND": 1}
    found = {reason: metrics.sum("nv_inference_request_failure", model=model, reason=reason) for reason in expected}
    assert found == expected
    assert sum(found.values()) == statistics(service, model)["inference_stats"]["fail"]["count"]


def test_who_went_away_and_who_poisoned_a_batch_are_counted(metrics: Metrics) -> None:
    assert metrics.sum("foldserve_cancelled_total", **{"model": "slow", "while": "queued"}) == 1
    assert metrics.sum("foldserve_cancelled_total", **{"model": "slow", "while": "running"}) == 0
    assert metrics.sum("foldserve_poisoned_requests_total", model="slow") == 1
    assert metrics.sum("foldserve_batch_splits_total", model="slow") == 2


def test_nobody_waits_when_all_is_answered(metrics: Metrics) -> None:
    for name in ("nv_inference_pending_request_count", "foldserve_queue_requests", "foldserve_queue_rows"):
        assert metrics.by("model", name) == dict.fromkeys((*MODELS, "linear"), 0)
    assert metrics.sum("foldserve_queue_bytes") == 0


def test_a_name_that_only_a_client_knows_is_no_label(metrics: Metrics) -> None:
    assert INVENTED not in metrics.text
    assert metrics.by("version", "foldserve_refusals_total").keys() == {"", "1"}


def test_what_loading_found_out_is_told(metrics: Metrics) -> None:
    assert metrics.sum("foldserve_golden_samples", model="linear") == 3
    assert metrics.sum("foldserve_golden_difference", model="linear", output="y") == 0
    assert metrics.sum("foldserve_golden_tolerance", model="linear", output="y") == pytest.approx(1e-5)
    assert metrics.sum("foldserve_golden_samples", model="picky") == 0
    assert metrics.sum("foldserve_batch_invariance_difference", model="linear") >= 0
    assert metrics.sum("foldserve_provider_node_share", model="linear", provider="CPUExecutionProvider") == 1
    assert metrics.sum("foldserve_model_state", model="linear", version="1", state="READY") == 1
    assert metrics.sum("foldserve_batch_latency_seconds", model="linear", rows="1") > 0
    assert metrics.sum("foldserve_load_seconds", model="linear") > 0
    assert metrics.sum("foldserve_ready") == metrics.sum("foldserve_workers") == 1
    assert metrics.sum("foldserve_open_connections") >= 1
    assert 1e7 < metrics.sum("process_resident_memory_bytes") < 1e10
    assert metrics.sum("foldserve_uncounted_series_total") == 0


def test_every_family_says_what_it_is_and_no_series_comes_twice(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(metrics.text))
    assert [family.name for family in families if not family.documentation or family.type == "unknown"] == []
    series = Counter((one.name, *sorted(one.labels.items())) for one in metrics.samples)
    assert [one for one, count in series.items() if count > 1] == []


def test_counters_go_on_after_a_reload(service: Foldserve, metrics: Metrics) -> None:
    before = Metrics(service).sum("nv_inference_request_success", model="picky")
    assert service.post("/v2/repository/models/picky/load", {}).status == 200
    assert infer(service, [1, 2], model="picky").status == 200
    assert Metrics(service).sum("nv_inference_request_success", model="picky") == before + 1


# --- Server-Timing ------------------------------------------------------------------------------------------------

TIMING = re.compile(
    r"decode;dur=(\d+\.\d{3}), queue;dur=(\d+\.\d{3}), compute;dur=(\d+\.\d{3}), encode;dur=(\d+\.\d{3})"
)


@pytest.mark.parametrize("ask", [pytest.param(infer, id="lane"), pytest.param(None, id="asgi-route")])
def test_an_answer_says_how_long_each_stage_took(ask: Any, service: Foldserve) -> None:
    x = [LONG / 10, 2]
    answer = ask(service, x) if ask else chunked(service, body(x, 0), "slow")
    found = TIMING.fullmatch(answer.headers["server-timing"])
    assert found, answer.headers
    decode_ms, queue_ms, compute_ms, encode_ms = map(float, found.groups())
    assert compute_ms > max(decode_ms, encode_ms)
    assert queue_ms >= 0


def test_a_refusal_says_nothing_of_time(service: Foldserve) -> None:
    assert "server-timing" not in infer(service, [1, 2], model=INVENTED).headers


# --- the dashboard ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dashboard(checkout: Path) -> dict[str, Any]:
    return dict(json.loads((checkout / "service" / "grafana_dashboard.json").read_text()))


def test_the_dashboard_is_what_grafana_imports(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 30
    assert dashboard["id"] is None  # or an import would replace another one
    assert dashboard["title"]
    (source,) = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    taken = set()
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells


SELECTOR = re.compile(r"\b([a-z][a-z0-9_]+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
# What Prometheus adds when it scrapes.
SCRAPED = {"instance", "job"}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    # label_values(metric{...}, label) asks for a label as `by` does.
    return found + [re.sub(r"label_values\(([^{,]+)(\{.*\})?, (\w+)\)", r"by (\3) \1\2{}", one) for one in queries]


def test_the_dashboard_asks_for_nothing_that_is_not_there(dashboard: dict[str, Any], metrics: Metrics) -> None:
    labels: dict[str, set[str]] = {}
    for sample in metrics.samples:
        labels.setdefault(sample.name, set()).update(sample.labels, SCRAPED)
    asked = expressions(dashboard)
    assert len(asked) > 20
    for expression in asked:
        selectors = SELECTOR.findall(expression)
        assert selectors, expression
        grouped = {label.strip() for found in GROUPED.findall(expression) for label in found.split(",")}
        for name, matchers in selectors:
            assert name in labels, f"{expression}: there is no {name}"
            wanted = {re.split(r"[=!]", matcher)[0] for matcher in matchers.split(",") if matcher}
            assert wanted | grouped <= labels[name], f"{expression}: {name} has {sorted(labels[name])}"


def test_every_legend_names_labels_that_its_expression_keeps(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            kept = {label.strip() for found in GROUPED.findall(target["expr"]) for label in found.split(",")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, target

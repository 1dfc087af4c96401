"""The metrics that the docs list and that the dashboard draws are those that a server gives."""

import asyncio
import json
import re

import httpx
from prometheus_client.parser import text_string_to_metric_families

from helpers import REPOSITORY
from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.access_log import line
from limrank.serving.api import build_api
from limrank.serving.metrics import Metrics
from limrank.serving.protocol import Served
from limrank.serving.request_records import RequestRecord

DASHBOARD = json.loads((REPOSITORY / "cluster" / "grafana" / "limrank-serving.json").read_text())
PAGE = (REPOSITORY / "docs" / "jobs" / "serve.md").read_text()


def scraped():
    """The metrics of a server that has answered a request and refused one."""

    async def go():
        served = Served.of(ModelConfig(id="served"), ScoringConfig())
        metrics = Metrics(served, ask_replicas=lambda: {"running": 1})
        api = build_api(EngineBackend(), served, metrics=metrics)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as http:
            await http.post("/v1/rerank", json={"query": "q", "documents": ["a"]})
            await http.get("/nowhere")
            return (await http.get("/metrics")).text

    return asyncio.run(go())


TEXT = scraped()
FAMILIES = list(text_string_to_metric_families(TEXT))
LABELS = {}
"""Sample name → its labels."""
for family in FAMILIES:
    for sample in family.samples:
        LABELS.setdefault(sample.name, set()).update(sample.labels)


def test_the_docs_list_each_metric_with_its_type_and_labels():
    types = dict(re.findall(r"^# TYPE (limrank_\w+) (\w+)$", TEXT, re.M))
    given = {
        name: (kind, LABELS.get(name, LABELS.get(f"{name}_bucket", set())) - {"le"}) for name, kind in types.items()
    }
    rows = re.findall(r"^\| `(limrank_\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", PAGE, re.M)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(listed)
    assert listed == given


def test_the_docs_show_a_line_of_the_access_log_with_each_of_its_names():
    (shown,) = re.findall(r'^\{"time".*\}$', PAGE, re.M)
    assert list(json.loads(shown)) == list(line(RequestRecord("GET", "/", None, 0, {})))


def targets():
    return [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_has_what_grafana_needs():
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    for panel in DASHBOARD["panels"]:
        assert panel["title"] and panel["type"] and panel["targets"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    taken = {
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    }
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in DASHBOARD["panels"])


def test_every_expression_names_metrics_and_labels_that_there_are():
    of_prometheus = {"instance", "job"}
    for title, target in targets():
        expression = target["expr"]
        assert expression.count("(") == expression.count(")")
        selected = re.findall(r"\b((?:limrank|process)_\w+)(?:\{([^}]*)\})?", expression)
        assert selected, title
        for name, matchers in selected:
            assert name in LABELS, f"{title}: no metric {name}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            used |= {each for group in re.findall(r"by \(([^)]*)\)", expression) for each in group.split(", ")}
            assert used <= LABELS[name] | of_prometheus, f"{title}: {name} has no {used - LABELS[name]}"
        in_legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        kept = {each for group in re.findall(r"by \(([^)]*)\)", expression) for each in group.split(", ")}
        assert in_legend <= (kept or of_prometheus), title
        assert set(re.findall(r"\$(\w+)", expression)) <= {"instance", "__rate_interval"}


def test_the_dashboard_draws_every_metric():
    drawn = {name for _, target in targets() for name in re.findall(r"\blimrank_\w+", target["expr"])}
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in drawn}
    assert families == {family.name for family in FAMILIES if family.name.startswith("limrank_")}

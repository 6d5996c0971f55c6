"""docs/operations.md, the alerts and the dashboard against the code: complete and up to date."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from server.http.auth import OPEN
from server.observe.metrics import Metrics
from server.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
TEXT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana/labelnext.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
[SCALER] = yaml.safe_load_all((DEPLOY / "kubernetes/components/keda/scaled-object.yaml").read_text())
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
    **{f"KEDA {i}": each["metadata"]["query"] for i, each in enumerate(SCALER["spec"]["triggers"])},
}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def section(title):
    """Return the text below a heading, up to the next heading of its level or above."""
    match = re.search(rf"^(#+) {title}\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return match[2]


def rows(title):
    """Return the cells of the table in a section, without its header."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(title).splitlines()
        if line.startswith("| `")
    ]


def codes(cell):
    return re.findall(r"`([^`]+)`", cell)


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def exposed():
    """Return the names of all samples that a server can expose, by family."""
    return {family.name: [family.name + suffix for suffix in SUFFIXES[family.type]] for family in families()}


def families():
    return list(Metrics().registry.collect())


def test_every_metric_is_described_with_its_type_and_labels():
    described = {name: (kind, codes(labels)) for names, kind, labels, _ in rows("Metrics") for name in codes(names)}
    labels = {each._name: list(each._labelnames) for each in vars(Metrics()).values() if hasattr(each, "_labelnames")}
    assert described == {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, labels.get(family.name, []))
        for family in families()
    }


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_metrics_and_labels_of_expressions_exist(where):
    """In alerts, panels and triggers; `up`, `job` and `instance` are Prometheus' own."""
    expression = EXPRESSIONS[where]
    known = {each._name: set(each._labelnames) for each in vars(Metrics()).values() if hasattr(each, "_labelnames")}
    by_sample = {name: known.get(family, set()) for family, samples in exposed().items() for name in samples}
    names = set(re.findall(r"\b(?:labelnext|process)_\w+", re.sub(r'"[^"]*"', "", expression)))
    assert names or "up{" in expression
    assert names <= by_sample.keys()
    for name, braces in re.findall(r"\b((?:labelnext|process)_\w+)\{([^}]*)\}", expression):
        used = set(re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', "", braces)))
        assert used <= by_sample[name] | {"job", "instance"} | ({"le"} if name.endswith("_bucket") else set())


def test_counters_of_alerts_start_at_zero():
    """Prometheus sees no increase in a series that starts at 1, so the first event would be missed."""
    metrics = Metrics()
    metrics.add_model("default")
    lines = metrics.render().decode().splitlines()
    for series in (
        'labelnext_model_reloads_total{model="default",result="rejected"}',
        'labelnext_images_total{model="default",outcome="not_finite"}',
        *(f'labelnext_rejected_requests_total{{reason="{each}"}}' for each in ("queue_full", "deadline", "auth")),
        'labelnext_repository_faults_total{kind="read"}',
        *(f'labelnext_feature_cache_faults_total{{kind="{each}"}}' for each in ("open", "write")),
    ):
        assert f"{series} 0.0" in lines


def test_buckets_of_expressions_exist():
    """An alert on a bound without a bucket would never fire."""
    bounds = {
        (name, bound)
        for expression in EXPRESSIONS.values()
        for name, bound in re.findall(r'(labelnext_\w+)_bucket\{[^}]*le="([^"]+)"', expression)
    }
    metrics = Metrics()
    metrics.bald.labels("default").observe(0.5)
    text = metrics.render().decode()
    assert bounds
    assert all(f'{name}_bucket{{le="{bound}",model="default"}}' in text for name, bound in bounds)


def test_every_alert_has_its_section():
    described = re.findall(r"^### (Labelnext\w+)$", TEXT, re.MULTILINE)
    assert described == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_severity_a_description_and_a_runbook(rule):
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "\n" not in rule["annotations"]["summary"]
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{anchor(rule['alert'])}"
    assert "*Do*" in section(rule["alert"]) or "As [" in section(rule["alert"])


def test_every_alert_is_tested_to_fire_and_to_be_silent():
    fires, silent = set(), set()
    for path in sorted((DEPLOY / "prometheus").glob("*_test.yaml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for each in test["promql_expr_test"]:
                name = re.search(r'alertname="(\w+)"', each["expr"])[1]
                (fires if each["exp_samples"] else silent).add(name)
    assert fires == silent == {rule["alert"] for rule in RULES}


def test_thresholds_match_the_default_settings():
    """Four fifths of the queue, less than the deadline, and ten polls."""
    by_name = {rule["alert"]: rule["expr"] for rule in RULES}
    settings = Settings()
    bound = int(by_name["LabelnextQueueNearBound"].rpartition(">")[2])
    assert bound == int(0.8 * settings.queue_requests)
    assert float(by_name["LabelnextSlow"].rpartition(">")[2]) < settings.deadline_s
    assert float(by_name["LabelnextRepositoryNotPolled"].rpartition(">")[2]) > 10 * settings.poll_s


def test_the_scrape_job_matches_the_rules():
    """By its name; its path needs no credentials."""
    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    [job] = settings["scrape_configs"]
    assert job["job_name"] == "labelnext"
    assert job["metrics_path"] in OPEN
    assert all((DEPLOY / "prometheus" / name).exists() for name in settings["rule_files"])
    [discovery] = job["dns_sd_configs"]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(discovery["names"]) <= compose["services"].keys()


def test_the_dashboard_is_valid():
    """Panels have unique ids and use the chosen data source; no row is empty."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in PANELS)
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}
    assert all(panel["description"] and panel["targets"] for panel in PANELS)
    kinds = [panel["type"] for panel in panels]
    assert ("row", "row") not in pairwise([*kinds, "row"])


def test_health_routes_are_those_that_need_no_credentials():
    assert {codes(row[0])[0] for row in rows("Health")} == set(OPEN)


def test_the_checks_are_described():
    from tests.server.test_check import NAMES

    assert [codes(row[0])[0] for row in rows("Before a roll-out")] == NAMES

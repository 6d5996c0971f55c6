"""Prometheus with our files: its rules are valid and fire when they should, and it scrapes a running server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
import urllib3
import yaml

from bench.harness.serving import serving
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from demo.processes import free_port, running
from demo.product import CHECKOUT
from tests.test_operations import EXPRESSIONS, PANELS

FOLDER = CHECKOUT / "deploy" / "prometheus"

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300
    )


def get_data(url: str, path: str) -> dict:
    """Return the data of a response of Prometheus' API."""
    return json.loads(urllib3.request("GET", f"{url}{path}", retries=False, timeout=10).data)["data"]


def test_rules_and_configuration_are_valid():
    for arguments in (("rules", "alerts.yaml"), ("config", "prometheus.yml")):
        done = promtool("check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_test.yaml")), ids=lambda path: path.stem)
def test_alerts_fire_only_when_they_should(path: Path):
    done = promtool("test", "rules", path.name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_dashboard_and_scaler_can_be_parsed(tmp_path: Path):
    """As rules, checked by promtool, with values in place of Grafana's variables."""
    rules = [
        {"record": f"query:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$instance", ".*")}
        for number, expression in enumerate(EXPRESSIONS.values())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus: apt-get install prometheus")
def test_prometheus_scrapes_a_server(tmp_path: Path):
    """By the job of compose.yaml at another address. Rules are evaluated, and queries have results."""
    repository = Repository(tmp_path / "models")
    name = publish(repository)
    with serving(repository.root, log=tmp_path / "server.log", settings={"LABELNEXT_PROVIDER": "cpu"}) as server:
        port = free_port()
        command = [
            "prometheus",
            f"--config.file={_configure(tmp_path, server.url.removeprefix('http://'))}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with running("Prometheus", command, log=tmp_path / "prometheus.log", environment={}) as prometheus:
            url = f"http://127.0.0.1:{port}"
            query = "/api/v1/query?query=" + quote('labelnext_model_info{job="labelnext"}')
            prometheus.wait_for(url + query, timeout_s=60, until=lambda body: name.encode() in body)
            [target] = get_data(url, "/api/v1/targets")["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            _check_rules(url, prometheus)
            _check_gauges(url)


def _configure(folder: Path, address: str) -> Path:
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    [job] = settings["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [address]}]
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    job["scrape_timeout"] = "1s"
    settings["rule_files"] = [str(FOLDER / "alerts.yaml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    return folder / "prometheus.yml"


def _check_rules(url: str, prometheus) -> None:
    """Every rule is evaluated without error, and none fires for a healthy server.

    Before the first scrape, the rule for a missing server was pending.
    """
    prometheus.wait_for(f"{url}/api/v1/rules", timeout_s=60, until=_are_inactive)
    rules = [rule for group in get_data(url, "/api/v1/rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} <= EXPRESSIONS.keys()
    assert {rule["lastError"] for rule in rules if "lastError" in rule} == set()


def _are_inactive(body: bytes) -> bool:
    rules = [rule for group in json.loads(body)["data"]["groups"] for rule in group["rules"]]
    return {(rule["health"], rule["state"]) for rule in rules} == {("ok", "inactive")}


def _check_gauges(url: str) -> None:
    """Panels of gauges have a result at once; rates need traffic."""
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            answer = get_data(url, f"/api/v1/query?query={quote(expression)}")
            assert answer["result"] or "rate(" in expression or "increase(" in expression, panel["title"]

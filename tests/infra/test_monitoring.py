"""Prometheus accepts the rules, the rules do what they say, and rules and dashboard speak of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayssl.runtime.telemetry import exported

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra/monitoring"
DASHBOARD = MONITORING / "grafana/dashboards/rayssl.json"
RULES = MONITORING / "rules.yaml"
ALERTS = {
    "RaysslTrainingStalled",
    "RaysslWaitsForData",
    "RaysslCoverageCollapsed",
    "RaysslMemoryStale",
    "RaysslDiverged",
    "RaysslGpuMemoryNearlyFull",
}


def promtool(*words: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (package prometheus); infra/local/test.sh installs it as root with apt")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_and_its_rules() -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", str(MONITORING / "prometheus.yaml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", str(ROOT / "tests/infra/rules_test.yaml"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_alert_says_what_is_wrong_and_is_tested() -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert alerts.keys() == ALERTS
    tested = (ROOT / "tests/infra/rules_test.yaml").read_text()
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "$labels.run" in rule["annotations"]["summary"]
        assert f"alertname: {name}" in tested


def metrics(expression: str) -> set[str]:
    return set(re.findall(r"\bray_rayssl_\w+", expression))


def recorded(expression: str) -> set[str]:
    return set(re.findall(r"\brun:rayssl_[\w:]+", expression))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def test_rules_and_dashboard_name_what_telemetry_exports() -> None:
    """And what rules record; every exported metric is on the dashboard, but for the parts of histograms."""
    written, shown = RULES.read_text(), DASHBOARD.read_text()
    names = {rule["record"] for rule in rules() if "record" in rule}
    assert metrics(written) | metrics(shown) <= exported()
    assert recorded(written) | recorded(shown) <= names
    parts = {name for name in exported() if name.endswith(("_count", "_sum"))}
    assert exported() - parts - metrics(shown) == set()


def test_the_readme_lists_every_metric() -> None:
    listed = set(re.findall(r"^\| `(rayssl_\w+)`", (MONITORING / "README.md").read_text(), re.MULTILINE))
    whole = {re.sub(r"_(bucket|count|sum|total)$", "", name.removeprefix("ray_")) for name in exported()}
    assert listed == whole


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    document = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["targets"] and panel["title"] and panel["datasource"]["uid"] == "${datasource}"
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    """Prometheus' own parser, by way of rules that hold each query with Grafana's variables filled in."""
    held = []
    for number, expression in enumerate(target["expr"] for panel in panels() for target in panel["targets"]):
        for name, value in {"$run": ".*", "$method": ".*", "$__rate_interval": "1m"}.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        held.append({"record": f"panel:query:{number}", "expr": expression})
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": held}]}))
    promtool("check", "rules", str(file))


def test_grafana_finds_its_datasource_and_dashboards() -> None:
    sources = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/rayssl.yaml").read_text())
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/rayssl.yaml").read_text())
    assert [provider["options"]["path"] for provider in providers["providers"]] == ["$RAYSSL_DASHBOARDS"]

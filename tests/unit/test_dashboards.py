"""What is shipped for Grafana and Prometheus names metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from peers.requirement import require_command
from tests.unit.documents import ROOT
from tests.unit.promql import Query, Selector, read
from tests.unit.test_metrics import SERIES

DASHBOARD = ROOT / "packaging" / "grafana.json"
ALERTS = ROOT / "packaging" / "alerts.yml"
ALERT_TESTS = Path(__file__).parent / "alerts.test.yml"

# What Prometheus adds to each series that it scrapes.
_TARGET = frozenset({"job", "instance"})


def promtool(case: SynchronousTestCase, *words: str) -> str:
    """What promtool says."""
    program = require_command("promtool", "prometheus")
    run = subprocess.run([program, *words], capture_output=True, text=True, timeout=60)
    case.assertEqual(run.returncode, 0, run.stdout + run.stderr)
    return run.stdout


def queries(value: Any) -> Iterator[str]:
    """Every expression in a dashboard, also those of its variables and annotations."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "expr":
                yield each
            elif key in ("definition", "query") and isinstance(each, str) and "(" in each:
                yield re.sub(r"\Alabel_values\((.*), \w+\)\Z", r"\1", each)
            else:
                yield from queries(each)
    elif isinstance(value, list):
        for each in value:
            yield from queries(each)


class QueryCase(SynchronousTestCase):
    """Queries of the metrics."""

    def check(self, expression: str) -> None:
        """It names at least one metric, and only those that there are, with the labels that they have."""
        query = read(re.sub(r"\$__(rate_interval|range|interval)", "5m", expression))
        self.assertTrue(query.selectors, expression)
        known = set(_TARGET)
        for selector in query.selectors:
            self.assertIn(selector.metric, SERIES, expression)
            labels = {*SERIES[selector.metric], *_TARGET}
            self.assertEqual(set(), set(selector.labels) - labels, expression)
            known |= labels
        self.assertEqual(set(), set(query.grouped) - known, expression)


class PromQLTests(QueryCase):
    """How expressions are read."""

    def test_read(self) -> None:
        """Metrics and labels are found wherever they may be, and nothing else."""
        for expression, selectors, grouped in (
            ("up", [("up", "")], ""),
            ('rate(a_total{x="b",y!~"c{d}"}[5m:1m] offset 1h) > 0.5e3', [("a_total", "x y")], ""),
            ("sum by (le, z) (a) / on (z) group_left(w) b or vector(0)", [("a", ""), ("b", "")], "le z w"),
            ("sum(rate(a[5m])) without (q)", [("a", "")], "q"),
            ("a == bool 1 and b unless c", [("a", ""), ("b", ""), ("c", "")], ""),
        ):
            found = tuple(Selector(metric, frozenset(labels.split())) for metric, labels in selectors)
            self.assertEqual(read(expression), Query(found, frozenset(grouped.split())), expression)

    def test_wrong(self) -> None:
        """A metric or a label that there isn't is noticed, and so is what isn't PromQL."""
        for wrong in (
            "rate(pcapsvc_request_total[5m])",
            'pcapsvc_requests_total{verdicts="busy"}',
            "sum by (reason) (pcapsvc_requests_total)",
            "vector(1)",
        ):
            self.assertRaises(self.failureException, self.check, wrong)
        for wrong in ("sum(a", "a ? b", 'a{b="c'):
            self.assertRaises(ValueError, read, wrong)


class DashboardTests(QueryCase):
    """The dashboard for Grafana."""

    def setUp(self) -> None:
        """Read it."""
        self.dashboard = json.loads(DASHBOARD.read_text())
        self.expressions = [*queries(self.dashboard)]

    def test_queries(self) -> None:
        """Every query names metrics that there are; each metric of ours is shown somewhere."""
        for expression in self.expressions:
            self.check(expression)
        shown = {selector.metric for each in self.expressions for selector in read(each).selectors}
        base = {re.sub("_(sum|count|bucket)$", "", name) for name in SERIES if name.startswith("pcapsvc_")}
        self.assertEqual(base, {re.sub("_(sum|count|bucket)$", "", name) for name in shown} & base)

    def test_every_query_is_found(self) -> None:
        """No query is in a place at which these tests don't look."""
        mentioned = re.findall(r"pcapsvc_[a-z_]+", DASHBOARD.read_text())
        found = [name for each in self.expressions for name in re.findall(r"pcapsvc_[a-z_]+", each)]
        # The query of a variable is there twice.
        variables = sum("label_values" in each["query"]["query"] for each in self.variables())
        self.assertEqual(len(mentioned), len(found))
        self.assertEqual(variables, 2)

    def variables(self) -> list[Any]:
        """The variables that are queried."""
        return [each for each in self.dashboard["templating"]["list"] if each["type"] == "query"]

    def test_panels(self) -> None:
        """Each panel says what it shows, in a place of its own, from the chosen nodes only."""
        panels = self.dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            if panel["type"] == "row":
                continue
            self.assertTrue(panel["description"].endswith("."), panel["title"])
            self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
            for target in panel["targets"]:
                self.assertEqual(target["datasource"], {"type": "prometheus", "uid": "${datasource}"})
                for selector in read(target["expr"].replace("$__rate_interval", "5m")).selectors:
                    self.assertLessEqual({"job", "instance"}, selector.labels, target["expr"])

    def test_promtool(self) -> None:
        """Prometheus understands every query."""
        rules = [
            {"record": f"test:{number}", "expr": re.sub(r"\$__\w+", "5m", each)}
            for number, each in enumerate(self.expressions)
        ]
        path = Path(self.mktemp())
        path.write_text(json.dumps({"groups": [{"name": "test", "rules": rules}]}))
        self.assertIn(f"SUCCESS: {len(rules)} rules found", promtool(self, "check", "rules", str(path)))


class AlertTests(QueryCase):
    """The alerting rules for Prometheus."""

    def setUp(self) -> None:
        """Read them."""
        [group] = yaml.safe_load(ALERTS.read_text())["groups"]
        self.rules = group["rules"]

    def test_queries(self) -> None:
        """Every rule names metrics that there are."""
        for rule in self.rules:
            self.check(rule["expr"])

    def test_rules(self) -> None:
        """Every rule has a name of its own, a severity, and says what has happened and where to look."""
        names = [rule["alert"] for rule in self.rules]
        self.assertEqual(len(set(names)), len(names))
        for rule in self.rules:
            self.assertIn(rule["labels"]["severity"], ("info", "warning", "critical"))
            self.assertEqual({"summary", "description"}, set(rule["annotations"]))
            self.assertIn("$labels.instance", rule["annotations"]["summary"])

    def test_documented(self) -> None:
        """The documentation has a row for each alert, and for each metric of ours."""
        text = (ROOT / "docs" / "operation.md").read_text()
        for rule in self.rules:
            self.assertIn(f"| `{rule['alert']}` |", text)
        for name, labels in SERIES.items():
            base = re.sub("_(sum|count|bucket)$", "", name)
            shown = ", ".join(f"`{label}`" for label in labels if label != "le")
            if name.startswith("pcapsvc_"):
                self.assertRegex(text, rf"\| `{base}` \| \w+ \| {re.escape(shown)} *\|")

    def test_promtool(self) -> None:
        """Prometheus understands the rules; each fires when it should, and only then."""
        self.assertIn(
            f"SUCCESS: {len(self.rules)} rules found", promtool(self, "check", "rules", str(ALERTS))
        )
        tested = yaml.safe_load(ALERT_TESTS.read_text())
        tested["rule_files"] = [str(ALERTS)]
        path = Path(self.mktemp())
        path.write_text(yaml.safe_dump(tested))
        promtool(self, "test", "rules", str(path))
        fired = {
            case["alertname"]
            for test in tested["tests"]
            for case in test["alert_rule_test"]
            if case.get("exp_alerts")
        }
        self.assertEqual({rule["alert"] for rule in self.rules}, fired)

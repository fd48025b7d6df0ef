"""The dashboards of deploy/grafana are current, can be drawn, and ask for metrics that exist."""

import json
import re
import sys
import unittest

import yaml

import promql
from places import ROOT, run

GRAFANA = ROOT / "deploy/grafana"
FILES = sorted(GRAFANA.glob("*.json"))
RULES = yaml.safe_load((ROOT / "deploy/alerts/passline.rules.yaml").read_text())
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
# Units of Grafana that are used; another one has to be looked up there first.
UNITS = {"short", "s", "bytes", "percentunit", "reqps"}


def dashboards():
    return {file.name: json.loads(file.read_text()) for file in FILES}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard):
    """(where, expression) of everything that a dashboard asks Prometheus."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def substituted(expression):
    """An expression with Grafana's variables filled in."""
    for variable, value in (("$__rate_interval", "5m"), ("$__range", "6h")):
        expression = expression.replace(variable, value)
    return re.sub(r"\$(namespace|instance|source)\b", ".*", expression)


class Dashboards(unittest.TestCase):
    def test_there_is_one_per_service_and_one_of_the_business(self):
        self.assertEqual(list(dashboards()), ["pass-state.json", "passes.json", "webhook-gateway.json"])

    def test_they_are_what_the_generator_writes(self):
        done = run([sys.executable, GRAFANA / "generate", "--check"])
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_promtool_takes_every_expression(self):
        for name, dashboard in dashboards().items():
            rules = [
                {"record": f"panel:{number}", "expr": substituted(expression), "labels": {"where": where}}
                for number, (where, expression) in enumerate(expressions(dashboard))
            ]
            self.assertTrue(rules)
            with self.subTest(name):
                self.assertEqual(promql.check_rules({"groups": [{"name": "panels", "rules": rules}]}), "")
                self.assertNotRegex(" ".join(rule["expr"] for rule in rules), r"\$")

    def test_a_broken_expression_is_noticed(self):
        self.assertIn("parse error", promql.check_rules({"groups": [{"name": "g", "rules": [{"record": "a", "expr": "sum(x"}]}]}))

    def test_expressions_read_documented_metrics_by_labels_that_these_have(self):
        known = promql.documented()
        for name, dashboard in dashboards().items():
            for where, expression in expressions(dashboard):
                labels = set(promql.TARGET)
                for metric, matched in promql.selectors(substituted(expression)):
                    if metric in RECORDED:
                        labels |= {"source"}
                        continue
                    with self.subTest(name, where=where, metric=metric):
                        self.assertIn(metric, known)
                        self.assertLessEqual(matched, known[metric] | promql.TARGET)
                    labels |= known.get(metric, set())
                with self.subTest(name, where=where):
                    self.assertLessEqual(promql.grouped(expression), labels)

    def test_expressions_match_documented_values(self):
        known = promql.documented_values()
        for name, dashboard in dashboards().items():
            for where, expression in expressions(dashboard):
                for metric, label, value in promql.matched_values(substituted(expression)):
                    if label in known.get(metric, {}):
                        with self.subTest(name, where=where, metric=metric):
                            self.assertIn(value, known[metric][label])

    def test_legends_name_labels_that_the_expression_keeps(self):
        for name, dashboard in dashboards().items():
            for panel in panels(dashboard):
                for target in panel["targets"]:
                    named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                    # An aggregation without `by` has no labels left.
                    aggregated = re.match(r"(sum|min|max)(?! by| without)", target["expr"])
                    by = re.match(r"(?:sum|min|max) by \(([^)]*)\)", target["expr"])
                    with self.subTest(name, panel=panel["title"]):
                        if aggregated:
                            self.assertEqual(named, set())
                        if by:
                            self.assertLessEqual(named, {label.strip() for label in by[1].split(",")})

    def test_every_documented_metric_is_on_a_dashboard_or_in_a_rule(self):
        read = {metric for dashboard in dashboards().values() for _, e in expressions(dashboard) for metric, _ in promql.selectors(substituted(e))}
        read |= {metric for group in RULES["groups"] for rule in group["rules"] for metric, _ in promql.selectors(rule["expr"])}
        unread = {promql.bare(metric) for metric in promql.documented()} - {promql.bare(metric) for metric in read}
        self.assertEqual(unread, {"target_info"})

    def test_every_panel_says_what_it_shows_in_which_unit(self):
        for name, dashboard in dashboards().items():
            for panel in panels(dashboard):
                with self.subTest(name, panel=panel["title"]):
                    self.assertTrue(panel["title"])
                    self.assertTrue(panel["description"].endswith("."))
                    self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS)
                    self.assertTrue(panel["fieldConfig"]["defaults"]["thresholds"]["steps"])
                    self.assertEqual([t["refId"] for t in panel["targets"]], list("ABCDEFGH")[: len(panel["targets"])])

    def test_panels_have_ids_of_their_own_and_do_not_overlap(self):
        for name, dashboard in dashboards().items():
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)), name)
            taken = {}
            for panel in dashboard["panels"]:
                place = panel["gridPos"]
                self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
                for x in range(place["x"], place["x"] + place["w"]):
                    for y in range(place["y"], place["y"] + place["h"]):
                        with self.subTest(name, panel=panel["title"]):
                            self.assertNotIn((x, y), taken)
                        taken[x, y] = panel["title"]

    def test_they_can_be_taken_to_any_grafana(self):
        for name, dashboard in dashboards().items():
            with self.subTest(name):
                self.assertNotIn("id", dashboard)
                self.assertEqual(dashboard["timezone"], "browser")
                self.assertGreaterEqual(dashboard["schemaVersion"], 39)
                text = json.dumps(dashboard)
                self.assertEqual(set(re.findall(r'"uid": "([^"]*)"', text)), {dashboard["uid"], "${datasource}"})
                variables = [variable["name"] for variable in dashboard["templating"]["list"]]
                self.assertEqual(variables[:2], ["datasource", "namespace"])
                asked = " ".join(expression for _, expression in expressions(dashboard))
                used = set(re.findall(r"\$(?!__)(\w+)", asked))
                self.assertEqual(used | {"datasource"}, set(variables))
                for variable in dashboard["templating"]["list"][1:]:
                    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
                    self.assertIn(label, promql.documented()[metric] | promql.TARGET)

    def test_links_lead_to_runbooks_that_exist(self):
        headings = {h.lower() for h in re.findall(r"^### (\w+)$", promql.README.read_text(), re.MULTILINE)} | {"alerts-and-runbooks"}
        for name, dashboard in dashboards().items():
            urls = [link["url"] for panel in panels(dashboard) for link in panel.get("links", [])]
            urls += [link["url"] for link in dashboard["links"] if "url" in link]
            self.assertTrue(urls)
            for url in urls:
                with self.subTest(name, url=url):
                    self.assertIn(url.partition("#")[2], headings)


if __name__ == "__main__":
    unittest.main()

"""The alert rules of deploy/alerts say what they mean, at the right time, about metrics that exist."""

import concurrent.futures
import re
import unittest

import yaml

import promql
from places import ROOT, run

RULES = ROOT / "deploy/alerts/passline.rules.yaml"
TESTS = sorted((ROOT / "deploy/alerts/tests").glob("*.test.yaml"))


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def anchor(heading):
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class Alerts(unittest.TestCase):
    def test_promtool_takes_the_rules(self):
        done = run([promql.promtool(), "check", "rules", RULES])
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_the_unit_tests_pass(self):
        def test(file):
            return run([promql.promtool(), "test", "rules", file], timeout=300)

        self.assertTrue(TESTS)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for file, done in zip(TESTS, pool.map(test, TESTS)):
                with self.subTest(file.name):
                    self.assertEqual(done.returncode, 0, done.stdout)

    def test_a_unit_test_fires_each_alert_and_another_moment_finds_it_quiet(self):
        fired, quiet = set(), set()
        for file in TESTS:
            for test in yaml.safe_load(file.read_text())["tests"]:
                for moment in test["alert_rule_test"]:
                    (fired if moment["exp_alerts"] else quiet).add(moment["alertname"])
        self.assertEqual(set(alerts()), fired)
        self.assertEqual(set(alerts()), quiet)

    def test_a_healthy_system_and_a_rolling_update_are_asked_about_every_alert(self):
        for name in ("healthy", "rolling"):
            tests = yaml.safe_load((ROOT / f"deploy/alerts/tests/{name}.test.yaml").read_text())["tests"]
            asked = {m["alertname"] for t in tests for m in t["alert_rule_test"] if m["exp_alerts"] == []}
            with self.subTest(name):
                self.assertEqual(set(alerts()), asked)

    def test_names_are_unique_and_told_apart_from_other_peoples(self):
        names = [rule["alert"] for rule in rules() if "alert" in rule]
        self.assertEqual(len(names), len(set(names)))
        for rule in rules():
            self.assertRegex(rule.get("alert") or rule["record"], r"^(Passline[A-Z]\w+|passline:[a-z0-9_:]+)$")

    def test_each_alert_says_who_must_act_and_how(self):
        headings = {anchor(h) for h in re.findall(r"^#+ (.*)$", promql.README.read_text(), re.MULTILINE)}
        for name, rule in alerts().items():
            with self.subTest(name):
                self.assertEqual(set(rule["labels"]), {"severity"})
                self.assertIn(rule["labels"]["severity"], {"critical", "warning"})
                self.assertEqual(set(rule["annotations"]), {"summary", "description", "runbook_url"})
                page, _, fragment = rule["annotations"]["runbook_url"].partition("#")
                self.assertTrue(page.endswith("/deploy/README.md"), page)
                self.assertEqual(fragment, name.lower())
                self.assertIn(fragment, headings)

    def test_no_runbook_is_left_of_an_alert_that_is_gone(self):
        section = promql.README.read_text().split("\n## Alerts and runbooks\n", 1)[1].split("\n## ", 1)[0]
        self.assertEqual(set(alerts()), set(re.findall(r"^### (\w+)$", section, re.MULTILINE)))
        links = set(re.findall(r"\]\(#(\w+)\)", section))
        self.assertLessEqual(links, {name.lower() for name in alerts()})

    def test_rules_read_documented_metrics_by_labels_that_these_have(self):
        known = promql.documented() | promql.FOREIGN
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        for rule in rules():
            name = rule.get("alert") or rule["record"]
            read = promql.selectors(rule["expr"])
            self.assertTrue(read, name)
            labels = set(promql.TARGET)
            for metric, matched in read:
                if metric in recorded:
                    labels |= {"source", "spool"}
                    continue
                with self.subTest(name, metric=metric):
                    self.assertIn(metric, known)
                    self.assertLessEqual(matched, known[metric] | promql.TARGET)
                labels |= known.get(metric, set())
            with self.subTest(name):
                self.assertLessEqual(promql.grouped(rule["expr"]), labels)
                texts = " ".join(rule.get("annotations", {}).values())
                self.assertLessEqual(set(re.findall(r"\$labels\.(\w+)", texts)), labels)

    def test_unit_tests_feed_only_documented_metrics_with_their_labels(self):
        known = promql.documented() | promql.FOREIGN | {"process_start_time_seconds": set()}
        for file in TESTS:
            for test in yaml.safe_load(file.read_text())["tests"]:
                for fed in test["input_series"]:
                    metric = fed["series"].partition("{")[0]
                    with self.subTest(file.name, series=fed["series"]):
                        self.assertIn(metric, known)
                        names = set(re.findall(r"(\w+)=", fed["series"]))
                        self.assertLessEqual(names, known[metric] | promql.TARGET)
                        self.assertLessEqual(known[metric] - {"version"}, names)

    def test_rules_and_unit_tests_speak_of_documented_values(self):
        known = promql.documented_values()
        texts = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
        texts += [(file.name, file.read_text()) for file in TESTS]
        checked = 0
        for name, text in texts:
            for metric, label, value in promql.matched_values(text):
                if label in known.get(metric, {}):
                    checked += 1
                    with self.subTest(name, metric=metric):
                        self.assertIn(value, known[metric][label])
        self.assertGreater(checked, 100)


class TheReaderOfExpressions(unittest.TestCase):
    def test_it_finds_what_is_read_and_nothing_else(self):
        found = promql.selectors(
            'sum by (a, b) (rate(x_total{c="}", d=~"e|f"}[5m] offset 1h)) / on (a) group_left () y > 1e3 and count_over_time(z[1d:5m]) == 0'
        )
        self.assertEqual(found, [("x_total", {"c", "d"}), ("y", set()), ("z", set())])

    def test_it_finds_every_value_that_is_matched_or_fed(self):
        found = promql.matched_values('rate(x_total{a="b",c=~"d|e", f!=""}[5m]) > y')
        self.assertEqual(found, [("x_total", "a", "b"), ("x_total", "c", "d"), ("x_total", "c", "e")])


if __name__ == "__main__":
    unittest.main()

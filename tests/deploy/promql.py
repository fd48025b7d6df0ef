"""What the tests of alert rules and dashboards ask about PromQL: which metrics an expression reads, with which labels, and
which metrics deploy/README.md documents."""

import os
import pathlib
import re
import tempfile

import yaml

from places import ROOT, run

README = ROOT / "deploy/README.md"
# Metrics of others, which Passline's own table does not list: Prometheus itself and Kubernetes' kubelet.
FOREIGN = {
    "up": {"job", "instance"},
    "kubelet_volume_stats_available_bytes": {"persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"persistentvolumeclaim"},
}
# Labels that Prometheus adds to every series of a target.
TARGET = {"namespace", "job", "instance", "pod"}
WORDS = {
    "by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool", "sum", "min", "max",
    "avg", "count", "group", "topk", "bottomk", "quantile", "stddev", "inf", "nan",
}


def promtool():
    """The program, where tests/run has put it."""
    return os.environ.get("PASSLINE_PROMTOOL") or str(ROOT / "target/tools/bin/promtool")


def check_rules(rules):
    """What promtool says of a document of rules; empty if it takes it."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "rules.yaml"
        file.write_text(yaml.safe_dump(rules))
        done = run([promtool(), "check", "rules", file])
    return "" if done.returncode == 0 else done.stdout


def documented():
    """Metric name -> its labels, of every row of the tables under "Metrics"; histograms by what a scrape shows of them."""
    text = README.read_text().split("\n## Metrics\n", 1)[1].split("\n## ", 1)[0]
    metrics = {}
    for name, kind, labels in re.findall(r"^\| `([a-z_]+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE):
        # What stands in parentheses are a label's values.
        names = set(re.findall(r"`([a-z_*]+)`", re.sub(r"\([^)]*\)", "", labels)))
        if kind == "histogram":
            metrics |= {f"{name}_bucket": names | {"le"}, f"{name}_count": names, f"{name}_sum": names}
        else:
            metrics[name] = names
    return metrics


def documented_values():
    """Metric name -> label -> its values, of every label whose row lists them."""
    text = README.read_text().split("\n## Metrics\n", 1)[1].split("\n## ", 1)[0]
    metrics = {}
    for name, labels in re.findall(r"^\| `([a-z_]+)` \| \w+ \|([^|]*)\|", text, re.MULTILINE):
        listed = re.findall(r"`([a-z_]+)` \(((?:`\w+`(?:, )?)+)\)", labels)
        values = {label: set(re.findall(r"\w+", values)) for label, values in listed}
        metrics |= {name + end: values for end in ("", "_bucket", "_count", "_sum")}
    return metrics


def matched_values(text):
    """(metric, label, value) of every value that selectors match or that series of a unit test have; no patterns but lists."""
    found = []
    for metric, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", text):
        for label, values in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers):
            found += [(metric, label, value) for value in values.split("|") if value]
    return found


def bare(name):
    """A metric's name as its row spells it."""
    return re.sub(r"_(bucket|count|sum)$", "", name) if name.startswith(("rpc_", "passline_")) else name


def selectors(expression):
    """(metric, labels matched on) of every selector of an expression that promtool has taken."""
    text = re.sub(r"#[^\n]*", " ", expression)
    # Strings may hold anything; lists of labels after these words are no selectors.
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    found = []
    for match in re.finditer(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\s*(\(|\{[^}]*\})?", text):
        name, rest = match[1], match[2] or ""
        if rest == "(" or name in WORDS:
            continue
        if re.search(r"\{[^}]*$", text[: match.start()]) or re.search(r"\[[^\]]*$", text[: match.start()]):
            continue
        found.append((name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", rest))))
    return found


def grouped(expression):
    """Every label that an expression groups or joins by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {label.strip() for names in lists for label in names.split(",") if label.strip()}

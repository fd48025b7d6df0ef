"""The Helm chart, rendered by Helm's own library, for the tests of it."""

import functools
import os
import pathlib

import helm_python as helm
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/passline"
RELEASE, NAMESPACE, REVISION = "rel", "ns", 3
# The oldest and the newest minor of Kubernetes that the chart supports; Chart.yaml's kubeVersion names the first.
MINORS = ("1.30", "1.37")
TOPOLOGIES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))


def values_of(topology):
    return yaml.safe_load((CHART / "ci" / f"{topology}-values.yaml").read_text())


def merged(base, changes):
    """`base` with `changes`, as `helm -f base -f changes` merges them."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: merged(base.get(key), value) for key, value in changes.items()}


def changes(path, value):
    """{"a": {"b": value}} for "a.b"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def render(values, name=RELEASE, revision=REVISION):
    """Every rendered file, by its path under templates/."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=name, namespace=NAMESPACE, revision=revision)
    return {path.removeprefix("passline/templates/"): text for path, text in files.items()}


def objects_of(files):
    """Every object in rendered files."""
    return [
        document
        for path, text in sorted(files.items())
        if path != "NOTES.txt"
        for document in yaml.safe_load_all(text)
        if document
    ]


@functools.cache
def topology(name):
    """A topology's objects; not to be changed."""
    return objects_of(render(values_of(name)))


def pick(objects, kind, name=None):
    found = [item for item in objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} objects of kind {kind} named {name}")
    return found[0]


def pods(objects):
    """(name, labels of the pod, its spec) of every pod that the objects make."""
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == "Pod":
            yield name, item["metadata"]["labels"], item["spec"]
        elif item["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, item["spec"]["template"]["metadata"]["labels"], item["spec"]["template"]["spec"]


def containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"]]


def program(name):
    """A program that tests/run has built."""
    return pathlib.Path(os.environ.get("PASSLINE_BIN", ROOT / "target/debug")) / name

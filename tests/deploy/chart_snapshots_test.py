"""What matters of each topology, written down to be read: a change of it shows in review.

PASSLINE_UPDATE_SNAPSHOTS=1 writes tests/deploy/snapshots anew.
"""

import os
import unittest

import yaml

import chart

SNAPSHOTS = chart.ROOT / "tests/deploy/snapshots"


class Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def workload(item):
    spec = item["spec"]
    template = spec["template"]["spec"]
    kept = {key: spec[key] for key in (
        "replicas", "serviceName", "podManagementPolicy", "persistentVolumeClaimRetentionPolicy", "strategy", "updateStrategy",
        "minReadySeconds", "ttlSecondsAfterFinished", "backoffLimit") if key in spec}
    kept["claims"] = {claim["metadata"]["name"]: claim["spec"] for claim in spec.get("volumeClaimTemplates", [])}
    kept["grace"] = template.get("terminationGracePeriodSeconds")
    for container in chart.containers(template):
        kept[f"container {container['name']}"] = {
            "args": container["args"],
            "ports": {port["name"]: port["containerPort"] for port in container.get("ports", [])},
            "env": [variable["name"] for variable in container.get("env", [])],
            **{key: container[key] for key in ("startupProbe", "livenessProbe", "readinessProbe") if key in container},
        }
    return {key: value for key, value in kept.items() if value not in (None, {}, [])}


def snapshot(objects):
    what = {"objects": [f"{item['kind']}/{item['metadata']['name']}" for item in objects]}
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet", "Job"):
            what[name] = workload(item)
        elif item["kind"] == "Service":
            what[name] = {port["name"]: f"{port['port']} -> {port['targetPort']} ({port['appProtocol']})" for port in item["spec"]["ports"]}
        elif item["kind"] == "ConfigMap":
            # A block can't end lines with spaces.
            what.update({f"{name} {key}": "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
                         for key, text in item["data"].items() if key.endswith(".toml")})
        elif item["kind"] == "NetworkPolicy":
            what[name] = {key: item["spec"].get(key) for key in ("ingress", "egress")}
    return yaml.dump(what, Dumper=Dumper, sort_keys=False, width=120)


class Snapshots(unittest.TestCase):
    maxDiff = None

    def test_what_matters_of_each_topology_is_as_it_was_reviewed(self):
        for topology in chart.TOPOLOGIES:
            path = SNAPSHOTS / f"{topology}.yaml"
            text = snapshot(chart.topology(topology))
            if os.environ.get("PASSLINE_UPDATE_SNAPSHOTS"):
                path.write_text(text)
            with self.subTest(topology):
                self.assertEqual(text, path.read_text() if path.exists() else "")

    def test_there_is_no_snapshot_of_nothing(self):
        self.assertEqual(sorted(path.stem for path in SNAPSHOTS.glob("*.yaml")), chart.TOPOLOGIES)


if __name__ == "__main__":
    unittest.main()

"""Every topology of ci/ renders, lints, and is what Kubernetes takes."""

import importlib.machinery
import importlib.util
import re
import shlex
import tomllib
import unittest

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml

import chart

# What Kubernetes doesn't define; the fields that the chart sets, by those projects' own definitions.
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
SELECTOR = {"type": "object", "required": ["matchLabels"], "additionalProperties": False, "properties": {"matchLabels": LABELS}}
PARENTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {name: {"type": "string"} for name in ("group", "kind", "name", "namespace", "sectionName")},
    },
}
BACKENDS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "port"],
        "additionalProperties": False,
        "properties": {"name": {"type": "string"}, "port": {"type": "integer"}},
    },
}


def closed(required, **properties):
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


def monitor(endpoints):
    scrape = closed(
        ["port", "path"],
        port={"type": "string"},
        path={"const": "/metrics"},
        scheme={"enum": ["http", "https"]},
        interval={"type": "string"},
        scrapeTimeout={"type": "string"},
        tlsConfig={"type": "object"},
        relabelings={"type": "array"},
        metricRelabelings={"type": "array"},
    )
    return closed(
        ["selector", endpoints],
        jobLabel={"type": "string"},
        selector=SELECTOR,
        namespaceSelector=closed(["matchNames"], matchNames={"type": "array", "items": {"type": "string"}}),
        **{endpoints: {"type": "array", "minItems": 1, "items": scrape}},
    )


def route(matches):
    return closed(
        ["parentRefs", "rules"],
        parentRefs=PARENTS,
        hostnames={"type": "array", "items": {"type": "string"}},
        rules={"type": "array", "minItems": 1, "items": closed(["backendRefs"], backendRefs=BACKENDS, matches=matches)},
    )


RULE = {
    "type": "object",
    "required": ["expr"],
    "additionalProperties": False,
    "properties": {
        "alert": {"type": "string"},
        "record": {"type": "string"},
        "expr": {"type": ["string", "integer"]},
        "for": {"type": "string"},
        "keep_firing_for": {"type": "string"},
        "labels": LABELS,
        "annotations": LABELS,
    },
}
CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): monitor("endpoints"),
    ("monitoring.coreos.com/v1", "PodMonitor"): monitor("podMetricsEndpoints"),
    ("monitoring.coreos.com/v1", "PrometheusRule"): closed(
        ["groups"],
        groups={
            "type": "array",
            "items": closed(
                ["name", "rules"],
                name={"type": "string"},
                interval={"type": "string"},
                limit={"type": "integer"},
                rules={"type": "array", "items": RULE},
            ),
        },
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): route(
        {"type": "array", "items": closed(["path"], path=closed(["type", "value"], type={"const": "PathPrefix"}, value={"type": "string"}))}
    ),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): route({"type": "array"}),
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"): closed(
        ["targetRefs", "validation"],
        targetRefs={
            "type": "array",
            "minItems": 1,
            "items": closed(["group", "kind", "name"], group={"const": ""}, kind={"const": "Service"}, name={"type": "string"}),
        },
        validation=closed(
            ["hostname"],
            hostname={"type": "string"},
            caCertificateRefs={
                "type": "array",
                "minItems": 1,
                "items": closed(["group", "kind", "name"], group={"const": ""}, kind={"const": "ConfigMap"}, name={"type": "string"}),
            },
        ),
    ),
    ("cert-manager.io/v1", "Certificate"): closed(
        ["secretName", "issuerRef", "dnsNames"],
        secretName={"type": "string"},
        issuerRef=closed(["name", "kind", "group"], name={"type": "string", "minLength": 1}, kind={"type": "string"}, group={"type": "string"}),
        duration={"type": "string"},
        renewBefore={"type": "string"},
        privateKey=closed(
            ["algorithm"],
            algorithm={"enum": ["ECDSA", "RSA", "Ed25519"]},
            size={"type": "integer"},
            rotationPolicy={"enum": ["Always", "Never"]},
        ),
        usages={"type": "array", "items": {"enum": ["digital signature", "key encipherment", "server auth", "client auth"]}},
        dnsNames={"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}},
    ),
}


class Topologies(unittest.TestCase):
    def test_there_is_one_for_every_pair_of_backends(self):
        pairs = set()
        for name in chart.TOPOLOGIES:
            with helm.Chart.load(chart.CHART) as loaded:
                values = loaded.merge_values(chart.values_of(name))
            pairs.add((values["passState"]["store"]["backend"], values["gateway"]["spool"]["backend"]))
        self.assertEqual(pairs, {(store, spool) for store in ("sqlite", "postgres") for spool in ("embedded", "jetstream")})

    def test_each_lints_without_a_word(self):
        for name in chart.TOPOLOGIES:
            with self.subTest(name):
                report = helm.lint(
                    chart.CHART, chart.values_of(name), strict=True, namespace=chart.NAMESPACE, kube_version=f"v{chart.MINORS[0]}.0"
                )
                told = [message for message in report["messages"] if "icon is recommended" not in message["error"]]
                self.assertEqual((told, report["errors"]), ([], []))

    def test_each_is_valid_on_the_oldest_and_the_newest_minor(self):
        for name in chart.TOPOLOGIES:
            for item in chart.topology(name):
                what = f"{name}: {item['kind']}/{item['metadata']['name']}"
                if custom := CUSTOM.get((item["apiVersion"], item["kind"])):
                    with self.subTest(what):
                        jsonschema.validate(item["spec"], custom)
                    continue
                for minor in chart.MINORS:
                    with self.subTest(what, minor=minor):
                        self.assertEqual(kubernetes_validate.validate(item, minor, strict=True), minor)

    def test_the_oldest_minor_is_the_one_that_the_chart_names(self):
        metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
        self.assertEqual(metadata["kubeVersion"], f">={chart.MINORS[0]}.0-0")

    def test_names_stay_names_whatever_the_release_is_called(self):
        long = "a-release-with-a-name-as-long-as-helm-takes-12345"
        for name in chart.TOPOLOGIES:
            for item in chart.objects_of(chart.render(chart.values_of(name), long, 1234)):
                called = item["metadata"]["name"]
                with self.subTest(name, kind=item["kind"], called=called):
                    self.assertRegex(called, r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
                    # Behind a workload's name a hash has to fit into a label; a ConfigMap's name goes into none.
                    longest = {"StatefulSet": 52, "Deployment": 52, "ConfigMap": 253}.get(item["kind"], 63)
                    self.assertLessEqual(len(called), longest)

    def test_two_renders_give_the_same_text(self):
        for name in chart.TOPOLOGIES:
            values = chart.values_of(name)
            self.assertEqual(chart.render(values), chart.render(values))

    def test_the_notes_show_how_to_ask_with_grpcurl(self):
        for name in chart.TOPOLOGIES:
            with self.subTest(name):
                notes = chart.render(chart.values_of(name))["NOTES.txt"]
                insecure = name == "insecure"
                self.assertIn("passline.v1.PassService/GetLogInfo", notes)
                self.assertEqual("grpcurl -plaintext" in notes, insecure)
                self.assertEqual("WARNING: passState.insecure is true" in notes, insecure)

    def told(self, values):
        """The flags of the notes' grpcurl, as a dict, and the notes."""
        notes = chart.render(values)["NOTES.txt"]
        command = shlex.split(next(line for line in notes.splitlines() if line.startswith("  grpcurl ")))
        self.assertEqual(command[-2:], ["127.0.0.1:50051", "passline.v1.PassService/GetLogInfo"])
        flags = command[1:-2]
        if flags[0] == "-plaintext":
            flags = ["-plaintext", "", *flags[1:]]
        self.assertTrue(all(flag.startswith("-") for flag in flags[::2]), flags)
        return dict(zip(flags[::2], flags[1::2], strict=True)), notes

    def test_the_notes_check_pass_states_certificate_as_the_gateways_do(self):
        server_name = chart.changes("gateway.passState.tls.serverName", "pass-state.example.org")
        for topology, changes in (
            ("sqlite-embedded", {}), ("sqlite-embedded", server_name), ("sqlite-jetstream", {}), ("postgres-embedded", {}),
            ("postgres-jetstream", {}),
        ):
            with self.subTest(topology, changes=changes):
                values = chart.merged(chart.values_of(topology), changes)
                flags, notes = self.told(values)
                objects = chart.objects_of(chart.render(values))
                config = tomllib.loads(chart.pick(objects, "ConfigMap", "rel-passline-gateway")["data"]["webhook-gateway.toml"])
                tls = config["pass_state"]["tls"]
                host = config["pass_state"]["endpoint"].removeprefix("https://").partition(":")[0]
                self.assertEqual(flags["-authority"], tls.get("server_name", host))
                for item in objects:
                    if item["kind"] == "Certificate" and item["metadata"]["name"] == "rel-passline-pass-state-tls":
                        self.assertIn(flags["-authority"], item["spec"]["dnsNames"])
                _, secret, key = tls["ca_file"].rsplit("/", 2)
                self.assertRegex(notes, rf'get secret {secret} -o .*"{re.escape(key)}".* > {flags["-cacert"]}\n')
                self.assertEqual(flags["-H"], "authorization: Bearer $TOKEN")
                required = values["passState"].get("tls", {}).get("clientAuth") == "required"
                self.assertEqual({"-cert", "-key"} <= set(flags), required)
        self.assertEqual(self.told(chart.values_of("insecure"))[0], {"-plaintext": ""})
        roots = chart.merged(chart.values_of("sqlite-embedded"), {"gateway": {"passState": {"tls": {
            "systemRoots": True, "ca": {"existingSecret": ""}}}}})
        self.assertNotIn("-cacert", self.told(roots)[0])

    def test_the_notes_tell_every_way_in_and_how_many_there_are(self):
        for topology, words in (
            ("sqlite-embedded", ["2 gateway(s)", "1 pass-state", "https://hooks.example.org/webhooks/{source}\n"]),
            ("sqlite-jetstream", ["get service rel-passline-gateway -o jsonpath", "https://ADDRESS:443/webhooks/{source}"]),
            ("postgres-jetstream", ["3 to 8 gateway(s)", "2 to 6 pass-state", "http(s)://hooks.example.org/webhooks/{source}, as the listeners of public say"]),
        ):
            notes = chart.render(chart.values_of(topology))["NOTES.txt"]
            for word in words:
                with self.subTest(topology, word=word):
                    self.assertIn(word, notes)


class Generated(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        loader = importlib.machinery.SourceFileLoader("generate", str(chart.ROOT / "deploy/helm/generate"))
        cls.generate = importlib.util.module_from_spec(importlib.util.spec_from_loader("generate", loader))
        loader.exec_module(cls.generate)

    def test_what_deploy_helm_generate_makes_is_current(self):
        stale = [str(path.relative_to(chart.ROOT)) for path in self.generate.stale()]
        self.assertEqual(stale, [], "run deploy/helm/generate")

    def test_every_value_is_described(self):
        keys = self.generate.keys_of((chart.CHART / "values.yaml").read_text())
        values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
        for key in keys:
            value = values
            for name in key.path:
                value = value[name]
            if key.whole or not isinstance(value, dict):
                self.assertTrue(key.description, ".".join(key.path))

    def test_the_schema_leaves_nothing_open_that_is_the_charts_own(self):
        definitions = self.generate.DEFINITIONS
        # Handed to Kubernetes as they are.
        passed_on = [definitions["raw"], definitions["rawList"]["items"]]

        def walk(schema, path):
            if isinstance(schema, list):
                for index, inner in enumerate(schema):
                    walk(inner, f"{path}[{index}]")
            elif isinstance(schema, dict):
                if schema.get("type") == "object" and schema not in passed_on:
                    self.assertIn("additionalProperties", schema, path)
                    self.assertNotEqual(schema["additionalProperties"], True, path)
                for name, inner in schema.items():
                    walk(inner, f"{path}.{name}")

        with helm.Chart.load(chart.CHART) as loaded:
            walk(loaded.schema, "")

    def test_the_services_own_defaults_are_the_charts(self):
        template = "".join((chart.CHART / f"templates/{name}.tpl").read_text() for name in ("_units", "_validate"))
        example = {
            service: dict((key, value) for key, value, _ in self.generate.toml_keys(
                (chart.ROOT / f"services/{service}/{service}.example.toml").read_text()))
            for service in ("webhook-gateway", "pass-state")
        }
        for service, key, pattern in (
            ("webhook-gateway", "drain_delay", r'\(\$config\.drain_delay \| default "(\w+)"\)'),
            ("pass-state", "drain_delay", r'\(\$config\.drain_delay \| default "(\w+)"\)'),
            ("webhook-gateway", "telemetry.export_timeout", r'export_timeout\) \| default "(\w+)"'),
            ("pass-state", "telemetry.export_timeout", r'export_timeout\) \| default "(\w+)"'),
            ("webhook-gateway", "http.limits.drain_timeout", r'\$config\.http\)\.limits\)\.drain_timeout\) \| default "(\w+)"'),
            ("webhook-gateway", "forward.drain_timeout", r'\$config\.forward\)\.drain_timeout\) \| default "(\w+)"'),
            ("webhook-gateway", "http.body_bytes_max", r'default "(\w+)" \(\.config\.http\)\.body_bytes_max'),
            ("pass-state", "ingest.body_bytes_max", r'default "(\w+)" \(\$root\.Values\.passState\.config\.ingest\)\.body_bytes_max'),
            ("pass-state", "grpc.limits.drain_timeout", r'\$config\.grpc\)\.limits\)\.drain_timeout\) \| default "(\w+)"'),
        ):
            with self.subTest(service, key=key):
                self.assertEqual(re.search(pattern, template)[1], example[service][key])


if __name__ == "__main__":
    unittest.main()

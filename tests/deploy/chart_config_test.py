"""The configuration that the chart renders is taken by the services themselves."""

import os
import re
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

import helm_python as helm

import chart

# What stands in a Secret's key, where the services look at it.
CONTENTS = {
    "url": "postgres://passline:secret@db.example.org/passline?sslmode=disable",
    "whsec": "whsec_" + "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
    "nats.creds": "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n",
    "token": "plt_" + "A" * 43,
    "principals.toml": (
        '[[principals]]\nname = "gateway"\ntoken_sha256 = ["' + "0" * 64 + '"]\nscopes = ["ingest"]\nsources = ["*"]\norganizations = []\n'
    ),
}
SECRET = "a-secret-that-is-long-enough-for-every-scheme"


def certificates(directory):
    """A CA and a certificate of its own, as a kubernetes.io/tls Secret of cert-manager's holds them."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca"],
        ["req", "-x509", *key, "-keyout", "tls.key", "-out", "tls.crt", "-subj", "/CN=passline",
         "-addext", "subjectAltName=DNS:passline.example.org", "-addext", "basicConstraints=critical,CA:FALSE",
         "-CA", "ca.crt", "-CAkey", "ca.key"],
    ):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
    return {name: (directory / name).read_text() for name in ("ca.crt", "tls.crt", "tls.key")}


def flat(table, path=()):
    """(dotted key, value) of every value of a table."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


class CheckConfig(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.pki = certificates(Path(cls.directory.name))

    def laid_out(self, root, objects, component):
        """The files of a component's pod under `root`, with every path in them moved there."""
        root = Path(root)
        spec = next(spec for _, labels, spec in chart.pods(objects) if labels["app.kubernetes.io/component"] == component)
        secrets = {item["metadata"]["name"]: item["stringData"] for item in objects if item["kind"] == "Secret"}
        for volume in spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                for item in source["secret"]["items"]:
                    path = root / "secrets" / item["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    rendered = secrets.get(source["secret"]["name"], {})
                    contents = CONTENTS | self.pki | rendered
                    path.write_text(contents.get(item["key"], SECRET))
                    path.chmod(0o440)
            if "configMap" in volume:
                for name, text in chart.pick(objects, "ConfigMap", volume["configMap"]["name"])["data"].items():
                    path = root / "config" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text.replace("/etc/passline/", f"{root}/"))
        return spec

    def check(self, program, config, env):
        return subprocess.run(
            [chart.program(program), "check-config", "--config", config], env=env, capture_output=True, text=True, timeout=30)

    def assert_taken(self, objects):
        for component, program in (("gateway", "webhook-gateway"), ("pass-state", "pass-state"), ("migrate", "pass-state")):
            if not any(labels["app.kubernetes.io/component"] == component for _, labels, _ in chart.pods(objects)):
                continue
            with self.subTest(component=component), tempfile.TemporaryDirectory() as root:
                spec = self.laid_out(root, objects, component)
                container = spec["containers"][0]
                config = container["args"][container["args"].index("--config") + 1].replace("/etc/passline", root)
                env = {
                    variable["name"]: variable.get("value", "rel-passline-gateway-0")
                    for variable in container.get("env", [])
                    if "__" in variable["name"]
                }
                done = self.check(program, config, env | {"PATH": os.environ["PATH"]})
                self.assertEqual((done.returncode, done.stderr), (0, ""), Path(config).read_text())

    def test_every_topology_is_taken(self):
        for topology in chart.TOPOLOGIES:
            with self.subTest(topology):
                self.assert_taken(chart.topology(topology))

    def test_each_way_to_log_in_to_nats_is_taken(self):
        for method in ("none", "token", "password", "credentials"):
            auth = {"method": method, "user": "passline", "existingSecret": "nats", "key": "nats.creds"}
            values = chart.merged(chart.values_of("sqlite-jetstream"), chart.changes("gateway.spool.jetstream.auth", auth))
            with self.subTest(method):
                self.assert_taken(chart.objects_of(chart.render(values)))

    def test_every_listener_may_speak_tls_and_ask_for_certificates(self):
        values = chart.merged(chart.values_of("sqlite-embedded"), {
            "gateway": {
                "tls": {"existingSecret": "hooks-tls", "clientCa": {"existingSecret": "clients"}, "clientAuth": "optional"},
                "admin": {"tlsSecret": "gateway-admin-tls"},
                "passState": {"tls": {"clientSecret": "gateway-client", "serverName": "pass-state.example.org"}},
            },
            "passState": {"admin": {"tlsSecret": "pass-state-admin-tls"}, "tls": {"clientCa": {"existingSecret": "clients"}}},
            "observability": {"otlp": {"endpoint": "https://otel.example.org:4317", "ca": {"existingSecret": "otel"}, "clientSecret": "otel-client"}},
        })
        self.assert_taken(chart.objects_of(chart.render(values)))

    def test_a_fault_in_the_rendered_configuration_would_be_seen(self):
        objects = chart.topology("sqlite-embedded")
        for component, program, name in (("gateway", "webhook-gateway", "webhook-gateway.toml"), ("pass-state", "pass-state", "pass-state.toml")):
            with tempfile.TemporaryDirectory() as root:
                self.laid_out(root, objects, component)
                config = Path(root) / "config" / name
                config.write_text(f"no_such_key = 1\n{config.read_text()}")
                done = self.check(program, config, {"PATH": os.environ["PATH"]})
                self.assertEqual(done.returncode, 64)
                self.assertIn("no_such_key", done.stderr)

    def test_the_bounds_of_the_schema_are_the_services_own(self):
        def bounded(schema, path=()):
            for name, inner in schema.get("properties", {}).items():
                if "maximum" in inner:
                    yield (*path, name), inner
                yield from bounded(inner, (*path, name))

        with helm.Chart.load(chart.CHART) as loaded:
            definitions = loaded.schema["definitions"]
        for program, name, fewest in (("webhook-gateway", "gatewayConfig", 15), ("pass-state", "passStateConfig", 15)):
            keys = list(bounded(definitions[name]))
            self.assertGreaterEqual(len(keys), fewest)
            for limit, beyond in (("minimum", -1), ("maximum", 1)):
                config = {}
                told = {}
                for path, schema in keys:
                    # The embedded spool's keys and JetStream's exclude each other, and less than nothing is no number of them.
                    if path[:2] == ("spool", "jetstream") or schema[limit] + beyond < 0:
                        continue
                    at = config
                    for part in path[:-1]:
                        at = at.setdefault(part, {})
                    at[path[-1]] = schema[limit] + beyond
                    told[".".join(path)] = f"{schema['minimum']} to {schema['maximum']}"
                if not told:
                    continue
                with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                    file.write("\n".join(f"{name} = {value}" for name, value in flat(config)))
                    file.flush()
                    done = self.check(program, file.name, {"PATH": os.environ["PATH"]})
                for key, bounds in told.items():
                    with self.subTest(program, key=key, limit=limit):
                        table, _, last = key.rpartition(".")
                        self.assertRegex(done.stderr, rf"(?m)^({re.escape(key)} .*: .* allowed: {bounds};|{re.escape(table)} .*: {last} must be {bounds};)")

    def test_every_kind_of_value_becomes_the_toml_that_it_means(self):
        values = chart.merged(chart.values_of("sqlite-embedded"), {"gateway": {"config": {
            "http": {"requests_in_flight_max": 65536},
            "telemetry": {"sample_ratio": 0.01, "log_filter": 'info,"quoted" & <odd> \\ text'},
            "spool": {"append_queue_max": 1},
        }}})
        text = chart.pick(chart.objects_of(chart.render(values)), "ConfigMap", "rel-passline-gateway")["data"]["webhook-gateway.toml"]
        config = tomllib.loads(text)
        self.assertEqual(config["http"]["requests_in_flight_max"], 65536)
        self.assertIsInstance(config["spool"]["append_queue_max"], int)
        self.assertEqual(config["telemetry"]["sample_ratio"], 0.01)
        self.assertEqual(config["telemetry"]["log_filter"], 'info,"quoted" & <odd> \\ text')
        self.assertEqual(config["telemetry"]["service_name"], "webhook-gateway")
        self.assertEqual([source["name"] for source in config["sources"]], ["acme-passkit", "acme-passworks"])
        self.assertEqual(
            [Path(secret["file"]).relative_to("/etc/passline/secrets").as_posix() for secret in config["sources"][0]["auth"]["secrets"]],
            ["acme-passkit/hmac", "acme-passkit/hmac-next"])
        self.assertFalse(re.search(r"\d\.0\b", re.sub(r'".*?"', "", text)), "an integer became a float")


if __name__ == "__main__":
    unittest.main()

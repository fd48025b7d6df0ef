"""deploy/compose: nothing is started here, so what Docker would be told is checked, and the programs that are here read
their files: the services, nats-server and promtool."""

import os
import pathlib
import re
import shutil
import stat
import tempfile
import tomllib
import unittest

import yaml

from places import DEPLOY, ROOT, run, schema_faults, tool

COMPOSE = DEPLOY / "compose"
OURS = ("pass-state", "webhook-gateway", "passline")
# Runs nothing that could ask it; the image holds one program.
UNASKED = {"otel-collector", "passline"}
# Keys that would give a container what the machine keeps to itself.
FORBIDDEN = {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode", "uts", "env_file"}


def compose():
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))


def program(name):
    return pathlib.Path(os.environ.get("PASSLINE_BIN", ROOT / "target/debug")) / name


def volumes(service):
    """Pairs of what is mounted and where, with the options."""
    for volume in service.get("volumes", []):
        source, target, *options = volume.split(":")
        yield source, target, options


def secret_targets(service):
    """Pairs of a secret's name and where the container finds it."""
    for secret in service.get("secrets", []):
        if isinstance(secret, str):
            yield secret, f"/run/secrets/{secret}"
        else:
            yield secret["source"], secret["target"]


def mounted(service, secrets):
    """What a container finds at a path, by the path; `secrets` stands for the directory of make-secrets."""
    found = {target: COMPOSE / source for source, target, _ in volumes(service) if source.startswith(".")}
    for name, target in secret_targets(service):
        found[target] = secrets / pathlib.Path(compose()["secrets"][name]["file"]).name
    return found


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.compose = compose()
        cls.services = cls.compose["services"]

    def test_the_file_is_what_compose_reads(self):
        self.assertEqual(schema_faults(self.compose, "compose-spec"), [])

    def test_a_mistake_would_be_found(self):
        broken = compose()
        broken["services"]["nats"]["helthcheck"] = {}
        self.assertNotEqual(schema_faults(broken, "compose-spec"), [])

    def test_every_part_that_the_readme_promises_is_there(self):
        self.assertEqual(
            set(self.services), {*OURS, "postgres", "nats", "prometheus", "grafana", "otel-collector"}
        )

    def test_our_images_are_targets_of_the_dockerfile(self):
        dockerfile = (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")
        for name in OURS:
            build = self.services[name]["build"]
            self.assertEqual(build["target"], name)
            self.assertRegex(dockerfile, rf"(?m)^FROM \S+ AS {re.escape(build['target'])}$")
            context = (COMPOSE / build["context"]).resolve()
            self.assertEqual(context, ROOT)
            self.assertTrue((context / build["dockerfile"]).is_file())

    def test_our_images_are_never_asked_of_a_registry(self):
        for name in OURS:
            self.assertEqual(self.services[name]["pull_policy"], "build", name)

    def test_images_of_others_are_named_with_registry_and_exact_version(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                if name not in OURS:
                    self.assertRegex(service["image"], r"^docker\.io/[a-z-]+/[a-z-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?$")

    def test_nothing_is_published_but_on_loopback(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                for port in service.get("ports", []):
                    self.assertRegex(port, r"^127\.0\.0\.1:\d+:\d+$")

    def test_what_nobody_needs_from_outside_is_on_no_network_that_leads_there(self):
        self.assertTrue(self.compose["networks"]["inside"]["internal"])
        for name, service in self.services.items():
            with self.subTest(service=name):
                reached = "ports" in service
                self.assertEqual("outside" in service["networks"], reached, name)

    def test_no_container_may_do_more_than_it_needs(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertFalse(FORBIDDEN & set(service), name)
                self.assertIn("mem_limit", service)
                self.assertIn("pids_limit", service)
                for source, _, options in volumes(service):
                    if source.startswith("."):
                        self.assertEqual(options, ["ro"], source)
                    else:
                        self.assertIn(source, self.compose["volumes"])

    def test_only_nats_is_root_and_only_for_its_volume(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                if name in OURS:
                    self.assertNotIn("user", service, "the image's own user")
                else:
                    uid = int(service["user"].split(":")[0])
                    self.assertEqual(uid == 0, name == "nats")

    def test_every_container_is_asked_for_its_health(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                if name in UNASKED:
                    self.assertNotIn("healthcheck", service)
                    continue
                test = service["healthcheck"]["test"]
                self.assertEqual(test[0], "CMD", "without a shell")
                for key in ("interval", "timeout", "retries", "start_period"):
                    self.assertIn(key, service["healthcheck"])

    def test_a_service_waits_only_for_what_tells_that_it_is_ready(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                for needed, how in service.get("depends_on", {}).items():
                    if how["condition"] == "service_healthy":
                        self.assertIn("healthcheck", self.services[needed])

    def test_the_services_are_called_by_commands_that_they_have(self):
        for name in ("pass-state", "webhook-gateway"):
            with self.subTest(service=name):
                help_text = run([program(name), "--help"]).stdout
                service = self.services[name]
                for words in (service["command"], service["healthcheck"]["test"][2:]):
                    self.assertRegex(help_text, rf"(?m)^  {words[0]}\b")
                    config = words[words.index("--config") + 1]
                    self.assertIn(config, mounted(service, COMPOSE / "secrets"))
                self.assertEqual(service["healthcheck"]["test"][1], f"/usr/local/bin/{name}")

    def test_a_service_is_given_the_time_that_its_drain_may_take(self):
        def seconds(text):
            number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
            return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]

        needed = {
            "pass-state": (("drain_delay",), ("grpc", "limits", "drain_timeout"), ("telemetry", "export_timeout")),
            "webhook-gateway": (
                ("drain_delay",), ("http", "limits", "drain_timeout"), ("forward", "drain_timeout"),
                ("telemetry", "export_timeout"),
            ),
        }
        for name, keys in needed.items():
            example = tomllib.loads((ROOT / f"services/{name}/{name}.example.toml").read_text(encoding="utf-8"))
            own = tomllib.loads((COMPOSE / f"{name}.toml").read_text(encoding="utf-8"))

            def value(tables, path):
                for key in path:
                    tables = tables.get(key, {}) if isinstance(tables, dict) else {}
                return tables or None

            whole = sum(seconds(value(own, path) or value(example, path)) for path in keys)
            self.assertGreater(seconds(self.services[name]["stop_grace_period"]), whole, name)

    def test_every_file_that_is_mounted_exists(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                for source, _, _ in volumes(service):
                    if source.startswith("."):
                        self.assertTrue((COMPOSE / source).exists(), f"{name}: {source}")

    def test_every_secret_is_made_and_none_is_written_down(self):
        script = (COMPOSE / "make-secrets").read_text(encoding="utf-8")
        used = {name for service in self.services.values() for name, _ in secret_targets(service)}
        self.assertEqual(used, set(self.compose["secrets"]))
        for name, secret in self.compose["secrets"].items():
            self.assertEqual(secret, {"file": f"./secrets/{name}"})
            self.assertIn(name, script)
        for service in self.services.values():
            for key, value in service.get("environment", {}).items():
                if re.search(r"PASSWORD|SECRET|TOKEN", key):
                    self.assertTrue(key.endswith("_FILE"), key)
                    self.assertTrue(value.startswith("/run/secrets/"))
        for file in ("webhook-gateway.toml", "pass-state.toml"):
            text = (COMPOSE / file).read_text(encoding="utf-8")
            self.assertNotRegex(text, r"value\s*=")
            self.assertNotRegex(text, r"insecure\s*=\s*true|allow_unsynced\s*=\s*true")

    def test_git_never_sees_a_secret(self):
        ignored = run(["git", "check-ignore", "--no-index", "deploy/compose/secrets/database-url"])
        self.assertEqual(ignored.returncode, 0, ignored.stdout)


class Files(unittest.TestCase):
    """What the containers read, read by the programs themselves where they are here."""

    @classmethod
    def setUpClass(cls):
        cls.services = compose()["services"]
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.work = pathlib.Path(directory.name)
        cls.secrets = cls.work / "secrets"
        made = run([COMPOSE / "make-secrets", cls.secrets])
        assert made.returncode == 0, made.stdout

    def test_the_script_has_no_faults(self):
        done = tool("shellcheck", COMPOSE / "make-secrets", ROOT / ".ci/run", ROOT / "tests/run", ROOT / "tests/tools/install")
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_secrets_are_made_once_for_their_owner_and_never_shown(self):
        self.assertEqual(stat.S_IMODE(self.secrets.stat().st_mode), 0o700)
        before = {path.name: path.read_bytes() for path in self.secrets.iterdir()}
        self.assertEqual(set(before), set(compose()["secrets"]))
        again = run([COMPOSE / "make-secrets", self.secrets])
        self.assertEqual(again.returncode, 0)
        self.assertEqual({path.name: path.read_bytes() for path in self.secrets.iterdir()}, before)
        other = run([COMPOSE / "make-secrets", self.work / "other"])
        for name, content in before.items():
            self.assertNotEqual((self.work / "other" / name).read_bytes(), content, f"{name} is the same everywhere")
            for word in re.findall(r"[\w+/=-]{20,}", content.decode()):
                self.assertNotIn(word, other.stdout + again.stdout, f"{name} is printed")

    def test_half_made_secrets_are_made_again(self):
        half = self.work / "half"
        shutil.copytree(self.secrets, half)
        (half / "nats-password").write_text("", encoding="utf-8")
        (half / "ca.pem").unlink()
        done = run([COMPOSE / "make-secrets", half])
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex((half / "nats-password").read_text(encoding="utf-8"), r"^[0-9a-f]{64}\n$")
        checked = run(["openssl", "verify", "-CAfile", half / "ca.pem", half / "pass-state.pem"])
        self.assertEqual(checked.returncode, 0, checked.stdout)

    def laid_out(self, name):
        """A service's configuration with the container's paths turned into those of this machine."""
        service = self.services[name]
        found = mounted(service, self.secrets)
        config = found[f"/etc/passline/{name}.toml"]
        text = config.read_text(encoding="utf-8")
        for path in strings(tomllib.loads(text)):
            if path.startswith("/"):
                self.assertIn(path, found, f"{config.name} names a file that is not mounted")
                text = text.replace(f'"{path}"', f'"{found[path]}"')
        laid = self.work / config.name
        laid.write_text(text, encoding="utf-8")
        return laid

    def check_config(self, name, config):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("GATEWAY__", "PASS_STATE__"))}
        return run([program(name), "check-config", "--config", config], env=clean)

    def test_the_services_take_their_configurations(self):
        for name in ("pass-state", "webhook-gateway"):
            with self.subTest(service=name):
                done = self.check_config(name, self.laid_out(name))
                self.assertEqual(done.returncode, 0, done.stdout)

    def test_a_fault_in_a_configuration_would_be_found(self):
        config = self.laid_out("pass-state")
        broken = self.work / "broken.toml"
        broken.write_text(config.read_text(encoding="utf-8").replace("[grpc]", "[grpc]\nlisten_on = 1"), encoding="utf-8")
        done = self.check_config("pass-state", broken)
        self.assertEqual(done.returncode, 64, done.stdout)
        self.assertIn("listen_on", done.stdout)

    def test_services_name_each_other_and_ports_that_are_listened_on(self):
        gateway = tomllib.loads((COMPOSE / "webhook-gateway.toml").read_text(encoding="utf-8"))
        state = tomllib.loads((COMPOSE / "pass-state.toml").read_text(encoding="utf-8"))
        nats = (COMPOSE / "nats.conf").read_text(encoding="utf-8")
        port = state["grpc"]["listen"].rpartition(":")[2]
        self.assertEqual(gateway["pass_state"]["endpoint"], f"https://pass-state:{port}")
        self.assertIn(':4222"', nats)
        self.assertEqual(gateway["spool"]["jetstream"]["servers"], ["nats://nats:4222"])
        self.assertIn(':8222"', nats)
        self.assertEqual(gateway["spool"]["jetstream"]["monitoring_urls"], ["http://nats:8222"])
        collector = yaml.safe_load((COMPOSE / "collector.yaml").read_text(encoding="utf-8"))
        listens = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
        scraped = {"webhook-gateway": gateway["admin"]["listen"], "pass-state": state["admin"]["listen"]}
        scraped["otel-collector"] = collector["exporters"]["prometheus"]["endpoint"]
        for config in (gateway, state):
            self.assertEqual(config["telemetry"]["otlp_endpoint"], f"http://otel-collector:{listens}")
        prometheus = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text(encoding="utf-8"))
        targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]}
        for name, listen in scraped.items():
            self.assertEqual(targets[name], [f"{name}:{listen.rpartition(':')[2]}"])

    def test_nats_takes_its_configuration_and_syncs_before_it_confirms(self):
        config = (COMPOSE / "nats.conf").read_text(encoding="utf-8")
        self.assertRegex(config, r"(?m)^  sync_interval: always$")
        laid = self.work / "nats"
        laid.mkdir()
        shutil.copyfile(self.secrets / "nats-auth.conf", laid / "auth.conf")
        self.assertIn('"/data"', config)
        (laid / "nats.conf").write_text(config.replace('"/data"', f'"{laid}/data"'), encoding="utf-8")
        server = os.environ.get("PASSLINE_NATS_SERVER", ROOT / "target/tools/bin/nats-server")
        done = run([server, "-t", "--config", laid / "nats.conf"])
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("configuration file", done.stdout)

    def test_prometheus_takes_its_configuration_with_the_alert_rules(self):
        text = (COMPOSE / "prometheus.yaml").read_text(encoding="utf-8")
        found = mounted(self.services["prometheus"], self.secrets)
        self.assertIn("/etc/prometheus/alerts", found)
        rules = list(found["/etc/prometheus/alerts"].glob("*.rules.yaml"))
        self.assertNotEqual(rules, [])
        laid = self.work / "prometheus.yaml"
        laid.write_text(
            text.replace("/etc/prometheus/alerts", str(found["/etc/prometheus/alerts"].resolve())), encoding="utf-8"
        )
        promtool = os.environ.get("PASSLINE_PROMTOOL", ROOT / "target/tools/bin/promtool")
        done = run([promtool, "check", "config", laid])
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn(f"{len(rules)} rule files found", done.stdout)

    def test_the_collectors_pipelines_are_made_of_parts_that_are_there(self):
        collector = yaml.safe_load((COMPOSE / "collector.yaml").read_text(encoding="utf-8"))
        used = {"receivers": set(), "processors": set(), "exporters": set()}
        for pipeline in collector["service"]["pipelines"].values():
            for kind, names in pipeline.items():
                used[kind] |= set(names)
            self.assertEqual(pipeline["processors"][0], "memory_limiter", "it must be able to refuse")
        for kind, names in used.items():
            self.assertEqual(names, set(collector[kind]), f"{kind}: what is there is used, and the other way round")

    def test_grafana_is_given_a_source_of_data_and_the_dashboards(self):
        found = mounted(self.services["grafana"], self.secrets)
        sources = yaml.safe_load((COMPOSE / "grafana/datasources/prometheus.yaml").read_text(encoding="utf-8"))
        (source,) = sources["datasources"]
        self.assertEqual(source["url"], "http://prometheus:9090")
        providers = yaml.safe_load((COMPOSE / "grafana/dashboards/passline.yaml").read_text(encoding="utf-8"))
        (provider,) = providers["providers"]
        dashboards = list(found[provider["options"]["path"]].glob("*.json"))
        self.assertNotEqual(dashboards, [])
        for path in dashboards:
            for asked in re.findall(r'"uid":\s*"(\$[^"]+)"', path.read_text(encoding="utf-8")):
                self.assertEqual(asked, "${datasource}", "a dashboard asks the source that is chosen, or the default one")


if __name__ == "__main__":
    unittest.main()

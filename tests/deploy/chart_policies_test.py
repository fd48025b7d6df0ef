"""What holds of every pod and object of every topology: nothing privileged, nothing secret in the open, nothing dangling."""

import re
import unittest

import chart

# A secret's name, place or hash may be shown; what looks like one may not.
SECRET_NAMES = re.compile(r"(?i)(password|passwd|secret|token|api_?key|credential|private_?key)s?$")
SECRET_TEXTS = re.compile(
    r"-----BEGIN|whsec_|plt_[A-Za-z0-9_-]{20}|postgres(ql)?://[^\s\"]*:[^\s\"]*@|nats://[^\s\"]*@|\bS[UAO][A-Z2-7]{40,}|\beyJ[A-Za-z0-9_-]{10}")


class Pods(unittest.TestCase):
    def each(self):
        for topology in chart.TOPOLOGIES:
            for name, labels, spec in chart.pods(chart.topology(topology)):
                with self.subTest(topology, pod=name):
                    yield topology, name, labels, spec

    def each_container(self):
        for topology, name, _, spec in self.each():
            for container in chart.containers(spec):
                yield topology, name, spec, container

    def test_none_runs_as_root_or_may_become_it(self):
        for _, _, spec, container in self.each_container():
            pod, own = spec["securityContext"], container["securityContext"]
            self.assertIs(pod["runAsNonRoot"], True)
            self.assertEqual((pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]), (65532, 65532, 65532))
            self.assertEqual(pod["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertIs(own["runAsNonRoot"], True)
            self.assertIs(own["allowPrivilegeEscalation"], False)
            self.assertIs(own["readOnlyRootFilesystem"], True)
            self.assertEqual(own["capabilities"], {"drop": ["ALL"]})
            self.assertEqual(own["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertNotIn("privileged", own)

    def test_none_shares_the_nodes_namespaces_paths_or_the_clusters_token(self):
        for _, _, _, spec in self.each():
            self.assertIs(spec["automountServiceAccountToken"], False)
            self.assertIs(spec["enableServiceLinks"], False)
            for key in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertNotIn(key, spec)
            for volume in spec["volumes"]:
                self.assertNotIn("hostPath", volume)
            for container in chart.containers(spec):
                self.assertFalse([port for port in container.get("ports", []) if "hostPort" in port])

    def test_each_container_asks_for_cpu_and_memory_and_has_a_limit_of_memory(self):
        for _, _, _, container in self.each_container():
            self.assertLessEqual({"cpu", "memory"}, set(container["resources"]["requests"]))
            self.assertIn("memory", container["resources"]["limits"])

    def test_the_services_limits_are_the_promised_ones(self):
        for topology in chart.TOPOLOGIES:
            for _, labels, spec in chart.pods(chart.topology(topology)):
                promised = {"gateway": "512Mi", "pass-state": "768Mi"}.get(labels["app.kubernetes.io/component"])
                if promised:
                    self.assertEqual(spec["containers"][0]["resources"]["limits"]["memory"], promised)

    def test_images_are_named_exactly(self):
        for _, _, _, container in self.each_container():
            self.assertRegex(container["image"], r"^ghcr\.io/passline/(webhook-gateway|pass-state|passline):\d+\.\d+\.\d+$")

    def test_a_digest_wins_over_a_tag_and_a_registry_stands_before_both(self):
        digest = "sha256:" + "0" * 64
        objects = chart.objects_of(chart.render(chart.merged(chart.values_of("insecure"), {
            "global": {"imageRegistry": "registry.example.org/mirror/"},
            "gateway": {"image": {"tag": "1.2.3", "digest": digest}},
            "passState": {"image": {"tag": "1.2.3"}},
        })))
        images = {container["image"] for _, _, spec in chart.pods(objects) for container in spec["containers"]}
        self.assertIn(f"registry.example.org/mirror/ghcr.io/passline/webhook-gateway@{digest}", images)
        self.assertIn("registry.example.org/mirror/ghcr.io/passline/pass-state:1.2.3", images)

    def test_liveness_and_readiness_ask_different_things(self):
        for _, _, labels, spec in self.each():
            if labels["app.kubernetes.io/component"] not in ("gateway", "pass-state"):
                continue
            container = spec["containers"][0]
            asked = []
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                kind = "grpc" if "grpc" in container[probe] else "httpGet"
                question = container[probe][kind]
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                self.assertIn(question["port"], [*ports, *ports.values()])
                asked.append(question.get("service") or question.get("path"))
            startup, liveness, readiness = asked
            self.assertEqual(startup, liveness)
            self.assertNotEqual(liveness, readiness)

    def test_gateways_are_probed_by_the_scheme_of_their_admin_listener(self):
        for topology, scheme in (("sqlite-embedded", "HTTP"), ("postgres-jetstream", "HTTPS")):
            for _, labels, spec in chart.pods(chart.topology(topology)):
                if labels["app.kubernetes.io/component"] == "gateway":
                    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                        self.assertEqual(spec["containers"][0][probe]["httpGet"]["scheme"], scheme)

    def test_every_mount_has_its_volume_and_every_volume_its_mount(self):
        for topology, name, _, spec in self.each():
            claims = set()
            if name.startswith("StatefulSet/"):
                workload = chart.pick(chart.topology(topology), "StatefulSet", name.partition("/")[2])
                claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
            volumes = [volume["name"] for volume in spec["volumes"]]
            mounts = {mount["name"] for container in chart.containers(spec) for mount in container["volumeMounts"]}
            self.assertEqual(len(volumes), len(set(volumes)))
            self.assertEqual(mounts, {*volumes, *claims})

    def test_secrets_and_configuration_are_mounted_as_directories(self):
        # A subPath is never updated, so a rotated secret would not reach the process.
        for _, _, _, container in self.each_container():
            for mount in container["volumeMounts"]:
                self.assertNotIn("subPath", mount)
                self.assertEqual(mount.get("readOnly", False), mount["name"] != "data")

    def test_the_grace_is_what_the_drain_takes(self):
        # drain_delay + the drain of requests + forwarding + the flush of telemetry + slack
        for topology, gateway, pass_state in (("sqlite-embedded", 30, 28), ("postgres-jetstream", 50, 28)):
            graces = {
                labels["app.kubernetes.io/component"]: spec.get("terminationGracePeriodSeconds")
                for _, labels, spec in chart.pods(chart.topology(topology))
            }
            self.assertEqual((graces["gateway"], graces["pass-state"]), (gateway, pass_state))
        slow = chart.objects_of(chart.render(chart.merged(chart.values_of("sqlite-embedded"), {"gateway": {
            "config": {"drain_delay": "1m", "http": {"limits": {"drain_timeout": "2m"}}, "forward": {"drain_timeout": "1500ms"}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 7}}},
        }})))
        spec = chart.pick(slow, "StatefulSet", "rel-passline-gateway")["spec"]["template"]["spec"]
        self.assertEqual(spec["terminationGracePeriodSeconds"], 60 + 120 + 2 + 5 + 5 + 7)

    def test_a_job_and_the_test_run_where_the_services_may(self):
        where = {
            "nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "apart", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}}, "podAnnotations": {"example.org/mesh": "off"}, "runtimeClassName": "safe",
        }
        objects = chart.objects_of(chart.render(chart.merged(chart.values_of("postgres-jetstream"), {
            "gateway": where, "passState": where, "global": {"commonAnnotations": {"example.org/owner": "us"}}})))
        seen = set()
        for item in objects:
            if item["kind"] in ("Deployment", "Job", "Pod"):
                seen.add(item["kind"])
                pod = item if item["kind"] == "Pod" else item["spec"]["template"]
                with self.subTest(f"{item['kind']}/{item['metadata']['name']}"):
                    for key in set(where) - {"podAnnotations"}:
                        self.assertEqual(pod["spec"][key], where[key])
                    self.assertLessEqual(
                        {"example.org/mesh": "off", "example.org/owner": "us"}.items(), pod["metadata"]["annotations"].items())
        self.assertEqual(seen, {"Deployment", "Job", "Pod"})

    def test_the_job_that_migrates_is_another_one_whenever_anything_of_it_is(self):
        def job(changes):
            objects = chart.objects_of(chart.render(chart.merged(chart.values_of("postgres-jetstream"), changes)))
            return chart.pick(objects, "Job")

        base = job({})
        self.assertEqual(base, job({}))
        for path, value in (
            ("passState.migrations.job.backoffLimit", 1),
            ("passState.migrations.job.resources.limits.memory", "1Gi"),
            ("passState.migrations.job.existingSecret", "another"),
            ("passState.tolerations", [{"operator": "Exists"}]),
            ("passState.extraEnv", [{"name": "A", "value": "b"}]),
            ("passState.image.tag", "9.9.9"),
            ("passState.config.store.postgres.lock_timeout", "1s"),
        ):
            with self.subTest(path):
                self.assertNotEqual(job(chart.changes(path, value))["metadata"]["name"], base["metadata"]["name"])
        # What it does not run by leaves it as it is.
        self.assertEqual(job(chart.changes("passState.replicas", 5))["metadata"]["name"], base["metadata"]["name"])

    def test_the_job_that_migrates_holds_its_own_database_url_and_nothing_else(self):
        _, _, spec = next(pod for pod in chart.pods(chart.topology("postgres-jetstream")) if pod[0].startswith("Job/"))
        mounted = sorted(
            item["path"] for volume in spec["volumes"] for source in volume.get("projected", {}).get("sources", [])
            for item in source["secret"]["items"])
        self.assertEqual(mounted, ["passline-database-owner/url", "passline-database/ca.crt"])
        config = next(volume["configMap"] for volume in spec["volumes"] if "configMap" in volume)
        self.assertEqual([item["key"] for item in config["items"]], ["pass-state-migrate.toml"])

    def test_a_later_revision_replaces_a_pod_that_never_got_ready(self):
        for topology in chart.TOPOLOGIES:
            for item in chart.topology(topology):
                if item["kind"] == "StatefulSet":
                    self.assertEqual(item["spec"]["podManagementPolicy"], "Parallel")

    def test_changed_principals_restart_nothing(self):
        # pass-state reads them again while it runs.
        def templates(principals):
            values = chart.merged(chart.values_of("postgres-jetstream"), chart.changes("passState.auth.principals", principals))
            objects = chart.objects_of(chart.render(values))
            return [item["spec"]["template"] for item in objects if item["kind"] in ("Deployment", "StatefulSet")]

        one = {"name": "one", "token_sha256": ["1" * 64], "scopes": ["read"], "sources": ["*"]}
        self.assertEqual(templates([one]), templates([one, one | {"name": "two", "token_sha256": ["2" * 64]}]))

    def test_the_test_checks_pass_states_certificate_as_the_gateways_do(self):
        values = chart.merged(chart.values_of("sqlite-embedded"), chart.changes("gateway.passState.tls.serverName", "pass-state.example.org"))
        pod = chart.pick(chart.objects_of(chart.render(values)), "Pod")
        self.assertIn("--server-name=pass-state.example.org", pod["spec"]["containers"][0]["args"])

    def test_a_changed_configuration_restarts_the_pods_unless_it_is_told_not_to(self):
        def checksum(changes, topology="sqlite-embedded"):
            objects = chart.objects_of(chart.render(chart.merged(chart.values_of(topology), changes)))
            template = chart.pick(objects, "StatefulSet", "rel-passline-gateway")["spec"]["template"]
            return template["metadata"].get("annotations", {}).get("checksum/config")

        same, other = {}, {"gateway": {"config": {"ack": {"timeout": "4s"}}}}
        self.assertNotEqual(checksum(same), checksum(other))
        self.assertIsNone(checksum(same, "postgres-embedded"))


class Secrets(unittest.TestCase):
    def test_only_principals_that_the_values_name_become_a_secret(self):
        for topology in chart.TOPOLOGIES:
            secrets = [item for item in chart.topology(topology) if item["kind"] == "Secret"]
            with self.subTest(topology):
                expected = ["rel-passline-pass-state-principals"] if chart.values_of(topology).get("certManager") else []
                self.assertEqual([item["metadata"]["name"] for item in secrets], expected)
                for item in secrets:
                    self.assertEqual(set(item["stringData"]), {"principals.toml"})
                    self.assertNotRegex(item["stringData"]["principals.toml"], SECRET_TEXTS)

    def test_nothing_that_looks_like_a_secret_is_written_down(self):
        for topology in chart.TOPOLOGIES:
            for item in chart.topology(topology):
                with self.subTest(topology, object=f"{item['kind']}/{item['metadata']['name']}"):
                    if item["kind"] == "ConfigMap":
                        for name, text in item["data"].items():
                            if name.endswith(".toml"):
                                self.assertNotRegex(text, SECRET_TEXTS)
                                for key, value in re.findall(r'^(\w+) = "(.*)"$', text, re.M):
                                    self.assertFalse(SECRET_NAMES.search(key), f"{key} = {value}")
                                self.assertNotRegex(text, r'(?m)^(value|env) = ')
            for _, _, spec in chart.pods(chart.topology(topology)):
                for container in chart.containers(spec):
                    for variable in container.get("env", []):
                        if "value" in variable:
                            self.assertFalse(SECRET_NAMES.search(variable["name"]), variable["name"])
                    for argument in container["args"]:
                        self.assertNotRegex(argument, SECRET_TEXTS)
                        if argument.startswith("--secret="):
                            self.assertTrue(argument.startswith("--secret=@/etc/passline/secrets/"))

    def test_each_file_that_a_configuration_names_is_mounted(self):
        for topology in chart.TOPOLOGIES:
            objects = chart.topology(topology)
            for _, labels, spec in chart.pods(objects):
                component = labels["app.kubernetes.io/component"]
                texts = [argument for container in spec["containers"] for argument in container["args"]]
                for volume in spec["volumes"]:
                    if "configMap" in volume:
                        data = chart.pick(objects, "ConfigMap", volume["configMap"]["name"])["data"]
                        used = "pass-state-migrate.toml" if component == "migrate" else next(name for name in data if "migrate" not in name)
                        texts.append(data[used])
                named = set(re.findall(r'/etc/passline/secrets/([^"\s]+)', "\n".join(texts)))
                mounted = {
                    item["path"]
                    for volume in spec["volumes"]
                    for source in volume.get("projected", {}).get("sources", [])
                    for item in source["secret"]["items"]
                }
                with self.subTest(topology, component=component):
                    self.assertLessEqual(named, mounted)


class Wiring(unittest.TestCase):
    def test_selectors_find_their_pods_and_ports_are_there(self):
        for topology in chart.TOPOLOGIES:
            objects = chart.topology(topology)
            pods = list(chart.pods(objects))
            for item in objects:
                kind, name = item["kind"], item["metadata"]["name"]
                if kind == "Service":
                    selector = item["spec"]["selector"]
                elif kind in ("Deployment", "StatefulSet", "PodDisruptionBudget", "PodMonitor"):
                    selector = item["spec"]["selector"]["matchLabels"]
                elif kind == "NetworkPolicy":
                    selector = item["spec"]["podSelector"]["matchLabels"]
                else:
                    continue
                with self.subTest(topology, object=f"{kind}/{name}"):
                    found = [(pod, spec) for pod, labels, spec in pods if selector.items() <= labels.items()]
                    self.assertEqual(len(found), 1, found)
                    ports = {port["name"] for port in found[0][1]["containers"][0].get("ports", [])}
                    if kind == "Service":
                        self.assertLessEqual({port["targetPort"] for port in item["spec"]["ports"]}, ports)
                    elif kind == "NetworkPolicy":
                        named = {port["port"] for rule in item["spec"]["ingress"] for port in rule["ports"]}
                        self.assertLessEqual(named, ports)

    def test_service_monitors_find_one_service_with_the_port_that_they_scrape(self):
        objects = chart.topology("postgres-jetstream")
        services = [item for item in objects if item["kind"] == "Service"]
        monitors = [item for item in objects if item["kind"] == "ServiceMonitor"]
        self.assertEqual(len(monitors), 2)
        for item in monitors:
            selector = item["spec"]["selector"]["matchLabels"]
            found = [service for service in services if selector.items() <= service["metadata"]["labels"].items()]
            self.assertEqual(len(found), 1)
            self.assertIn(item["spec"]["endpoints"][0]["port"], [port["name"] for port in found[0]["spec"]["ports"]])

    def test_routes_ingresses_autoscalers_and_budgets_lead_to_what_is_there(self):
        objects = chart.topology("postgres-jetstream")
        ports = {item["metadata"]["name"]: {port["port"] for port in item["spec"]["ports"]} for item in objects if item["kind"] == "Service"}
        for kind in ("HTTPRoute", "GRPCRoute"):
            backend = chart.pick(objects, kind)["spec"]["rules"][0]["backendRefs"][0]
            self.assertIn(backend["port"], ports[backend["name"]])
        for item in objects:
            if item["kind"] == "HorizontalPodAutoscaler":
                target = item["spec"]["scaleTargetRef"]
                self.assertNotIn("replicas", chart.pick(objects, target["kind"], target["name"])["spec"])
        path = chart.pick(chart.topology("sqlite-embedded"), "Ingress")["spec"]["rules"][0]["http"]["paths"][0]
        self.assertEqual(path["backend"]["service"], {"name": "rel-passline-gateway", "port": {"name": "http"}})

    def test_keda_scales_instead_of_the_autoscaler(self):
        trigger = {"type": "prometheus", "metadata": {"serverAddress": "http://prometheus.monitoring:9090", "query": "1", "threshold": "1"}}
        values = chart.merged(chart.values_of("postgres-jetstream"), chart.changes("gateway.autoscaling.kedaTriggers", [trigger]))
        objects = chart.objects_of(chart.render(values))
        self.assertEqual([item["metadata"]["name"] for item in objects if item["kind"] == "HorizontalPodAutoscaler"], ["rel-passline-pass-state"])
        self.assertNotIn("replicas", chart.pick(objects, "Deployment", "rel-passline-gateway")["spec"])
        self.assertEqual(chart.pick(objects, "ScaledObject")["spec"], {
            "scaleTargetRef": {"name": "rel-passline-gateway"},
            "minReplicaCount": 3,
            "maxReplicaCount": 8,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}}},
            "triggers": [{"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}, trigger],
        })

    def test_a_stateful_set_is_governed_by_a_headless_service(self):
        for topology in chart.TOPOLOGIES:
            objects = chart.topology(topology)
            for item in objects:
                if item["kind"] == "StatefulSet":
                    self.assertEqual(chart.pick(objects, "Service", item["spec"]["serviceName"])["spec"]["clusterIP"], "None")

    def test_network_policies_admit_exactly_what_is_meant(self):
        objects = chart.topology("postgres-jetstream")

        def peer(selectors):
            (kind, selector), = selectors.items()
            (label, value), = ((key, value) for key, value in selector["matchLabels"].items()
                               if key not in ("app.kubernetes.io/name", "app.kubernetes.io/instance"))
            self.assertEqual(
                [selector["matchLabels"].get(f"app.kubernetes.io/{key}") for key in ("name", "instance")],
                ["passline", "rel"] if label == "app.kubernetes.io/component" else [None, None])
            return f"{kind.removesuffix('Selector')} {label.rpartition('/')[2]}={value}"

        def admitted(name, direction):
            spec = chart.pick(objects, "NetworkPolicy", name)["spec"]
            self.assertEqual(spec["policyTypes"], ["Ingress", "Egress"])
            side = "from" if direction == "ingress" else "to"
            admitted = {}
            for rule in spec[direction]:
                self.assertLessEqual(set(rule), {"ports", side})
                peers = sorted(peer(selectors) for selectors in rule[side]) if side in rule else "all"
                for port in rule["ports"]:
                    admitted[f"{port['protocol']} {port['port']}"] = peers
            return admitted

        anybody = {"UDP 53": "all", "TCP 53": "all"}
        metrics = {"TCP admin": ["namespace metadata.name=monitoring"]}
        self.assertEqual(admitted("rel-passline-gateway", "ingress"), metrics | {
            "TCP http": ["namespace metadata.name=gateways", "pod component=test"]})
        self.assertEqual(admitted("rel-passline-gateway", "egress"), anybody | {
            "TCP 4222": "all", "TCP 8222": "all", "TCP 4317": "all", "TCP 50051": ["pod component=pass-state"]})
        self.assertEqual(admitted("rel-passline-pass-state", "ingress"), metrics | {
            "TCP grpc": ["namespace metadata.name=gateways", "pod client=true", "pod component=gateway"]})
        self.assertEqual(admitted("rel-passline-pass-state", "egress"), anybody | {"TCP 4317": "all", "TCP 5432": "all"})
        self.assertEqual(admitted("rel-passline-migrate", "ingress"), {})
        self.assertEqual(admitted("rel-passline-migrate", "egress"), anybody | {"TCP 5432": "all"})

    def test_pass_state_is_open_to_gateways_and_named_clients_only(self):
        for topology in set(chart.TOPOLOGIES) - {"insecure"}:
            objects = chart.topology(topology)
            rule = chart.pick(objects, "NetworkPolicy", "rel-passline-pass-state")["spec"]["ingress"][0]
            selectors = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
            self.assertEqual(selectors[1:], [{"passline.dev/client": "true"}])
            gateways = [labels for _, labels, _ in chart.pods(objects) if selectors[0].items() <= labels.items()]
            self.assertEqual([labels["app.kubernetes.io/component"] for labels in gateways], ["gateway"])

    def test_the_services_announce_what_they_speak(self):
        for topology, announced in (("insecure", "kubernetes.io/h2c"), ("sqlite-embedded", "https")):
            for name in ("rel-passline-pass-state", "rel-passline-pass-state-headless"):
                ports = chart.pick(chart.topology(topology), "Service", name)["spec"]["ports"]
                self.assertEqual(ports[0]["appProtocol"], announced)

    def test_disabled_alerts_are_left_out_and_the_others_labelled(self):
        values = chart.values_of("postgres-jetstream")
        groups = chart.pick(chart.topology("postgres-jetstream"), "PrometheusRule")["spec"]["groups"]
        alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
        self.assertTrue(alerts)
        for rule in alerts:
            self.assertEqual(rule["labels"]["team"], "payments")
        left_out = chart.merged(values, chart.changes("observability.prometheusRule.disabled", [alerts[0]["alert"]]))
        groups = chart.pick(chart.objects_of(chart.render(left_out)), "PrometheusRule")["spec"]["groups"]
        self.assertEqual(len([rule for group in groups for rule in group["rules"] if "alert" in rule]), len(alerts) - 1)

    def test_every_dashboard_becomes_a_config_map(self):
        made = {name for item in chart.topology("postgres-jetstream") if item["kind"] == "ConfigMap" for name in item["data"] if name.endswith(".json")}
        self.assertEqual(made, {path.name for path in (chart.ROOT / "deploy/grafana").glob("*.json")})
        self.assertTrue(made)


if __name__ == "__main__":
    unittest.main()

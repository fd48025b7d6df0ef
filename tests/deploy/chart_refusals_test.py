"""Values that can't work are refused with the words that help: by the schema, or by the chart itself."""

import unittest

import helm_python as helm

import chart


def errors(values, name=chart.RELEASE):
    """What Helm says to values, or nothing."""
    try:
        chart.render(values, name)
    except helm.HelmError as error:
        return str(error)
    return ""


class Schema(unittest.TestCase):
    def test_a_wrong_value_is_refused_by_the_name_of_its_key(self):
        digest = "sha256:short"
        known = {"scopes": ["read"], "token_sha256": ["0" * 64], "sources": ["*"]}
        for topology, path, value, named in (
            ("sqlite-embedded", "gateway.replicas", "two", "gateway/replicas"),
            ("sqlite-embedded", "gateway.replicas", 0, "gateway/replicas"),
            ("sqlite-embedded", "gateway.replica", 2, "replica"),
            ("sqlite-embedded", "gatway", {}, "gatway"),
            ("sqlite-embedded", "gateway.config.http.listen", "0.0.0.0:80", "listen"),
            ("sqlite-embedded", "gateway.config.ack.timeout", "3 seconds", "gateway/config/ack/timeout"),
            ("sqlite-embedded", "gateway.config.ack.mode", "never", "gateway/config/ack/mode"),
            ("sqlite-embedded", "gateway.config.http.body_bytes_max", "1MB", "gateway/config/http/body_bytes_max"),
            ("sqlite-embedded", "gateway.config.http.limits.conections_max", 1, "conections_max"),
            ("sqlite-embedded", "gateway.spool.backend", "kafka", "gateway/spool/backend"),
            ("sqlite-embedded", "gateway.spool.persistence.size", "lots", "gateway/spool/persistence/size"),
            ("sqlite-embedded", "gateway.image.tag", "latest", "gateway/image/tag"),
            ("sqlite-embedded", "gateway.image.digest", digest, "gateway/image/digest"),
            ("sqlite-embedded", "gateway.resources", {"limits": {"cpu": 1, "memory": None}}, "gateway/resources/limits"),
            ("sqlite-embedded", "gateway.securityContext.privileged", True, "privileged"),
            ("sqlite-embedded", "gateway.securityContext.readOnlyRootFilesystem", False, "readOnlyRootFilesystem"),
            ("sqlite-embedded", "gateway.podSecurityContext.runAsUser", 0, "gateway/podSecurityContext/runAsUser"),
            ("sqlite-embedded", "gateway.sources", [{"name": "Acme", "vendor": "passkit", "auth": {"scheme": "hmac"}}], "gateway/sources/0/name"),
            ("sqlite-embedded", "gateway.sources", [{"name": "acme", "vendor": "passkit", "auth": {"scheme": "hmac", "secrets": [{"value": "s3cret"}]}}], "value"),
            ("sqlite-embedded", "passState.config.store.path", "/x", "path"),
            ("sqlite-embedded", "passState.store.backend", "mysql", "passState/store/backend"),
            ("sqlite-embedded", "passState.migrations.mode", "hook", "passState/migrations/mode"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "a", "scopes": ["write"]}], "passState/auth/principals/0/scopes"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "a", "scopes": [], "token": "plt_x"}], "token"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "a b", **known}], "passState/auth/principals/0/name"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "", **known}], "passState/auth/principals/0/name"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "a", **known, "scopes": []}], "passState/auth/principals/0/scopes"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "a", **known, "token_sha256": []}], "passState/auth/principals/0"),
            ("sqlite-embedded", "passState.auth.principals", [{"name": "a", **known, "sources": []}], "passState/auth/principals/0"),
            ("sqlite-embedded", "gateway.config.http.requests_in_flight_max", 0, "gateway/config/http/requests_in_flight_max"),
            ("sqlite-embedded", "gateway.config.http.limits.header_count_max", 257, "gateway/config/http/limits/header_count_max"),
            ("sqlite-embedded", "gateway.podSecurityContext.fsGroupChangePolicy", "Always", "gateway/podSecurityContext/fsGroupChangePolicy"),
            ("sqlite-embedded", "gateway.podSecurityContext.fsGroupChangePolicy", None, "gateway/podSecurityContext"),
            ("sqlite-embedded", "nameOverride", "My_Name", "nameOverride"),
            ("sqlite-embedded", "fullnameOverride", "Bad Name", "fullnameOverride"),
            ("sqlite-embedded", "fullnameOverride", "1st", "fullnameOverride"),
            ("sqlite-embedded", "global.commonLabels", {"app.kubernetes.io/name": "x"}, "global/commonLabels"),
            ("sqlite-embedded", "gateway.podLabels", {"app.kubernetes.io/component": "x"}, "gateway/podLabels"),
            ("sqlite-embedded", "passState.service.labels", {"passline.dev/service": "headless"}, "passState/service/labels"),
            ("sqlite-embedded", "networkPolicy.enabled", "yes", "networkPolicy/enabled"),
            ("sqlite-embedded", "certManager.renewBefore", "a month", "certManager/renewBefore"),
        ):
            with self.subTest(path, value=value):
                told = errors(chart.merged(chart.values_of(topology), chart.changes(path, value)))
                self.assertIn("schema", told)
                self.assertIn(named, told)


class Combinations(unittest.TestCase):
    def test_the_defaults_alone_are_refused_with_what_is_missing(self):
        told = errors({})
        for words in ("pass-state would speak plaintext: set certManager.enabled", "pass-state would answer everybody: name a Secret"):
            self.assertIn(words, told)

    def test_all_faults_are_told_at_once(self):
        values = chart.merged(chart.values_of("sqlite-embedded"), {
            "passState": {"replicas": 3, "migrations": {"mode": "job"}},
            "gateway": {"autoscaling": {"enabled": True}, "terminationGracePeriodSeconds": 1},
        })
        told = errors(values)
        for words in ("passState.replicas is 3", "passState.migrations.mode", "gateway.autoscaling", "gateway.terminationGracePeriodSeconds"):
            self.assertIn(words, told)

    def test_what_can_not_work_is_refused_with_what_to_do(self):
        source, other = chart.values_of("sqlite-embedded")["gateway"]["sources"]
        twice = [source] * 2

        def tested(**auth):
            return [source | {"auth": source["auth"] | auth}, other]

        def principal(**changes):
            return {"name": "a", "scopes": ["read"], "token_sha256": ["0" * 64], "sources": ["*"]} | changes

        own = {"client_names": ["REL-passline-gateway.ns.svc.cluster.local"], "token_sha256": []}
        for topology, path, value, words in (
            ("sqlite-embedded", "passState.replicas", 2, 'SQLite is a file of one process: set passState.replicas to 1, or passState.store.backend to "postgres"'),
            ("sqlite-embedded", "passState.autoscaling.enabled", True, "set passState.autoscaling.enabled to false"),
            ("sqlite-embedded", "passState.migrations.mode", "job", 'set it to "auto"'),
            ("sqlite-embedded", "passState.migrations.mode", "none", 'set it to "auto"'),
            ("sqlite-embedded", "passState.config.store.postgres.readers_max", 4, "passState.config.store.postgres is for PostgreSQL: remove it"),
            ("postgres-embedded", "passState.store.postgres.existingSecret", "", "name it in passState.store.postgres.existingSecret"),
            ("sqlite-embedded", "gateway.autoscaling.enabled", True, 'would strand the volumes of gateways that are scaled away, with what they still hold: set gateway.autoscaling.enabled to false, or gateway.spool.backend to "jetstream"'),
            ("sqlite-embedded", "gateway.spool.persistence.existingClaim", "spool", "set gateway.replicas to 1, or remove existingClaim"),
            ("sqlite-embedded", "gateway.spool.persistence.size", "10Gi", "raise size, or lower bytes_max"),
            ("sqlite-embedded", "gateway.config.spool.bytes_max", "12GiB", "gateway.config.spool.bytes_max (12GiB) does not fit into gateway.spool.persistence.size (12Gi)"),
            ("sqlite-embedded", "gateway.config.spool.jetstream.replicas", 1, "gateway.config.spool.jetstream is for JetStream: remove it"),
            ("sqlite-jetstream", "gateway.config.spool.bytes_max", "1GiB", "gateway.config.spool.bytes_max is for the embedded spool"),
            ("sqlite-jetstream", "gateway.config.ack.mode", "applied", 'set it to "durable", or gateway.spool.backend to "embedded"'),
            ("sqlite-jetstream", "gateway.config.ack.sources.acme-passkit", "applied", "gateway.config.ack (acme-passkit)"),
            ("sqlite-jetstream", "gateway.spool.jetstream.servers", [], "name them in gateway.spool.jetstream.servers"),
            ("sqlite-jetstream", "gateway.spool.jetstream.auth.existingSecret", "", "name it in gateway.spool.jetstream.auth.existingSecret"),
            ("sqlite-jetstream", "gateway.spool.jetstream.auth.user", "", "set gateway.spool.jetstream.auth.user"),
            ("insecure", "passState.insecure", False, "to allow plaintext off loopback set passState.insecure to true"),
            ("insecure", "passState.insecure", False, "to allow calls without authentication set passState.insecure to true"),
            ("sqlite-embedded", "passState.tls.existingSecret", "", "pass-state would speak plaintext"),
            ("sqlite-embedded", "passState.tls.existingSecret", "", "gateway.passState.token would be sent in plaintext"),
            ("sqlite-embedded", "passState.auth.existingSecret", "", "pass-state would answer everybody"),
            ("sqlite-embedded", "gateway.passState.token.existingSecret", "", "pass-state would not know the gateways: name the Secret with their token in gateway.passState.token.existingSecret"),
            ("postgres-embedded", "gateway.passState.tls.clientSecret", "", 'passState.tls.clientAuth is "required", but the gateways have no certificate'),
            ("sqlite-embedded", "gateway.passState.tls.ca.existingSecret", "", "set gateway.passState.tls.systemRoots to true"),
            ("insecure", "passState.tls.clientCa.existingSecret", "ca", "passState.tls.clientCa needs TLS"),
            ("sqlite-embedded", "gateway.tls.clientCa.existingSecret", "ca", "gateway.tls.clientCa needs TLS on the listener"),
            ("sqlite-embedded", "gateway.tls.certManager", True, "gateway.tls.certManager needs certManager.enabled"),
            ("sqlite-jetstream", "certManager.issuerRef.name", "", "name it in certManager.issuerRef.name"),
            ("sqlite-embedded", "gateway.pdb.maxUnavailable", 0, "no node could ever be drained"),
            ("sqlite-embedded", "gateway.pdb.minAvailable", 2, "gateway.pdb.minAvailable is 2 of 2"),
            ("postgres-embedded", "passState.pdb.minAvailable", "100%", "passState.pdb.minAvailable is 100% of 3"),
            ("postgres-jetstream", "gateway.autoscaling.minReplicas", 20, "gateway.autoscaling.minReplicas (20) is more than maxReplicas (8)"),
            ("postgres-jetstream", "passState.autoscaling.targetCPUUtilizationPercentage", 0, "passState.autoscaling has nothing to go by"),
            ("postgres-jetstream", "gateway.autoscaling", {"kedaTriggers": [{"type": "cron"}], "extraMetrics": [{"type": "Pods"}]}, "gateway.autoscaling.extraMetrics is for the HorizontalPodAutoscaler"),
            ("sqlite-embedded", "gateway.autoscaling", {"enabled": True, "kedaTriggers": [{"type": "cron"}]}, "would strand the volumes"),
            ("sqlite-embedded", "gateway.terminationGracePeriodSeconds", 20, "gateway.terminationGracePeriodSeconds is 20, but the drain may take 30 s"),
            ("sqlite-embedded", "passState.terminationGracePeriodSeconds", 27, "passState.terminationGracePeriodSeconds is 27, but the drain may take 28 s"),
            ("sqlite-embedded", "gateway.ingress.hosts", [], "name it in gateway.ingress.hosts"),
            ("postgres-jetstream", "gateway.httpRoute.parentRefs", [], "name it in gateway.httpRoute.parentRefs"),
            ("postgres-jetstream", "passState.grpcRoute.parentRefs", [], "name it in passState.grpcRoute.parentRefs"),
            ("postgres-jetstream", "observability.podMonitor.enabled", True, "would scrape every pod twice"),
            ("insecure", "gateway.sources", [{"name": "trial", "vendor": "standard", "auth": {"scheme": "hmac"}}], '"trial" has no secret'),
            ("sqlite-embedded", "gateway.sources", twice, '"acme-passkit" is there twice'),
            ("sqlite-embedded", "gateway.config.http.trusted_proxies", [], '"acme-passworks" has allow_from, but behind an ingress or route every callback comes from that'),
            ("postgres-jetstream", "gateway.config.http.rates.client_per_sec", 50, "would limit the ingress or route, as if it were one client"),
            ("sqlite-embedded", "gateway.config.ack.sources.acme", "durable", 'gateway.config.ack.sources names "acme"'),
            ("sqlite-embedded", "tests.source", "acme", "which is none of gateway.sources"),
            ("sqlite-embedded", "tests.token.existingSecret", "", "name the Secret with its token in tests.token.existingSecret"),
            ("sqlite-embedded", "gateway.sources", [source, source | {"name": "b", "uid": source["name"]}], '"b" has the uid of another one, "acme-passkit"'),
            ("sqlite-embedded", "passState.auth.principals", [principal()], "passState.auth.principals would not count beside passState.auth.existingSecret"),
            ("sqlite-jetstream", "passState.auth.principals", [principal(name="gateway")], "passState.auth.principals[0] (gateway) has the same name as the chart's own"),
            ("sqlite-jetstream", "passState.auth.principals", [principal(**own)], "passState.auth.principals[0] (a) has the same client_names as the chart's own"),
            ("sqlite-jetstream", "passState.auth.principals", [principal(), principal(name="b")], "passState.auth.principals[1] (b) has the same token_sha256 as passState.auth.principals[0] (a)"),
            ("sqlite-jetstream", "passState.auth.principals", [principal(organizations=["acme"])], 'sees all sources by "*" and names something else'),
            ("sqlite-jetstream", "passState.auth.principals", [principal(scopes=["ingest"], sources=[], organizations=["acme"])], "passState.auth.principals[0] (a) may send nothing"),
            ("insecure", "passState.auth.principals", [principal(**own)], "passState.auth.principals[0] (a) has client_names, but nobody is asked for a certificate"),
            ("sqlite-embedded", "gateway.config.drain_delay", "61s", "gateway.config.drain_delay is 61s, and at most 60s are taken"),
            ("sqlite-embedded", "passState.config.drain_delay", "2m", "passState.config.drain_delay is 2m"),
            ("sqlite-embedded", "gateway.config.http.body_bytes_max", "2MiB", "gateway.config.http.body_bytes_max is 2MiB: set it to 1KiB at least and 1MiB at most"),
            ("sqlite-embedded", "passState.config.ingest.body_bytes_max", "128KiB", "pass-state takes bodies of at most 128KiB, and gateways would take 256KiB"),
            ("postgres-jetstream", "networkPolicy.passState.allowIngressFrom", [], "passState.grpcRoute would carry no call"),
            ("postgres-jetstream", "observability.serviceMonitor.tlsConfig", None, "observability.serviceMonitor could not scrape by TLS, as gateway.admin.tlsSecret asks for"),
            ("postgres-embedded", "gateway.config.telemetry.metrics", False, "observability.podMonitor would find no metrics: remove gateway.config.telemetry.metrics"),
            ("sqlite-embedded", "gateway.serviceAccount.name", "rel-passline-pass-state", 'would both make "rel-passline-pass-state"'),
            ("sqlite-embedded", "passState.tls", {"clientCa": {"existingSecret": "ca"}, "clientAuth": "required"}, "name a client certificate in tests.clientSecret"),
            ("sqlite-embedded", "gateway.tls", {"existingSecret": "hooks", "clientCa": {"existingSecret": "ca"}}, 'gateway.tls.clientAuth is "required" and it has no certificate for them: set that to "optional", or leave tests.source empty'),
            ("sqlite-embedded", "gateway.sources", tested(header="x-other"), "signs only as vendors usually do, without its auth.header"),
            ("sqlite-embedded", "gateway.sources", tested(encoding="base64", secret_encoding="base64"), "without its auth.encoding, auth.secret_encoding: name a source without them"),
            ("sqlite-embedded", "gateway.sources", [source | {"envelope": {"kinds": {"a": "INSTALLED"}, "signed_field": "b"}}, other], "without its envelope.signed_field: name"),
            ("postgres-embedded", "gateway.sources", [source | {"vendor": "signed_envelope"}], '"acme-passkit" says of no message what it tells'),
            ("sqlite-embedded", "gateway.sources", tested(scheme="api_key"), "without its auth.header"),
            ("insecure", "gateway.sources", [{"name": "trial", "vendor": "standard", "allow_from": ["192.0.2.1/32"], "auth": {"scheme": "none"}}], "which has no secret to sign with"),
        ):
            with self.subTest(topology, path=path, value=value):
                told = errors(chart.merged(chart.values_of(topology), chart.changes(path, value)))
                self.assertIn("these values can't work", told)
                self.assertIn(words, told)

    def test_a_name_that_no_service_may_have_is_refused(self):
        for name in ("my.rel", "1st"):
            with self.subTest(name):
                told = errors(chart.values_of("sqlite-embedded"), name)
                self.assertIn(f'the Services would be called "{name}-passline-…"', told)
                self.assertIn("set fullnameOverride", told)
                self.assertEqual(errors(chart.merged(chart.values_of("sqlite-embedded"), {"fullnameOverride": "passline"}), name), "")

    def test_what_only_looks_alike_is_taken(self):
        source = chart.values_of("sqlite-embedded")["gateway"]["sources"][0]
        for topology, path, value in (
            ("sqlite-embedded", "gateway.terminationGracePeriodSeconds", 30),
            ("sqlite-embedded", "gateway.pdb.minAvailable", 1),
            ("sqlite-embedded", "gateway.config.http.rates.client_per_sec", 50),
            ("sqlite-embedded", "gateway.pdb.minAvailable", "50%"),
            ("postgres-embedded", "passState.migrations.mode", "job"),
            ("sqlite-jetstream", "gateway.autoscaling.enabled", True),
            ("postgres-embedded", "gateway.passState.endpoint", "https://pass-state.example.org:443"),
            ("insecure", "gateway.spool.persistence", {"enabled": True, "existingClaim": "spool"}),
            ("insecure", "gateway.podSecurityContext", {"runAsUser": None, "runAsGroup": None, "fsGroup": None}),
            ("sqlite-embedded", "gateway.config.drain_delay", "1m"),
            ("sqlite-embedded", "gateway.config.http.body_bytes_max", "1MiB"),
            ("sqlite-embedded", "gateway.sources", [dict(source, auth=dict(source["auth"], header="X-PassKit-Signature", encoding="any", prefix="sha256=")), source | {"name": "acme-passworks"}]),
            ("postgres-embedded", "tests", {"source": "acme-envelope", "clientSecret": "test-client"}),
            ("sqlite-jetstream", "passState.auth.principals", [{"name": "b", "scopes": ["read"], "token_sha256": ["0" * 64], "organizations": ["acme"]}]),
            ("postgres-jetstream", "networkPolicy.passState", {"allowIngressFrom": [], "extraIngressRules": [{"ports": [{"port": "grpc"}]}]}),
            ("sqlite-embedded", "nameOverride", "1st"),
            ("sqlite-embedded", "gateway.podLabels", {"team": "payments"}),
        ):
            with self.subTest(topology, path=path, value=value):
                self.assertEqual(errors(chart.merged(chart.values_of(topology), chart.changes(path, value))), "")


if __name__ == "__main__":
    unittest.main()

{{/* What values.schema.json can't see: combinations that can't work. All of them are told at once, with what to do. */}}

{{- define "passline.validate" -}}
{{- $faults := list -}}
{{- range include "passline.faults" . | splitList "\n" -}}
{{- with trim . }}{{ $faults = append $faults (printf "  - %s" .) }}{{ end -}}
{{- end -}}
{{- if $faults }}{{ fail (printf "these values can't work:\n%s\n" (join "\n" $faults)) }}{{ end -}}
{{- end -}}

{{/* One fault a line. */}}
{{- define "passline.faults" -}}
{{- $name := include "passline.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
the Services would be called "{{ $name }}-…", which Kubernetes does not take: set fullnameOverride to letters, digits and "-" with a letter first, or choose another name for the release.
{{- end }}
{{- $accounts := dict -}}
{{- range $component, $values := dict "gateway" .Values.gateway "pass-state" .Values.passState -}}
{{- if $values.serviceAccount.create }}{{ $_ := set $accounts (include "passline.serviceAccountName" (dict "root" $ "component" $component "values" $values)) true }}{{ end -}}
{{- end -}}
{{- if and .Values.gateway.serviceAccount.create .Values.passState.serviceAccount.create (lt (len $accounts) 2) }}
gateway.serviceAccount and passState.serviceAccount would both make "{{ first (keys $accounts) }}": give them names of their own, or set create to false for one of them.
{{- end }}
{{ include "passline.faults.passState" . }}
{{ include "passline.faults.access" . }}
{{ include "passline.faults.gateway" . }}
{{ include "passline.faults.sources" . }}
{{ include "passline.faults.component" (dict "key" "gateway" "component" "gateway" "values" .Values.gateway) }}
{{ include "passline.faults.component" (dict "key" "passState" "component" "pass-state" "values" .Values.passState) }}
{{- with .Values.observability }}
{{- if and .serviceMonitor.enabled .podMonitor.enabled }}
observability.serviceMonitor and observability.podMonitor would scrape every pod twice: enable one of them.
{{- end }}
{{- range $kind, $monitor := dict "serviceMonitor" .serviceMonitor "podMonitor" .podMonitor }}
{{- if $monitor.enabled }}
{{- range $key, $values := dict "gateway" $.Values.gateway "passState" $.Values.passState }}
{{- if and $values.admin.tlsSecret (not $monitor.tlsConfig) }}
observability.{{ $kind }} could not scrape by TLS, as {{ $key }}.admin.tlsSecret asks for: say in observability.{{ $kind }}.tlsConfig how its certificate is checked, or remove tlsSecret.
{{- end }}
{{- if eq (toString ($values.config.telemetry).metrics) "false" }}
observability.{{ $kind }} would find no metrics: remove {{ $key }}.config.telemetry.metrics, or disable {{ $kind }}.
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "passline.faults.passState" -}}
{{- with .Values.passState -}}
{{- if eq .store.backend "sqlite" }}
{{- if gt (int .replicas) 1 }}
passState.replicas is {{ .replicas }}, but SQLite is a file of one process: set passState.replicas to 1, or passState.store.backend to "postgres".
{{- end }}
{{- if .autoscaling.enabled }}
passState.autoscaling needs replicas that can be several: set passState.autoscaling.enabled to false, or passState.store.backend to "postgres".
{{- end }}
{{- if ne .migrations.mode "auto" }}
passState.migrations.mode is "{{ .migrations.mode }}", but a SQLite volume belongs to one pod: set it to "auto", pass-state then brings the schema up to date itself.
{{- end }}
{{- else if not .store.postgres.existingSecret }}
passState.store.backend is "postgres" without a database: make a Secret with its URL (kubectl create secret generic passline-database --from-literal=url=postgres://…) and name it in passState.store.postgres.existingSecret.
{{- end }}
{{- if and .grpcRoute.enabled (not .grpcRoute.parentRefs) }}
passState.grpcRoute is enabled without a gateway: name it in passState.grpcRoute.parentRefs.
{{- end }}
{{- with $.Values.networkPolicy }}
{{- if and $.Values.passState.grpcRoute.enabled .enabled (not .passState.allowIngressFrom) (not .passState.extraIngressRules) }}
passState.grpcRoute would carry no call, since the NetworkPolicy admits none of its gateway's pods: name them in networkPolicy.passState.allowIngressFrom.
{{- end }}
{{- end }}
{{- if and .config.store (eq .store.backend "sqlite") (.config.store).postgres }}
passState.config.store.postgres is for PostgreSQL: remove it, or set passState.store.backend to "postgres".
{{- end }}
{{- end -}}
{{- end -}}

{{- define "passline.faults.access" -}}
{{- $tls := include "passline.passState.tlsSecret" . -}}
{{- $auth := include "passline.passState.principalsSecret" . -}}
{{- $clientCa := include "passline.passState.clientCa" . -}}
{{- $own := not .Values.gateway.passState.endpoint -}}
{{- if not .Values.passState.insecure }}
{{- if not $tls }}
pass-state would speak plaintext: set certManager.enabled with an issuer, or name a kubernetes.io/tls Secret in passState.tls.existingSecret; to allow plaintext off loopback set passState.insecure to true.
{{- end }}
{{- if not $auth }}
pass-state would answer everybody: name a Secret with a principals file in passState.auth.existingSecret, or write passState.auth.principals; to allow calls without authentication set passState.insecure to true.
{{- end }}
{{- end }}
{{- with .Values.passState.auth }}
{{- if and .existingSecret .principals }}
passState.auth.principals would not count beside passState.auth.existingSecret: write them into that Secret, or remove one of both.
{{- end }}
{{- $seen := dict -}}
{{- if include "passline.passState.ownGateway" $ -}}
{{- $_ := set $seen "name gateway" "the chart's own, for the gateways (passState.auth.gatewayPrincipal)" -}}
{{- $_ := set $seen (printf "client_names %s" (include "passline.gateway.clientName" $)) "the chart's own, for the gateways (passState.auth.gatewayPrincipal)" -}}
{{- end -}}
{{- range $index, $principal := .principals -}}
{{- $place := printf "passState.auth.principals[%d] (%s)" $index $principal.name -}}
{{- $claims := list (printf "name %s" $principal.name) -}}
{{- range $principal.token_sha256 }}{{ $claims = append $claims (printf "token_sha256 %s" .) }}{{ end -}}
{{- range $principal.client_names }}{{ $claims = append $claims (printf "client_names %s" (ternary . (lower .) (contains ":" .))) }}{{ end -}}
{{- range $claim := $claims -}}
{{- with index $seen $claim }}
{{ $place }} has the same {{ splitList " " $claim | first }} as {{ . }}: give each its own, or remove one.
{{- end -}}
{{- $_ := set $seen $claim $place -}}
{{- end -}}
{{- if and (has "*" $principal.sources) (or (gt (len $principal.sources) 1) $principal.organizations) }}
{{ $place }} sees all sources by "*" and names something else, too: remove what is not meant.
{{- end -}}
{{- if and (has "ingest" $principal.scopes) (not $principal.sources) }}
{{ $place }} may send nothing, since it has no sources: list those that it sends, or take the scope "ingest" away.
{{- end -}}
{{- if and $principal.client_names (not $clientCa) }}
{{ $place }} has client_names, but nobody is asked for a certificate: name the authorities in passState.tls.clientCa.existingSecret, or remove client_names.
{{- end -}}
{{- end -}}
{{- end }}
{{- if and .Values.certManager.enabled (not .Values.certManager.issuerRef.name) }}
certManager is enabled without an issuer: name it in certManager.issuerRef.name.
{{- end }}
{{- if and .Values.gateway.tls.certManager (not .Values.certManager.enabled) }}
gateway.tls.certManager needs certManager.enabled: set it to true, or name a Secret in gateway.tls.existingSecret.
{{- end }}
{{- if and .Values.gateway.tls.clientCa.existingSecret (not (include "passline.gateway.tlsSecret" .)) }}
gateway.tls.clientCa needs TLS on the listener: name its certificate in gateway.tls.existingSecret, or remove clientCa.
{{- end }}
{{- with .Values.passState.tls }}
{{- if and .clientCa.existingSecret (not $tls) }}
passState.tls.clientCa needs TLS: name pass-state's certificate in passState.tls.existingSecret, or remove clientCa.
{{- end }}
{{- end }}
{{- with .Values.gateway.passState }}
{{- if and $auth $own (not .token.existingSecret) (not (and $clientCa (include "passline.gateway.clientSecret" $))) }}
pass-state would not know the gateways: name the Secret with their token in gateway.passState.token.existingSecret, or their client certificate in gateway.passState.tls.clientSecret together with passState.tls.clientCa.
{{- end }}
{{- if and $own $clientCa (eq $.Values.passState.tls.clientAuth "required") (not (include "passline.gateway.clientSecret" $)) }}
passState.tls.clientAuth is "required", but the gateways have no certificate: name one in gateway.passState.tls.clientSecret, or set clientAuth to "optional".
{{- end }}
{{- if and (include "passline.gateway.toTls" $) (not (include "passline.gateway.serverCa" $)) (not .tls.systemRoots) }}
the gateways would not know who signs pass-state's certificate: name the Secret with the authority in gateway.passState.tls.ca.existingSecret, or set gateway.passState.tls.systemRoots to true.
{{- end }}
{{- if and .token.existingSecret (not (include "passline.gateway.toTls" $)) (not $.Values.passState.insecure) }}
gateway.passState.token would be sent in plaintext: use TLS, or set passState.insecure to true.
{{- end }}
{{- end }}
{{- end -}}

{{- define "passline.faults.gateway" -}}
{{- $root := . -}}
{{- with .Values.gateway -}}
{{- $spool := default dict .config.spool -}}
{{- with (.config.http).body_bytes_max }}
{{- $kib := include "passline.kib" . | int }}
{{- if or (lt $kib 1) (gt $kib 1024) }}
gateway.config.http.body_bytes_max is {{ . }}: set it to 1KiB at least and 1MiB at most.
{{- end }}
{{- end }}
{{- $body := default "256KiB" (.config.http).body_bytes_max }}
{{- $taken := default "1MiB" ($root.Values.passState.config.ingest).body_bytes_max }}
{{- if and (not .passState.endpoint) (gt (include "passline.kib" $body | int) (include "passline.kib" $taken | int)) }}
pass-state takes bodies of at most {{ $taken }}, and gateways would take {{ $body }}: lower gateway.config.http.body_bytes_max, or raise passState.config.ingest.body_bytes_max.
{{- end }}
{{- if eq .spool.backend "embedded" }}
{{- if .autoscaling.enabled }}
gateway.autoscaling would strand the volumes of gateways that are scaled away, with what they still hold: set gateway.autoscaling.enabled to false, or gateway.spool.backend to "jetstream".
{{- end }}
{{- with .spool.persistence }}
{{- if and .existingClaim (gt (int $root.Values.gateway.replicas) 1) }}
gateway.spool.persistence.existingClaim is one volume, and a spool belongs to one gateway: set gateway.replicas to 1, or remove existingClaim.
{{- end }}
{{- $bytesMax := default "10GiB" $spool.bytes_max }}
{{- if and .enabled (not .existingClaim) (ge (include "passline.kib" $bytesMax | int64) (include "passline.kib" .size | int64)) }}
gateway.config.spool.bytes_max ({{ $bytesMax }}) does not fit into gateway.spool.persistence.size ({{ .size }}) with room to spare: raise size, or lower bytes_max.
{{- end }}
{{- end }}
{{- if $spool.jetstream }}
gateway.config.spool.jetstream is for JetStream: remove it, or set gateway.spool.backend to "jetstream".
{{- end }}
{{- else }}
{{- with .spool.jetstream }}
{{- if not .servers }}
gateway.spool.backend is "jetstream" without servers: name them in gateway.spool.jetstream.servers.
{{- end }}
{{- if and (ne .auth.method "none") (not .auth.existingSecret) }}
gateway.spool.jetstream.auth.method is "{{ .auth.method }}" without a secret: name it in gateway.spool.jetstream.auth.existingSecret.
{{- end }}
{{- if and (eq .auth.method "password") (not .auth.user) }}
gateway.spool.jetstream.auth.method is "password" without a user: set gateway.spool.jetstream.auth.user.
{{- end }}
{{- end }}
{{- range $key, $_ := omit $spool "jetstream" }}
gateway.config.spool.{{ $key }} is for the embedded spool: remove it; its counterpart may be in gateway.config.spool.jetstream.
{{- end }}
{{- range $key, $mode := merge (dict "mode" (default "durable" (.config.ack).mode)) (default dict (.config.ack).sources) }}
{{- if eq $mode "applied" }}
gateway.config.ack ({{ $key }}) is "applied", but with JetStream pass-state's answer may come to another gateway than the one that is asked: set it to "durable", or gateway.spool.backend to "embedded".
{{- end }}
{{- end }}
{{- end }}
{{- if and .ingress.enabled (not .ingress.hosts) }}
gateway.ingress is enabled without a host: name it in gateway.ingress.hosts.
{{- end }}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) }}
gateway.httpRoute is enabled without a gateway: name it in gateway.httpRoute.parentRefs.
{{- end }}
{{- end -}}
{{- end -}}

{{- define "passline.faults.sources" -}}
{{- $names := list -}}
{{- $uids := list -}}
{{- range .Values.gateway.sources }}
{{- if and (ne .auth.scheme "none") (not .auth.secrets) }}
gateway.sources: "{{ .name }}" has no secret: name one by auth.secrets: [{existingSecret: …, key: …}].
{{- end }}
{{- if has .name $names }}
gateway.sources: "{{ .name }}" is there twice: rename one of them.
{{- else if has (default .name .uid) $uids }}
gateway.sources: "{{ .name }}" has the uid of another one, "{{ default .name .uid }}": give it a uid of its own.
{{- end }}
{{- $uids = append $uids (default .name .uid) }}
{{- if and (eq .vendor "signed_envelope") (not (.envelope).kinds) }}
gateway.sources: "{{ .name }}" says of no message what it tells, so all would go to quarantine: map message types to kinds in envelope.kinds.
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- $http := default dict .Values.gateway.config.http }}
{{- if and (or .Values.gateway.ingress.enabled .Values.gateway.httpRoute.enabled) (not $http.trusted_proxies) }}
{{- range .Values.gateway.sources }}
{{- if .allow_from }}
gateway.sources: "{{ .name }}" has allow_from, but behind an ingress or route every callback comes from that: name its networks in gateway.config.http.trusted_proxies, so that the vendor's address counts.
{{- end }}
{{- end }}
{{- if ($http.rates).client_per_sec }}
gateway.config.http.rates.client_per_sec would limit the ingress or route, as if it were one client: name its networks in gateway.config.http.trusted_proxies.
{{- end }}
{{- end }}
{{- with .Values.tests.source }}
{{- if not (has . $names) }}
tests.source is "{{ . }}", which is none of gateway.sources: name one of them, or leave it empty.
{{- end }}
{{- if and (include "passline.passState.principalsSecret" $) (not $.Values.tests.token.existingSecret) (not $.Values.tests.clientSecret) }}
the test could not read from pass-state: name the Secret with its token in tests.token.existingSecret, or its client certificate in tests.clientSecret.
{{- end }}
{{- if and (include "passline.passState.clientCa" $) (eq $.Values.passState.tls.clientAuth "required") (not $.Values.gateway.passState.endpoint) (not $.Values.tests.clientSecret) }}
the test could not connect to pass-state, since passState.tls.clientAuth is "required": name a client certificate in tests.clientSecret, or leave tests.source empty.
{{- end }}
{{- if and (include "passline.gateway.tlsSecret" $) $.Values.gateway.tls.clientCa.existingSecret (eq $.Values.gateway.tls.clientAuth "required") }}
the test could not connect to the gateways, since gateway.tls.clientAuth is "required" and it has no certificate for them: set that to "optional", or leave tests.source empty.
{{- end }}
{{- range $.Values.gateway.sources }}
{{- if eq .name $.Values.tests.source }}
{{- if eq .auth.scheme "none" }}
tests.source is "{{ .name }}", which has no secret to sign with: name a source that has one.
{{- end }}
{{- /* What `passline smoke` knows of a source is its vendor, scheme and secret; prefix and scheme_word need not be there. */ -}}
{{- $other := list -}}
{{- $header := get (dict "api_key" "authorization" "hmac" (ternary "x-passkit-signature" "" (eq .vendor "passkit"))) .auth.scheme -}}
{{- if and (has .auth.scheme (list "api_key" "hmac")) (ne (lower (default $header .auth.header)) $header) }}{{ $other = append $other "auth.header" }}{{ end -}}
{{- if has .auth.scheme (list "hmac" "signed_envelope") -}}
{{- if eq (default "any" .auth.encoding) "base64" }}{{ $other = append $other "auth.encoding" }}{{ end -}}
{{- if eq (default "any" .auth.secret_encoding) "base64" }}{{ $other = append $other "auth.secret_encoding" }}{{ end -}}
{{- end -}}
{{- /* Kinds and control say what becomes of a message; the other keys, what one looks like. */ -}}
{{- range $key, $_ := omit (default dict .envelope) "kinds" "control" }}{{ $other = append $other (printf "envelope.%s" $key) }}{{ end -}}
{{- with $other }}
tests.source is "{{ $.Values.tests.source }}", but the test signs only as vendors usually do, without its {{ join ", " . }}: name a source without them, such as one of vendor "standard" with scheme "standard_webhooks", or leave tests.source empty.
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $_ := default dict (.Values.gateway.config.ack).sources }}
{{- if not (has $name $names) }}
gateway.config.ack.sources names "{{ $name }}", which is none of gateway.sources: correct the name.
{{- end }}
{{- end }}
{{- end -}}

{{- define "passline.faults.component" -}}
{{- $pods := ternary (int .values.autoscaling.minReplicas) (int .values.replicas) .values.autoscaling.enabled -}}
{{- with .values.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{ $.key }}.autoscaling.minReplicas ({{ .minReplicas }}) is more than maxReplicas ({{ .maxReplicas }}): exchange them.
{{- end }}
{{- if and .enabled .kedaTriggers .extraMetrics }}
{{ $.key }}.autoscaling.extraMetrics is for the HorizontalPodAutoscaler, which kedaTriggers replace: write them as triggers, or remove kedaTriggers.
{{- end }}
{{- if and .enabled (not .targetCPUUtilizationPercentage) (not .targetMemoryUtilizationPercentage) (not .extraMetrics) (not .kedaTriggers) }}
{{ $.key }}.autoscaling has nothing to go by: set targetCPUUtilizationPercentage, extraMetrics or kedaTriggers.
{{- end }}
{{- end }}
{{- with .values.pdb }}
{{- if and .enabled (gt $pods 1) }}
{{- $min := toString .minAvailable }}
{{- $max := toString .maxUnavailable }}
{{- if eq $min "" }}
{{- if or (eq $max "0") (eq $max "0%") (eq $max "") }}
{{ $.key }}.pdb.maxUnavailable is {{ $max | quote }}, which lets no pod go: no node could ever be drained. Set it to 1.
{{- end }}
{{- else if or (eq $min "100%") (and (not (hasSuffix "%" $min)) (ge (int $min) $pods)) }}
{{ $.key }}.pdb.minAvailable is {{ $min }} of {{ $pods }}, which lets no pod go: no node could ever be drained. Lower it, or use maxUnavailable: 1.
{{- end }}
{{- end }}
{{- end }}
{{- with .values.config.drain_delay }}
{{- if gt (include "passline.seconds" . | int) 60 }}
{{ $.key }}.config.drain_delay is {{ . }}, and at most 60s are taken: lower it.
{{- end }}
{{- end }}
{{- $own := int .values.terminationGracePeriodSeconds }}
{{- $needed := include "passline.grace" . | int }}
{{- if and $own (lt $own $needed) }}
{{ .key }}.terminationGracePeriodSeconds is {{ $own }}, but the drain may take {{ $needed }} s: leave it at 0, or lower the drain times in {{ .key }}.config.
{{- end }}
{{- end -}}

{{/* The services' configuration, from the values' "config" and from what the chart sets itself. */}}

{{- define "passline.listen" -}}
{{- if eq .address "::" }}[::]:{{ .port }}{{ else }}{{ .address }}:{{ .port }}{{ end -}}
{{- end -}}

{{/* As JSON: the key pair of a kubernetes.io/tls Secret. */}}
{{- define "passline.keyPair" -}}
{{- dict "cert_file" (include "passline.secretPath" (list . "tls.crt")) "key_file" (include "passline.secretPath" (list . "tls.key")) | toJson -}}
{{- end -}}

{{- define "passline.telemetryConfig" -}}
{{- $own := dict "service_name" .name -}}
{{- with .root.Values.observability.otlp -}}
{{- if .endpoint -}}
{{- $_ := set $own "otlp_endpoint" .endpoint -}}
{{- $tls := dict -}}
{{- with .ca.existingSecret }}{{ $_ := set $tls "ca_file" (include "passline.secretPath" (list . $.root.Values.observability.otlp.ca.key)) }}{{ end -}}
{{- with .clientSecret }}{{ $tls = merge $tls (include "passline.keyPair" . | fromJson) }}{{ end -}}
{{- if $tls }}{{ $_ := set $own "tls" $tls }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $own | toJson -}}
{{- end -}}

{{- define "passline.gateway.config" -}}
{{- $values := .Values.gateway -}}
{{- $http := dict "listen" (include "passline.listen" (dict "address" .Values.bindAddress "port" 8080)) -}}
{{- with include "passline.gateway.tlsSecret" . -}}
{{- $tls := include "passline.keyPair" . | fromJson -}}
{{- with $values.tls.clientCa -}}
{{- if .existingSecret -}}
{{- $_ := set $tls "client_ca_file" (include "passline.secretPath" (list .existingSecret .key)) -}}
{{- $_ := set $tls "client_auth" $values.tls.clientAuth -}}
{{- end -}}
{{- end -}}
{{- $_ := set $http "tls" $tls -}}
{{- end -}}
{{- $admin := dict "listen" (include "passline.listen" (dict "address" .Values.bindAddress "port" 8081)) -}}
{{- with $values.admin.tlsSecret }}{{ $_ := set $admin "tls" (include "passline.keyPair" . | fromJson) }}{{ end -}}
{{- $passState := dict "endpoint" (include "passline.gateway.endpoint" .) -}}
{{- if include "passline.gateway.toTls" . -}}
{{- $tls := dict -}}
{{- with include "passline.gateway.serverCa" . -}}
{{- $ca := splitn "/" 2 . -}}
{{- $_ := set $tls "ca_file" (include "passline.secretPath" (list $ca._0 $ca._1)) -}}
{{- end -}}
{{- with include "passline.gateway.clientSecret" . }}{{ $tls = merge $tls (include "passline.keyPair" . | fromJson) }}{{ end -}}
{{- with $values.passState.tls.serverName }}{{ $_ := set $tls "server_name" . }}{{ end -}}
{{- $_ := set $passState "tls" $tls -}}
{{- end -}}
{{- with $values.passState.token -}}
{{- if .existingSecret }}{{ $_ := set $passState "token" (dict "file" (include "passline.secretPath" (list .existingSecret .key))) }}{{ end -}}
{{- end -}}
{{- $spool := dict "backend" $values.spool.backend -}}
{{- if eq $values.spool.backend "jetstream" -}}
{{- $jetstream := dict "servers" $values.spool.jetstream.servers "tls" $values.spool.jetstream.tls.required -}}
{{- with $values.spool.jetstream.auth -}}
{{- if ne .method "none" -}}
{{- $file := include "passline.secretPath" (list .existingSecret .key) -}}
{{- if eq .method "password" -}}
{{- $_ := set $jetstream "user" .user -}}
{{- $_ := set $jetstream "password" (dict "file" $file) -}}
{{- else if eq .method "credentials" -}}
{{- $_ := set $jetstream "credentials_file" $file -}}
{{- else -}}
{{- $_ := set $jetstream .method (dict "file" $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $values.spool.jetstream.tls -}}
{{- if .ca.existingSecret }}{{ $_ := set $jetstream "ca_file" (include "passline.secretPath" (list .ca.existingSecret .ca.key)) }}{{ end -}}
{{- with .clientSecret }}{{ $jetstream = merge $jetstream (include "passline.keyPair" . | fromJson) }}{{ end -}}
{{- end -}}
{{- $_ := set $spool "jetstream" $jetstream -}}
{{- end -}}
{{- $sources := list -}}
{{- range $values.sources -}}
{{- $source := deepCopy . -}}
{{- $secrets := list -}}
{{- range .auth.secrets -}}
{{- $secret := dict "file" (include "passline.secretPath" (list .existingSecret .key)) -}}
{{- with .id }}{{ $_ := set $secret "id" . }}{{ end -}}
{{- $secrets = append $secrets $secret -}}
{{- end -}}
{{- if $secrets }}{{ $_ := set $source.auth "secrets" $secrets }}{{ end -}}
{{- $sources = append $sources $source -}}
{{- end -}}
{{- $own := dict "http" $http "admin" $admin "pass_state" $passState "spool" $spool "telemetry" (include "passline.telemetryConfig" (dict "root" . "name" "webhook-gateway") | fromJson) -}}
{{- if $sources }}{{ $_ := set $own "sources" $sources }}{{ end -}}
# Made by the chart {{ .Chart.Name }}; secrets are files.
{{- include "passline.toml" (dict "value" (mergeOverwrite (deepCopy $values.config) $own) "path" "") }}
{{- end -}}

{{/* (dict "root" $ "migrate" bool): for the replicas, or for the Job that migrates, which listens nowhere and asks nobody who they are. */}}
{{- define "passline.passState.config" -}}
{{- $root := .root -}}
{{- $values := .root.Values.passState -}}
{{- $own := dict "telemetry" (dict "service_name" "pass-state") -}}
{{- if not .migrate -}}
{{- $address := .root.Values.bindAddress -}}
{{- $grpc := dict "listen" (include "passline.listen" (dict "address" $address "port" 50051)) "health_listen" (include "passline.listen" (dict "address" $address "port" 50052)) "insecure" $values.insecure -}}
{{- with include "passline.passState.tlsSecret" $root -}}
{{- $tls := include "passline.keyPair" . | fromJson -}}
{{- with include "passline.passState.clientCa" $root -}}
{{- $ca := splitn "/" 2 . -}}
{{- $_ := set $tls "client_ca_file" (include "passline.secretPath" (list $ca._0 $ca._1)) -}}
{{- $_ := set $tls "client_auth" $values.tls.clientAuth -}}
{{- end -}}
{{- $_ := set $grpc "tls" $tls -}}
{{- end -}}
{{- $admin := dict "listen" (include "passline.listen" (dict "address" $address "port" 8082)) -}}
{{- with $values.admin.tlsSecret }}{{ $_ := set $admin "tls" (include "passline.keyPair" . | fromJson) }}{{ end -}}
{{- $own = dict "grpc" $grpc "admin" $admin "telemetry" (include "passline.telemetryConfig" (dict "root" $root "name" "pass-state") | fromJson) -}}
{{- with include "passline.passState.principalsSecret" $root -}}
{{- $file := include "passline.secretPath" (list . (include "passline.passState.principalsKey" $root)) -}}
{{- $_ := set $own "auth" (dict "principals_file" $file "health" $values.auth.health "reflection" $values.auth.reflection) -}}
{{- end -}}
{{- end -}}
{{- $store := dict "backend" $values.store.backend "migrations" (ternary "auto" "off" (eq $values.migrations.mode "auto")) -}}
{{- if eq $values.store.backend "postgres" -}}
{{- $url := splitn "/" 2 (ternary (include "passline.migrate.url" $root) (printf "%s/%s" $values.store.postgres.existingSecret $values.store.postgres.urlKey) .migrate) -}}
{{- $_ := set $store "postgres" (dict "url" (dict "file" (include "passline.secretPath" (list $url._0 $url._1)))) -}}
{{- end -}}
{{- $_ := set $own "store" $store -}}
# Made by the chart {{ $root.Chart.Name }}; secrets are files.
{{- include "passline.toml" (dict "value" (mergeOverwrite (deepCopy $values.config) $own) "path" "") }}
{{- end -}}

{{/* The principals that the chart renders. They hold hashes and names, no tokens. */}}
{{- define "passline.passState.principals" -}}
{{- $principals := .Values.passState.auth.principals -}}
{{- if include "passline.passState.ownGateway" . -}}
{{- $gateway := dict "name" "gateway" "client_names" (list (include "passline.gateway.clientName" .)) "scopes" (list "ingest") "sources" (list "*") -}}
{{- $principals = prepend $principals $gateway -}}
{{- end -}}
{{- /* pass-state wants both written out, even if empty. */ -}}
{{- $complete := list -}}
{{- range $principals }}{{ $complete = append $complete (merge (deepCopy .) (dict "sources" list "organizations" list)) }}{{ end -}}
# Made by the chart {{ .Chart.Name }}.
{{- include "passline.toml" (dict "value" (dict "principals" $complete) "path" "") }}
{{- end -}}

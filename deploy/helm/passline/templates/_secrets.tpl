{{/*
Every file that a pod takes from a Secret, as YAML {secret: [key, …]}. All are mounted as one directory, at
/etc/passline/secrets/<secret>/<key>, never as single files: then a change reaches the process.
*/}}
{{- define "passline.secretsDir" -}}/etc/passline/secrets{{- end -}}
{{/* (list secret key) */}}
{{- define "passline.secretPath" -}}{{ include "passline.secretsDir" . }}/{{ index . 0 }}/{{ index . 1 }}{{- end -}}

{{- define "passline.certificate.passState" -}}{{ include "passline.passState.name" . }}-tls{{- end -}}
{{- define "passline.certificate.gatewayClient" -}}{{ include "passline.gateway.name" . }}-client-tls{{- end -}}
{{- define "passline.certificate.gatewayHttp" -}}{{ include "passline.gateway.name" . }}-tls{{- end -}}
{{/* The name in the gateways' client certificate. */}}
{{- define "passline.gateway.clientName" -}}{{ include "passline.gateway.name" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}{{- end -}}

{{/* The Secret of pass-state's certificate; empty means plaintext. */}}
{{- define "passline.passState.tlsSecret" -}}
{{- if .Values.passState.tls.existingSecret }}{{ .Values.passState.tls.existingSecret }}
{{- else if .Values.certManager.enabled }}{{ include "passline.certificate.passState" . }}
{{- end -}}
{{- end -}}
{{/* The Secret with the authorities of pass-state's clients, as "secret/key"; empty means no client certificates. */}}
{{- define "passline.passState.clientCa" -}}
{{- with .Values.passState.tls.clientCa -}}
{{- if .existingSecret }}{{ .existingSecret }}/{{ .key }}
{{- else if and $.Values.certManager.enabled (not $.Values.passState.tls.existingSecret) }}{{ include "passline.certificate.passState" $ }}/ca.crt
{{- end -}}
{{- end -}}
{{- end -}}
{{- define "passline.gateway.clientSecret" -}}
{{- if .Values.gateway.passState.tls.clientSecret }}{{ .Values.gateway.passState.tls.clientSecret }}
{{- else if and .Values.certManager.enabled (not .Values.gateway.passState.endpoint) }}{{ include "passline.certificate.gatewayClient" . }}
{{- end -}}
{{- end -}}
{{/* The authorities of pass-state's certificate for gateways, as "secret/key". */}}
{{- define "passline.gateway.serverCa" -}}
{{- with .Values.gateway.passState.tls -}}
{{- if .ca.existingSecret }}{{ .ca.existingSecret }}/{{ .ca.key }}
{{- else if and $.Values.certManager.enabled (not .systemRoots) (not $.Values.gateway.passState.endpoint) (not $.Values.passState.tls.existingSecret) }}{{ include "passline.certificate.gatewayClient" $ }}/ca.crt
{{- end -}}
{{- end -}}
{{- end -}}
{{- define "passline.gateway.tlsSecret" -}}
{{- if .Values.gateway.tls.existingSecret }}{{ .Values.gateway.tls.existingSecret }}
{{- else if and .Values.certManager.enabled .Values.gateway.tls.certManager }}{{ include "passline.certificate.gatewayHttp" . }}
{{- end -}}
{{- end -}}
{{/* The authorities of the gateways' own certificate for the test, as "secret/key". */}}
{{- define "passline.tests.urlCa" -}}
{{- if include "passline.gateway.tlsSecret" . -}}
{{- with .Values.tests.gatewayCa -}}
{{- if .existingSecret }}{{ .existingSecret }}/{{ .key }}
{{- else if not $.Values.gateway.tls.existingSecret }}{{ include "passline.certificate.gatewayHttp" $ }}/ca.crt
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{/* Whether gateways speak TLS to pass-state: "true" or nothing. */}}
{{- define "passline.gateway.toTls" -}}
{{- if .Values.gateway.passState.endpoint }}{{ if hasPrefix "https://" .Values.gateway.passState.endpoint }}true{{ end }}
{{- else if include "passline.passState.tlsSecret" . }}true
{{- end -}}
{{- end -}}
{{- define "passline.gateway.endpoint" -}}
{{- if .Values.gateway.passState.endpoint }}{{ .Values.gateway.passState.endpoint }}
{{- else }}http{{ if include "passline.gateway.toTls" . }}s{{ end }}://{{ include "passline.passState.host" . }}:50051
{{- end -}}
{{- end -}}
{{/* Whether the chart renders the principals, and their Secret. */}}
{{- define "passline.passState.ownGateway" -}}
{{- with .Values.passState.auth -}}
{{- if and .gatewayPrincipal (not .existingSecret) $.Values.certManager.enabled (include "passline.passState.clientCa" $) (not $.Values.gateway.passState.tls.clientSecret) }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- define "passline.passState.principalsRendered" -}}
{{- if and (not .Values.passState.auth.existingSecret) (or .Values.passState.auth.principals (include "passline.passState.ownGateway" .)) }}true{{ end -}}
{{- end -}}
{{- define "passline.passState.principalsSecret" -}}
{{- if .Values.passState.auth.existingSecret }}{{ .Values.passState.auth.existingSecret }}
{{- else if include "passline.passState.principalsRendered" . }}{{ include "passline.passState.name" . }}-principals
{{- end -}}
{{- end -}}
{{- define "passline.passState.principalsKey" -}}
{{- if .Values.passState.auth.existingSecret }}{{ .Values.passState.auth.key }}{{ else }}principals.toml{{ end -}}
{{- end -}}

{{/* Lines "secret/key", one per file. */}}
{{- define "passline.otlp.files" -}}
{{- with .Values.observability.otlp -}}
{{- if .endpoint -}}
{{- with .ca.existingSecret }}
{{ . }}/{{ $.Values.observability.otlp.ca.key }}
{{- end -}}
{{- with .clientSecret }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "passline.gateway.files" -}}
{{- range .Values.gateway.sources }}{{ range .auth.secrets }}
{{ .existingSecret }}/{{ .key }}
{{- end }}{{ end -}}
{{- with include "passline.gateway.tlsSecret" . }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- with $.Values.gateway.tls.clientCa.existingSecret }}
{{ . }}/{{ $.Values.gateway.tls.clientCa.key }}
{{- end -}}
{{- end -}}
{{- with .Values.gateway.admin.tlsSecret }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- end -}}
{{- if include "passline.gateway.toTls" . -}}
{{- with include "passline.gateway.serverCa" . }}
{{ . }}
{{- end -}}
{{- with include "passline.gateway.clientSecret" . }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- end -}}
{{- end -}}
{{- with .Values.gateway.passState.token }}{{ if .existingSecret }}
{{ .existingSecret }}/{{ .key }}
{{- end }}{{ end -}}
{{- if eq .Values.gateway.spool.backend "jetstream" -}}
{{- with .Values.gateway.spool.jetstream -}}
{{- if ne .auth.method "none" }}
{{ .auth.existingSecret }}/{{ .auth.key }}
{{- end -}}
{{- if .tls.ca.existingSecret }}
{{ .tls.ca.existingSecret }}/{{ .tls.ca.key }}
{{- end -}}
{{- with .tls.clientSecret }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "passline.otlp.files" . -}}
{{- end -}}

{{- define "passline.passState.files" -}}
{{- with include "passline.passState.tlsSecret" . }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- with include "passline.passState.clientCa" $ }}
{{ . }}
{{- end -}}
{{- end -}}
{{- with include "passline.passState.principalsSecret" . }}
{{ . }}/{{ include "passline.passState.principalsKey" $ }}
{{- end -}}
{{- with .Values.passState.admin.tlsSecret }}
{{ . }}/tls.crt
{{ . }}/tls.key
{{- end -}}
{{- if eq .Values.passState.store.backend "postgres" -}}
{{- with .Values.passState.store.postgres }}
{{ .existingSecret }}/{{ .urlKey }}
{{- if .caKey }}
{{ .existingSecret }}/{{ .caKey }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "passline.otlp.files" . -}}
{{- end -}}

{{/* What the Job that migrates takes: the database's URL and authorities. */}}
{{- define "passline.migrate.files" -}}
{{ include "passline.migrate.url" . }}
{{- with .Values.passState.store.postgres }}
{{- if .caKey }}
{{ .existingSecret }}/{{ .caKey }}
{{- end }}
{{- end }}
{{- end -}}
{{- define "passline.migrate.url" -}}
{{- with .Values.passState -}}
{{- if .migrations.job.existingSecret }}{{ .migrations.job.existingSecret }}/{{ .migrations.job.urlKey }}
{{- else }}{{ .store.postgres.existingSecret }}/{{ .store.postgres.urlKey }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A projected volume of such lines. */}}
{{- define "passline.secretsVolume" -}}
{{- $files := dict -}}
{{- range . | trim | splitList "\n" | uniq -}}
{{- if . -}}
{{- $parts := splitn "/" 2 . -}}
{{- $_ := set $files $parts._0 (append (default list (index $files $parts._0)) $parts._1) -}}
{{- end -}}
{{- end -}}
{{- if $files -}}
- name: secrets
  projected:
    # Owner and group read; fsGroup makes it the service's group.
    defaultMode: 0440
    sources:
      {{- range $secret := keys $files | sortAlpha }}
      - secret:
          name: {{ $secret }}
          items:
            {{- range $key := index $files $secret | sortAlpha | uniq }}
            - {key: {{ $key | quote }}, path: {{ printf "%s/%s" $secret $key | quote }}}
            {{- end }}
      {{- end }}
{{- end -}}
{{- end -}}

{{/*
What both workloads have in common. A context is (dict "root" $ "component" "gateway"|"pass-state" "values" .Values.… plus
"args" "ports" "probes" "config" "files" "env" "volumes" "mounts" as YAML texts).
*/}}
{{- define "passline.podTemplate" -}}
metadata:
  labels:
    {{- include "passline.labels" . | nindent 4 }}
    {{- with .values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $annotations := dict -}}
  {{- if .values.restartOnConfigChange }}
  {{- $_ := set $annotations "checksum/config" (sha256sum .config) }}
  {{- end }}
  {{- with merge (deepCopy .values.podAnnotations) $annotations .root.Values.global.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "passline.serviceAccountName" . }}
  {{- include "passline.placement" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "passline.terminationGracePeriodSeconds" . }}
  {{- with .values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $selector := dict "matchLabels" (include "passline.selectorLabels" $ | fromYaml) }}
    - {{ merge (deepCopy .) (dict "labelSelector" $selector) | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- with .values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "passline.image" (dict "root" .root "image" .values.image) }}
      imagePullPolicy: {{ .values.image.pullPolicy }}
      args:
        {{- .args | nindent 8 }}
      {{- $env := concat (.env | fromYamlArray) .values.extraEnv }}
      {{- with .root.Values.observability.otlp }}
      {{- if and .endpoint .headers.existingSecret }}
      {{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_HEADERS" "valueFrom" (dict "secretKeyRef" (dict "name" .headers.existingSecret "key" .headers.key))) }}
      {{- end }}
      {{- end }}
      {{- with $env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- .ports | nindent 8 }}
      {{- range $name, $probe := .probes | fromYaml }}
      {{ $name }}Probe:
        {{- merge (dict) $probe (index $.values.probes $name) | toYaml | nindent 8 }}
      {{- end }}
      {{- with .values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      securityContext:
        {{- toYaml .values.securityContext | nindent 8 }}
      volumeMounts:
        # Directories, never single files: so that what changes reaches the process.
        - {name: config, mountPath: /etc/passline/config, readOnly: true}
        {{- if .files | trim }}
        - {name: secrets, mountPath: {{ include "passline.secretsDir" . }}, readOnly: true}
        {{- end }}
        {{- with .mounts }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "passline.component.name" . }}
    {{- with include "passline.secretsVolume" .files }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .volumes }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* What the pods of a Job and of the test have in common with the services' pods, too: rights, pulling, and where they may run. */}}
{{- define "passline.placement" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .values.podSecurityContext | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A claim of a StatefulSet: (dict "root" $ "component" … "persistence" …). */}}
{{- define "passline.claimTemplate" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
    labels:
      {{- include "passline.selectorLabels" . | nindent 6 }}
    {{- with .persistence.annotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    accessModes: {{ toJson .persistence.accessModes }}
    {{- with .persistence.storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .persistence.size }}
{{- end -}}

{{/* The data volume, where it is no claim of the StatefulSet's own. */}}
{{- define "passline.dataVolume" -}}
{{- if not .enabled -}}
- {name: data, emptyDir: {}}
{{- else if .existingClaim -}}
- {name: data, persistentVolumeClaim: {claimName: {{ .existingClaim }}}}
{{- end -}}
{{- end -}}

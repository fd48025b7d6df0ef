{{/* Objects that both services have; contexts as in _pod.tpl. */}}

{{- define "passline.pdb" -}}
{{- $pods := ternary (int .values.autoscaling.minReplicas) (int .values.replicas) .values.autoscaling.enabled -}}
{{- if and .values.pdb.enabled (gt $pods 1) }}
apiVersion: policy/v1
kind: PodDisruptionBudget
{{ include "passline.metadata" (merge (dict "name" (include "passline.component.name" .)) .) }}
spec:
  selector:
    matchLabels:
      {{- include "passline.selectorLabels" . | nindent 6 }}
  {{- if ne (toString .values.pdb.minAvailable) "" }}
  minAvailable: {{ .values.pdb.minAvailable }}
  {{- else }}
  maxUnavailable: {{ .values.pdb.maxUnavailable }}
  {{- end }}
  # A pod that does not work anyway holds up no drain of its node.
  unhealthyPodEvictionPolicy: AlwaysAllow
{{- end }}
{{- end -}}

{{- define "passline.hpa" -}}
{{- with .values.autoscaling }}
{{- if and .enabled .kedaTriggers }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
{{ include "passline.metadata" (merge (dict "name" (include "passline.component.name" $)) $) }}
spec:
  scaleTargetRef:
    name: {{ include "passline.component.name" $ }}
  minReplicaCount: {{ .minReplicas }}
  maxReplicaCount: {{ .maxReplicas }}
  {{- with .behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    {{- range $resource, $target := dict "cpu" .targetCPUUtilizationPercentage "memory" .targetMemoryUtilizationPercentage }}
    {{- if $target }}
    - {type: {{ $resource }}, metricType: Utilization, metadata: {value: {{ $target | toString | quote }}}}
    {{- end }}
    {{- end }}
    {{- toYaml .kedaTriggers | nindent 4 }}
{{- else if .enabled }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
{{ include "passline.metadata" (merge (dict "name" (include "passline.component.name" $)) $) }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "passline.component.name" $ }}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    {{- range $resource, $target := dict "cpu" .targetCPUUtilizationPercentage "memory" .targetMemoryUtilizationPercentage }}
    {{- if $target }}
    - type: Resource
      resource:
        name: {{ $resource }}
        target: {type: Utilization, averageUtilization: {{ $target }}}
    {{- end }}
    {{- end }}
    {{- with .extraMetrics }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "passline.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
apiVersion: v1
kind: ServiceAccount
{{ include "passline.metadata" (merge (dict "name" (include "passline.serviceAccountName" .) "annotations" .values.serviceAccount.annotations) .) }}
automountServiceAccountToken: false
{{- end }}
{{- end -}}

{{/* One NetworkPolicy: also "policy" .Values.networkPolicy.…, "port" of the service, "from" and "egress" as YAML lists. */}}
{{- define "passline.networkPolicy" -}}
{{- $all := .root.Values.networkPolicy -}}
{{- if $all.enabled }}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
{{ include "passline.metadata" (merge (dict "name" (include "passline.component.name" .)) .) }}
spec:
  podSelector:
    matchLabels:
      {{- include "passline.selectorLabels" . | nindent 6 }}
  policyTypes:
    - Ingress
    {{- if $all.egress }}
    - Egress
    {{- end }}
  ingress:
    - ports:
        - {port: {{ .port }}, protocol: TCP}
      {{- with concat (.from | fromYamlArray) .policy.allowIngressFrom }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- with $all.metricsFrom }}
    - ports:
        - {port: admin, protocol: TCP}
      from:
        {{- toYaml . | nindent 8 }}
    {{- end }}
    {{- with .policy.extraIngressRules }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if $all.egress }}
  egress:
    # Names.
    - ports:
        - {port: 53, protocol: UDP}
        - {port: 53, protocol: TCP}
    {{- with .egress }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .root.Values.observability.otlp.endpoint }}
    # The collector.
    - ports:
        - {port: {{ include "passline.portOf" (dict "url" . "default" (ternary 443 80 (hasPrefix "https" .))) }}, protocol: TCP}
    {{- end }}
    {{- with .policy.egressRules }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A ServiceMonitor's or PodMonitor's endpoint: (dict "monitor" … "tls" bool "target" "…: name"). */}}
{{- define "passline.scrape" -}}
- port: admin
  path: /metrics
  {{- if .tls }}
  scheme: https
  {{- end }}
  {{- with .monitor.tlsConfig }}
  tlsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .monitor.interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .monitor.scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  {{- with .monitor.relabelings }}
  relabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .monitor.metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* "250ms", "5s", "10m", "24h" in seconds, rounded up. */}}
{{- define "passline.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}{{ div (add $number 999) 1000 }}
{{- else -}}{{ mul $number (index (dict "s" 1 "m" 60 "h" 3600) $unit) }}
{{- end -}}
{{- end -}}

{{/* "64MiB" of the services, or "10Gi" of Kubernetes, in KiB, rounded down; bytes alone count as such. */}}
{{- define "passline.kib" -}}
{{- $number := regexFind "^[0-9.]+" . | float64 -}}
{{- $unit := regexFind "[A-Za-z]*$" . | trimSuffix "B" -}}
{{- $scale := dict "" 0.0009765625 "k" 0.9765625 "Ki" 1.0 "M" 976.5625 "Mi" 1024.0 "G" 976562.5 "Gi" 1048576.0 "T" 976562500.0 "Ti" 1073741824.0 "P" 976562500000.0 "Pi" 1099511627776.0 "E" 976562500000000.0 "Ei" 1125899906842624.0 "m" 0.0 -}}
{{- mulf $number (index $scale $unit) | floor | int64 -}}
{{- end -}}

{{/*
Seconds from SIGTERM to SIGKILL that a service needs with its configuration: it stays in service for drain_delay, finishes
what it accepted, forwards or closes its store, and flushes its telemetry. The defaults are the services'; a test holds them
equal. A preStop sleep counts as well.
*/}}
{{- define "passline.grace" -}}
{{- $config := .values.config -}}
{{- $telemetry := (($config.telemetry).export_timeout) | default "5s" -}}
{{- $terms := list ($config.drain_delay | default "1s") $telemetry -}}
{{- $slack := 0 -}}
{{- if eq .component "gateway" -}}
{{- $terms = concat $terms (list (((($config.http).limits).drain_timeout) | default "8s") ((($config.forward).drain_timeout) | default "2s")) -}}
{{- $slack = 5 -}}
{{- else -}}
{{- $terms = append $terms (((($config.grpc).limits).drain_timeout) | default "8s") -}}
{{- $slack = 10 -}}
{{- end -}}
{{- $sum := $slack -}}
{{- range $terms }}{{ $sum = add $sum (include "passline.seconds" .) }}{{ end -}}
{{- with ((.values.lifecycle.preStop).sleep) }}{{ $sum = add $sum (int64 .seconds) }}{{ end -}}
{{- $sum -}}
{{- end -}}

{{- define "passline.terminationGracePeriodSeconds" -}}
{{- $own := int64 .values.terminationGracePeriodSeconds -}}
{{- if $own }}{{ $own }}{{ else }}{{ include "passline.grace" . }}{{ end -}}
{{- end -}}

{{/* "host:port" or "scheme://host:port" -> port; the second argument is the default of the scheme. (dict "url" … "default" …) */}}
{{- define "passline.portOf" -}}
{{- $port := regexFind ":[0-9]+$" (trimSuffix "/" .url) | trimPrefix ":" -}}
{{- if $port }}{{ $port }}{{ else }}{{ .default }}{{ end -}}
{{- end -}}

{{/* How many pods: "2", or "2 to 8" where they are scaled. */}}
{{- define "passline.notes.count" -}}
{{- if .autoscaling.enabled }}{{ .autoscaling.minReplicas }} to {{ .autoscaling.maxReplicas }}{{ else }}{{ .replicas }}{{ end -}}
{{- end -}}

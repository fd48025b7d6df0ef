{{/*
A map as TOML: (dict "value" map "path" ""). Scalars come before tables, keys in order, so that the same values give the
same text. YAML's numbers arrive as floats; whole ones are written as integers.
*/}}
{{- define "passline.toml" -}}
{{- $path := .path -}}
{{- $value := .value -}}
{{- range $key := keys $value | sortAlpha -}}
{{- $inner := index $value $key -}}
{{- if not (or (kindIs "map" $inner) (eq (include "passline.toml.isTables" $inner) "true") (kindIs "invalid" $inner)) }}
{{ include "passline.toml.key" $key }} = {{ include "passline.toml.value" $inner }}
{{- end -}}
{{- end -}}
{{- range $key := keys $value | sortAlpha -}}
{{- $inner := index $value $key -}}
{{- $name := include "passline.toml.key" $key -}}
{{- with $path }}{{ $name = printf "%s.%s" . $name }}{{ end -}}
{{- if kindIs "map" $inner -}}
{{- if $inner }}

[{{ $name }}]
{{- include "passline.toml" (dict "value" $inner "path" $name) -}}
{{- end -}}
{{- else if eq (include "passline.toml.isTables" $inner) "true" -}}
{{- range $inner }}

[[{{ $name }}]]
{{- include "passline.toml" (dict "value" . "path" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether a value is a list of maps. */}}
{{- define "passline.toml.isTables" -}}
{{- if kindIs "slice" . -}}{{- if . -}}{{- if kindIs "map" (first .) -}}true{{- end -}}{{- end -}}{{- end -}}
{{- end -}}

{{- define "passline.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ . | toJson }}{{ end -}}
{{- end -}}

{{/* JSON's texts are TOML's basic strings. */}}
{{- define "passline.toml.value" -}}
{{- if kindIs "string" . -}}
{{- . | toJson -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else if kindIs "slice" . -}}
[{{ range $index, $inner := . }}{{ if $index }}, {{ end }}{{ include "passline.toml.value" $inner }}{{ end }}]
{{- else if eq (float64 .) (floor .) -}}
{{- int64 . -}}
{{- else -}}
{{- float64 . -}}
{{- end -}}
{{- end -}}

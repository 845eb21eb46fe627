{{/* Name of the Deployment and stem of every other name: `engine`, unless it is overridden. */}}
{{- define "engine.fullname" -}}
{{- .Values.fullnameOverride | default .Values.nameOverride | default "engine" | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "engine.serviceName" -}}
{{- printf "%s-svc" (include "engine.fullname" .) -}}
{{- end -}}

{{/* Prefix of the secrets: none by default, as documented; the overridden name otherwise. */}}
{{- define "engine.secretPrefix" -}}
{{- $name := include "engine.fullname" . -}}
{{- if ne $name "engine" -}}{{ $name }}-{{- end -}}
{{- end -}}

{{- define "engine.registrySecret" -}}
{{- .Values.ociRegistry.existingSecret | default (printf "%soci-registry" (include "engine.secretPrefix" .)) -}}
{{- end -}}

{{- define "engine.registryDockerSecret" -}}
{{- printf "%soci-registry-docker" (include "engine.secretPrefix" .) -}}
{{- end -}}

{{- define "engine.bundleSecret" -}}
{{- printf "%sedge-bundle" (include "engine.secretPrefix" .) -}}
{{- end -}}

{{- define "engine.claim" -}}
{{- .Values.persistence.existingClaim | default (printf "%s-persist" (include "engine.fullname" .)) -}}
{{- end -}}

{{/* "true" where the one pod keeps /persist on a claim that outlives it. */}}
{{- define "engine.hasClaim" -}}
{{- if and .Values.persistence.enabled (not .Values.autoscaling.enabled) (le (int .Values.replicas) 1) -}}true{{- end -}}
{{- end -}}

{{- define "engine.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) -}}
{{- if hasPrefix "sha256:" $tag -}}{{ .Values.image.repository }}@{{ $tag }}{{- else -}}{{ .Values.image.repository }}:{{ $tag }}{{- end -}}
{{- end -}}

{{- define "engine.selectorLabels" -}}
app.kubernetes.io/name: {{ include "engine.fullname" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "engine.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "engine.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* A value as text; Helm reads numbers as floats, and would write 1000000 as 1e+06. */}}
{{- define "engine.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* The variables that the chart sets itself; engine.extraEnv may replace any of them. */}}
{{- define "engine.env" -}}
{{- $registry := include "engine.registrySecret" . -}}
- name: DEBUG
  value: {{ .Values.engine.debug | quote }}
# The documented chart's name for the same; this engine reads DEBUG.
- name: RUST_LOG
  value: {{ ternary "debug" "info" .Values.engine.debug }}
- name: OCI_REGISTRY
  valueFrom:
    secretKeyRef: {name: {{ $registry }}, key: URI}
- name: OCI_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ $registry }}, key: USERNAME}
- name: OCI_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ $registry }}, key: PASSWORD}
{{- with .Values.engine.pipelineUrl }}
- name: PIPELINE_URL
  value: {{ . | quote }}
{{- end }}
{{- if .Values.edgeBundle }}
- name: EDGE_BUNDLE
  valueFrom:
    secretKeyRef: {name: {{ include "engine.bundleSecret" . }}, key: EDGE_BUNDLE}
{{- end }}
- name: CONFIG_CPUS
  value: {{ .Values.engine.cpus | quote }}
- name: CONFIG_MEMORY
  value: {{ .Values.engine.memory | quote }}
- name: FLIGHT_PORT
  value: {{ ternary (toString .Values.flight.port) "" .Values.flight.enabled | quote }}
- name: METRICS_PORT
  value: {{ .Values.metrics.port | quote }}
{{- if .Values.gpu.enabled }}
- name: ACCELERATOR
  value: cuda
{{- end }}
{{- end -}}

{{/* How a probe asks: (list . PATH). */}}
{{- define "engine.probe" -}}
{{- $scheme := (index . 0).Values.probes.scheme -}}
{{- if eq $scheme "TCP" -}}
tcpSocket: {port: http-inference}
{{- else -}}
httpGet: {path: {{ index . 1 }}, port: http-inference, scheme: {{ $scheme }}}
{{- end -}}
{{- end -}}

{{/* Everything that must hold between values, with one sentence each; rendered first. */}}
{{- define "engine.check" -}}
{{- if not .Values.ociRegistry.existingSecret -}}
{{- range $key := list "registry" "username" "password" -}}
{{- if not (index $.Values.ociRegistry $key) -}}
{{- fail (printf "ociRegistry.%s is required: ociRegistry.registry, ociRegistry.username and ociRegistry.password name the registry of the published pipeline and its credentials (or give ociRegistry.existingSecret)" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (not .Values.engine.pipelineUrl) (not .Values.edgeBundle) -}}
{{- fail "engine.pipelineUrl is required: the URL of the published pipeline (an edgeBundle carries one of its own)" -}}
{{- end -}}
{{- if and .Values.edgeBundle (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) -}}
{{- fail "edgeBundle is one edge: it needs replicas=1 and autoscaling.enabled=false (install one release per edge, each with its own bundle)" -}}
{{- end -}}
{{- if and .Values.service.headless (eq .Values.service.type "ClusterIP") (ne (int .Values.service.port) 8080) -}}
{{- fail "service.port cannot differ from 8080 while service.headless is true: a headless service has no address of its own that could translate it" -}}
{{- end -}}
{{- if and .Values.persistence.existingClaim (not (include "engine.hasClaim" .)) -}}
{{- fail "persistence.existingClaim serves one pod: it needs persistence.enabled=true, replicas=1 and autoscaling.enabled=false" -}}
{{- end -}}
{{- end -}}

{{/* Name of all objects: that of the release, with the chart's name unless it is part of it. At most 63 characters. */}}
{{- define "leasemux.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods. They must never change: selectors are immutable. */}}
{{- define "leasemux.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leasemux.labels" -}}
{{ include "leasemux.selectorLabels" . }}
{{ include "leasemux.helmLabels" . }}
{{- end -}}

{{- define "leasemux.helmLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Labels of the canary. Its pods must not match the selectors of the gateway. */}}
{{- define "leasemux.canarySelectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-canary
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leasemux.canaryLabels" -}}
{{ include "leasemux.canarySelectorLabels" . }}
{{ include "leasemux.helmLabels" . }}
{{- end -}}

{{/* Labels of source gateways. Their pods must not match the selectors of the gateway, which serves tenants. */}}
{{- define "leasemux.sourceSelectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-source
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leasemux.sourceLabels" -}}
{{ include "leasemux.sourceSelectorLabels" . }}
{{ include "leasemux.helmLabels" . }}
{{- end -}}

{{- define "leasemux.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "leasemux.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "leasemux.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name is required without serviceAccount.create" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* "true" if REST or the published proto is served. Front mode turns on REST. */}}
{{- define "leasemux.rest" -}}
{{- if or .Values.rest.enabled .Values.front.enabled -}}true{{- end -}}
{{- end -}}
{{- define "leasemux.published" -}}
{{- if or .Values.published.enabled (and .Values.front.enabled .Values.front.upstreamGrpc) -}}true{{- end -}}
{{- end -}}

{{/* The port of a URL: an explicit one, or that of its scheme. */}}
{{- define "leasemux.portOf" -}}
{{- $url := urlParse . -}}
{{- if regexMatch ":[0-9]+$" $url.host -}}
{{- regexFind "[0-9]+$" $url.host -}}
{{- else if eq $url.scheme "https" -}}443
{{- else if has $url.scheme (list "nats" "tls") -}}4222
{{- else -}}80
{{- end -}}
{{- end -}}

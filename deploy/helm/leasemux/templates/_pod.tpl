{{/* The template of the pods, of the Deployment and the DaemonSet. */}}
{{- define "leasemux.pod" -}}
{{- $node := eq .Values.platform "node" -}}
{{- $rest := include "leasemux.rest" . -}}
{{- $published := include "leasemux.published" . -}}
{{- $fleet := dict -}}
{{- if .Values.fleet.nats -}}
{{- range $name, $secret := dict "nats" .Values.fleet.credentialsSecret "nats-tls" .Values.fleet.tlsSecret "fleet" .Values.fleet.secret -}}
{{- if $secret -}}{{- $_ := set $fleet $name $secret -}}{{- end -}}
{{- end -}}
{{- else if or .Values.fleet.name .Values.fleet.credentialsSecret .Values.fleet.tlsSecret .Values.fleet.secret -}}
{{- fail "fleet.nats is required for the other values of fleet: the URLs of the NATS servers" -}}
{{- end -}}
{{- if and .Values.fleet.clientCertificate (not .Values.fleet.tlsSecret) -}}
{{- fail "fleet.tlsSecret is required with fleet.clientCertificate" -}}
{{- end -}}
{{- if and .Values.front.enabled (not .Values.tls.authoritySecret) (ne (get .Values.settings "rest-mtls" | default "") "terminate") -}}
{{- fail "front mode needs tls.authoritySecret: a certificate of an authority for publicHostname. Without one, set settings.rest-mtls to terminate (docs/PROVIDER.md, \"Without such a certificate\")" -}}
{{- end -}}
metadata:
  labels:
    {{- include "leasemux.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "leasemux.serviceAccountName" . }}
  automountServiceAccountToken: true
  # Lame-duck time, drain (10 s), and a margin.
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds | default (ternary 60 40 .Values.front.enabled) }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    {{- if $node }}
    # Group 0 may read /var/log/pods: kubelets create it for root and its group. No write access is needed.
    supplementalGroups: [0]
    {{- end }}
    seccompProfile: {type: RuntimeDefault}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if not $node }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "leasemux.selectorLabels" . | nindent 10 }}
  {{- end }}
  containers:
    - name: leasemux
      image: {{ include "leasemux.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve]
      env:
        - {name: LEASEMUX_PLATFORM, value: {{ .Values.platform }}}
        {{- if $node }}
        - name: LEASEMUX_NODE_NAME
          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
        {{- end }}
        {{- if .Values.existingConfigMap }}
        - name: LEASEMUX_PROVIDER
          valueFrom: {configMapKeyRef: {name: {{ .Values.existingConfigMap }}, key: provider}}
        - name: LEASEMUX_PUBLIC_HOSTNAME
          valueFrom: {configMapKeyRef: {name: {{ .Values.existingConfigMap }}, key: public-hostname}}
        {{- else }}
        - {name: LEASEMUX_PROVIDER, value: {{ required "provider is required: the account of the Akash provider (akash1...)" .Values.provider | quote }}}
        - {name: LEASEMUX_PUBLIC_HOSTNAME, value: {{ required "publicHostname is required: the host name under which tenants reach the gateway" .Values.publicHostname | quote }}}
        {{- end }}
        - {name: LEASEMUX_LISTEN, value: "0.0.0.0:8446"}
        - {name: LEASEMUX_ADMIN_LISTEN, value: "0.0.0.0:9446"}
        - {name: LEASEMUX_DATA_DIR, value: /var/lib/leasemux}
        - {name: LEASEMUX_TRUST_DIR, value: /etc/leasemux/trusted}
        - {name: LEASEMUX_TLS_CERT, value: /etc/leasemux/tls/tls.crt}
        - {name: LEASEMUX_TLS_KEY, value: /etc/leasemux/tls/tls.key}
        {{- if not (hasKey .Values.settings "log-format") }}
        - {name: LEASEMUX_LOG_FORMAT, value: json}
        {{- end }}
        {{- if ne .Values.rbac.manifestNamespace "lease" }}
        - {name: LEASEMUX_MANIFEST_NAMESPACE, value: {{ .Values.rbac.manifestNamespace }}}
        {{- end }}
        {{- if .Values.tls.authoritySecret }}
        - {name: LEASEMUX_CA_TLS_CERT, value: /etc/leasemux/ca-tls/tls.crt}
        - {name: LEASEMUX_CA_TLS_KEY, value: /etc/leasemux/ca-tls/tls.key}
        {{- end }}
        {{- with .Values.trust.chainGrpc }}
        # Keys and certificates of tenants, and certificates of the provider.
        - {name: LEASEMUX_CHAIN_GRPC, value: {{ . | quote }}}
        {{- end }}
        {{- if $rest }}
        - {name: LEASEMUX_REST_LISTEN, value: "0.0.0.0:{{ .Values.rest.port }}"}
        {{- end }}
        {{- if $published }}
        - {name: LEASEMUX_PUBLISHED_LISTEN, value: "0.0.0.0:{{ .Values.published.port }}"}
        {{- end }}
        {{- with .Values.front }}
        {{- if .enabled }}
        - {name: LEASEMUX_UPSTREAM_PROVIDER, value: {{ .upstreamProvider | quote }}}
        {{- with .upstreamGrpc }}
        - {name: LEASEMUX_UPSTREAM_GRPC, value: {{ . | quote }}}
        {{- end }}
        {{- if not $.Values.trustedProxies }}
        # For a proxy that hides the addresses of clients, as nginx does: to the gateway, all tenants are one peer.
        # With the default limits, a single client with wrong credentials would shut out everyone.
        {{- range $name, $value := .sharedAddressLimits }}
        {{- if not (hasKey $.Values.settings $name) }}
        - {name: {{ include "leasemux.variable" $name }}, value: {{ include "leasemux.text" $value | quote }}}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- with .Values.traces.otlpEndpoint }}
        - {name: LEASEMUX_OTLP_ENDPOINT, value: {{ . | quote }}}
        {{- end }}
        {{- with .Values.fleet }}
        {{- if .nats }}
        # One log tail per replica for all gateways.
        - {name: LEASEMUX_NATS, value: {{ join "," .nats | quote }}}
        {{- with .name }}
        - {name: LEASEMUX_FLEET, value: {{ . | quote }}}
        {{- end }}
        {{- if .credentialsSecret }}
        - {name: {{ ternary "LEASEMUX_NATS_CREDS" "LEASEMUX_NATS_NKEY" (hasSuffix ".creds" .credentialsKey) }}, value: /etc/leasemux/nats/{{ .credentialsKey }}}
        {{- end }}
        {{- if .tlsSecret }}
        - {name: LEASEMUX_NATS_CA, value: /etc/leasemux/nats-tls/ca.crt}
        {{- if .clientCertificate }}
        - {name: LEASEMUX_NATS_CERT, value: /etc/leasemux/nats-tls/tls.crt}
        - {name: LEASEMUX_NATS_KEY, value: /etc/leasemux/nats-tls/tls.key}
        {{- end }}
        {{- end }}
        {{- if .secret }}
        - {name: LEASEMUX_FLEET_SECRET, value: /etc/leasemux/fleet/secret}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- with .Values.trustedProxies }}
        - {name: LEASEMUX_TRUSTED_PROXY, value: {{ join "," . | quote }}}
        {{- end }}
        {{- with .Values.lameDuck | default (ternary "15s" "" .Values.front.enabled) }}
        # Longer than load balancers need to notice that the pod is not ready. It accepts connections meanwhile.
        - {name: LEASEMUX_LAME_DUCK, value: {{ . }}}
        {{- end }}
        {{- range $name, $value := .Values.settings }}
        - {name: {{ include "leasemux.variable" $name }}, value: {{ include "leasemux.text" $value | quote }}}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: grpc, containerPort: 8446}
        {{- if $rest }}
        - {name: rest, containerPort: {{ .Values.rest.port }}}
        {{- end }}
        {{- if $published }}
        - {name: published, containerPort: {{ .Values.published.port }}}
        {{- end }}
        - {name: admin, containerPort: 9446}
      # Ready once everything in the cluster has been listed. The startup probe allows five minutes.
      startupProbe: {httpGet: {path: /ready, port: admin}, periodSeconds: 2, failureThreshold: 150}
      readinessProbe: {httpGet: {path: /ready, port: admin}, periodSeconds: 2, failureThreshold: 1}
      livenessProbe: {httpGet: {path: /live, port: admin}, periodSeconds: 10, failureThreshold: 6}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: data, mountPath: /var/lib/leasemux}
        - {name: trusted, mountPath: /etc/leasemux/trusted, readOnly: true}
        - {name: tls, mountPath: /etc/leasemux/tls, readOnly: true}
        {{- if .Values.tls.authoritySecret }}
        - {name: ca-tls, mountPath: /etc/leasemux/ca-tls, readOnly: true}
        {{- end }}
        {{- range $name, $secret := $fleet }}
        - {name: {{ $name }}, mountPath: /etc/leasemux/{{ $name }}, readOnly: true}
        {{- end }}
        {{- if $node }}
        - {name: pod-logs, mountPath: /var/log/pods, readOnly: true}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: data, emptyDir: {sizeLimit: 16Mi}}
    - {name: trusted, secret: {secretName: {{ .Values.trust.secret }}, optional: true}}
    - {name: tls, secret: {secretName: {{ .Values.tls.secret }}}}
    {{- with .Values.tls.authoritySecret }}
    - {name: ca-tls, secret: {secretName: {{ . }}}}
    {{- end }}
    {{- range $name, $secret := $fleet }}
    - {name: {{ $name }}, secret: {secretName: {{ $secret }}}}
    {{- end }}
    {{- if $node }}
    - {name: pod-logs, hostPath: {path: /var/log/pods, type: Directory}}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The environment variable of a flag. */}}
{{- define "leasemux.variable" -}}
LEASEMUX_{{ . | upper | replace "-" "_" }}
{{- end -}}

{{/* A setting as text. A list is separated by commas. JSON numbers must not become 1e+06. */}}
{{- define "leasemux.text" -}}
{{- if kindIs "slice" . -}}{{ join "," . }}
{{- else if kindIs "float64" . -}}{{ printf "%.0f" . }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

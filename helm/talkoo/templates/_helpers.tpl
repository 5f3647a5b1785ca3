{{/* Names, labels and what all pods share. */}}
{{- define "talkoo.name" -}}{{ .Release.Name }}{{- end }}

{{- define "talkoo.labels" -}}
app.kubernetes.io/name: talkoo
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{ include "talkoo.selector" . }}
{{- end }}

{{- define "talkoo.selector" -}}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "talkoo.image" -}}
{{- $image := index .root.Values.images .which -}}
{{- if $image.digest -}}{{ $image.repository }}@{{ $image.digest }}
{{- else -}}{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}{{- end -}}
{{- end }}

{{- define "talkoo.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "talkoo.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A member's invitation (operator/talkoo_operator/invitation.py), or an empty object. */}}
{{- define "talkoo.invitation" -}}
{{- with .Values.federation.invitation }}
{{- $read := fromJson . }}
{{- range list "federation" "organization" "ledger" "scheduler" "gateway" "genesis" "trust" }}
{{- if not (get $read .) }}{{ fail (printf "federation.invitation: it has no %s; take it anew from the ConfigMap <release>-invitation of a member" .) }}{{ end }}
{{- end }}
{{- if ne $read.federation $.Values.federation.name }}{{ fail (printf "federation.name: the invitation is into %s" $read.federation) }}{{ end }}
{{- if eq $read.organization $.Values.organization }}{{ fail (printf "organization: the invitation is by %s; choose another name" $read.organization) }}{{ end }}
{{- end }}
{{- .Values.federation.invitation | default "{}" }}
{{- end }}

{{/* Not empty where the S3 server of the release is wanted. */}}
{{- define "talkoo.ownStorage" -}}
{{- if and .Values.blobs.seaweedfs.enabled (not .Values.blobs.url) (not .Values.federation.invitation) }}yes{{ end }}
{{- end }}

{{/* Not empty where blobs lie in S3, whoever's. */}}
{{- define "talkoo.s3" -}}
{{- if hasPrefix "s3:" (include "talkoo.blobs" .) }}yes{{ end }}
{{- end }}

{{- define "talkoo.blobs" -}}
{{- if .Values.blobs.url -}}{{ .Values.blobs.url }}
{{- else if .Values.federation.invitation -}}gateway://{{ (include "talkoo.invitation" . | fromJson).gateway }}
{{- else -}}s3://talkoo?endpoint=http://{{ .Release.Name }}-storage.{{ .Release.Namespace }}.svc:8333{{- end -}}
{{- end }}

{{/* What every service's settings begin with. */}}
{{- define "talkoo.commonSettings" -}}
federation = {{ .Values.federation.name | quote }}
organization = {{ .Values.organization | quote }}
trust_bundle = "/etc/talkoo/federation/trust.pem"
{{- end }}

{{- define "talkoo.serviceSettings" -}}
{{ include "talkoo.commonSettings" .root }}
name = "{{ .root.Values.organization }}-{{ .role }}"
listen = "0.0.0.0:7443"
state_dir = "/var/lib/talkoo"
certificate = "/etc/talkoo/tls/certificate.pem"
private_key = "/etc/talkoo/tls/private-key.pem"
{{- with include "talkoo.metricsSetting" .root }}
{{ . }}
{{- end }}
{{- end }}

{{- define "talkoo.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where every pod but an agent may run. */}}
{{- define "talkoo.scheduling" -}}
{{- with .Values.scheduling.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Replicas on different nodes, and in different zones where the cluster has them. */}}
{{- define "talkoo.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "talkoo.selector" $ | fromYaml | toJson }}}
  {{- end }}
{{- end }}

{{/* Volumes of a service: settings, federation, its certificate, the keys it needs. */}}
{{- define "talkoo.volumes" -}}
- name: settings
  configMap: {name: "{{ .root.Release.Name }}-{{ .role }}"}
- name: federation
  configMap: {name: "{{ .root.Release.Name }}-federation"}
{{ include "talkoo.tlsVolume" . }}
- name: tmp
  emptyDir: {}
{{- with .key }}
- name: key
  secret:
    secretName: {{ $.root.Release.Name }}-keys
    defaultMode: 0440
    items: [{key: {{ . }}.key, path: {{ . }}.key}]
{{- end }}
{{- end }}

{{/* A service's certificate and key under the names that our processes read, whoever issued them. */}}
{{- define "talkoo.tlsVolume" -}}
- name: tls
  secret:
    secretName: {{ .root.Release.Name }}-{{ .role }}-tls
    defaultMode: 0440
    {{- include "talkoo.tlsItems" .root | nindent 4 }}
{{- end }}

{{- define "talkoo.tlsItems" -}}
{{- if eq .Values.certificates.issuer "cert-manager" -}}
items: [{key: tls.crt, path: certificate.pem}, {key: tls.key, path: private-key.pem}]
{{- end }}
{{- end }}

{{- define "talkoo.mounts" -}}
- {name: settings, mountPath: /etc/talkoo/settings, readOnly: true}
- {name: federation, mountPath: /etc/talkoo/federation, readOnly: true}
- {name: tls, mountPath: /etc/talkoo/tls, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .key }}
- {name: key, mountPath: /etc/talkoo/keys, readOnly: true}
{{- end }}
{{- end }}

{{- define "talkoo.storageEnv" -}}
{{- range ternary (list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY") list (eq (include "talkoo.s3" .) "yes") }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: "{{ $.Values.blobs.secretName | default (printf "%s-storage" $.Release.Name) }}", key: {{ . }}}}
{{- end }}
{{- end }}

{{- define "talkoo.tcpProbes" -}}
startupProbe: {tcpSocket: {port: {{ . }}}, periodSeconds: 2, failureThreshold: 60}
readinessProbe: {tcpSocket: {port: {{ . }}}, periodSeconds: 5}
livenessProbe: {tcpSocket: {port: {{ . }}}, periodSeconds: 20, failureThreshold: 3}
{{- end }}

{{- define "talkoo.state" -}}
{{- if .persistence.enabled }}
volumeClaimTemplates:
  - metadata: {name: state}
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .persistence.storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources: {requests: {storage: {{ .persistence.size }}}}
{{- end }}
{{- end }}

{{/* Of one role's settings: its pods restart when those change, and no others. */}}
{{- define "talkoo.settingsSum" -}}
{{- $role := .role }}
{{- range splitList "\n---\n" (include (print .root.Template.BasePath "/settings.yaml") .root) }}
{{- $settings := fromYaml . }}
{{- if eq (dig "metadata" "labels" "app.kubernetes.io/component" "" $settings) $role }}{{ $settings.data | toJson | sha256sum }}{{ end }}
{{- end }}
{{- end }}

{{/* Names are cut at 52: a StatefulSet's revision label adds 11 to them. */}}
{{- define "evidenceos.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Immutable in a StatefulSet: no version, nothing that a value changes but the names. */}}
{{- define "evidenceos.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "evidenceos.daemonLabels" -}}
{{ include "evidenceos.selectorLabels" . }}
app.kubernetes.io/component: daemon
{{- end -}}

{{- define "evidenceos.labels" -}}
{{ include "evidenceos.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "evidenceos.serviceAccountName" -}}
{{- $made := ternary (include "evidenceos.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end -}}

{{/* Helm makes floats of whole numbers, and prints large ones as 6.7e+07. */}}
{{- define "evidenceos.text" -}}
{{- if kindIs "float64" . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- define "evidenceos.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ include "evidenceos.tag" . }}
{{- end -}}
{{- end -}}

{{- define "evidenceos.tag" -}}
{{- $tag := .Values.image.tag -}}
{{- $whole := and (kindIs "float64" $tag) (eq (float64 $tag) (floor $tag)) -}}
{{- if eq (toString $tag) "" -}}{{ .Chart.AppVersion }}
{{- else if $whole -}}{{ int64 $tag }}
{{- else -}}{{ $tag }}
{{- end -}}
{{- end -}}

{{/* What the Service is called inside the cluster; server.crt must be issued for it. */}}
{{- define "evidenceos.host" -}}
{{ include "evidenceos.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Everything that would only show in a pod that does not start, said at install time. */}}
{{- define "evidenceos.validate" -}}
{{- $v := .Values -}}
{{- $namespace := .Release.Namespace -}}
{{- if ne (int $v.replicaCount) 1 -}}
{{- fail (printf "replicaCount is %v, and must be 1: one writer, one log. A second pod would sign another log under the same name, and clients would see two histories. To survive a lost node, see \"A node is lost\" in the chart's README." $v.replicaCount) -}}
{{- end -}}
{{- if $v.mtls.enabled -}}
{{- if not $v.mtls.existingSecret -}}
{{- fail (printf "mtls.existingSecret is empty, and mtls.enabled is true. Make the Secret:\n  kubectl -n %s create secret generic evidenceos-mtls --from-file=%s --from-file=%s --from-file=%s\nand give --set mtls.existingSecret=evidenceos-mtls" $namespace $v.mtls.certFile $v.mtls.keyFile $v.mtls.caFile) -}}
{{- end -}}
{{- else -}}
{{- if not $v.daemon.insecureAllowPlaintext -}}
{{- fail "mtls.enabled is false: calls, labels and tokens would go over the network in the clear. If something else protects it (a service mesh), give --set daemon.insecureAllowPlaintext=true" -}}
{{- end -}}
{{- if not (or $v.auth.policy $v.auth.secretKeys) -}}
{{- fail "mtls.enabled is false, so no certificate authenticates callers: give auth.existingSecret with auth.secretKeys, or auth.policy. Beyond loopback the daemon serves no unauthenticated callers" -}}
{{- end -}}
{{- if $v.metrics.tls -}}
{{- fail "metrics.tls needs mtls.enabled: it uses the same certificate" -}}
{{- end -}}
{{- end -}}
{{- if and $v.auth.secretKeys (not $v.auth.existingSecret) -}}
{{- fail (printf "auth.secretKeys is given, but not auth.existingSecret. Make the Secret:\n  kubectl -n %s create secret generic evidenceos-auth --from-file=%s\nand give --set auth.existingSecret=evidenceos-auth" $namespace (join " --from-file=" $v.auth.secretKeys)) -}}
{{- end -}}
{{- if and $v.auth.existingSecret (not $v.auth.secretKeys) -}}
{{- fail "auth.existingSecret is given, but not auth.secretKeys: which settings it has, as --set 'auth.secretKeys={agent-tokens}'" -}}
{{- end -}}
{{- if eq $v.signingKeys.provider "file" -}}
{{- if not $v.signingKeys.existingSecret -}}
{{- fail (printf "signingKeys.existingSecret is empty, and signingKeys.provider is file. Make a key and the Secret:\n  evidenceos keys generate --key-dir keys\n  kubectl -n %s create secret generic evidenceos-signing-key --from-file=keys/KEY-ID.key\nand give --set signingKeys.existingSecret=evidenceos-signing-key. Keep a copy of the key: the log ends without it" $namespace) -}}
{{- end -}}
{{- if $v.signingKeys.kms.provider -}}
{{- fail "signingKeys.kms.provider is set, but signingKeys.provider is file: set it to kms" -}}
{{- end -}}
{{- else -}}
{{- if not $v.signingKeys.kms.provider -}}
{{- fail "signingKeys.provider is kms: signingKeys.kms.provider must be aws, gcp, azure or mock" -}}
{{- end -}}
{{- if not (or $v.signingKeys.kms.keyId (eq $v.signingKeys.kms.provider "mock")) -}}
{{- fail (printf "signingKeys.kms.keyId is required with %s: <kms-key-resource>|<base64-ciphertext>, as `evidenceos keys wrap --provider %s --resource …` prints it" $v.signingKeys.kms.provider $v.signingKeys.kms.provider) -}}
{{- end -}}
{{- if $v.signingKeys.activeKeyId -}}
{{- fail "signingKeys.activeKeyId chooses among files; with a KMS use signingKeys.kms.expectKeyId" -}}
{{- end -}}
{{- end -}}
{{- if and $v.ingress.enabled (not (or $v.ingress.host $v.ingress.preflightHost)) -}}
{{- fail "ingress.enabled needs ingress.host, or ingress.preflightHost" -}}
{{- end -}}
{{- if and $v.grpcRoute.enabled (not $v.grpcRoute.parentRefs) -}}
{{- fail "grpcRoute.enabled needs grpcRoute.parentRefs: the gateways that serve it" -}}
{{- end -}}
{{- if $v.checkSecrets -}}
{{- if $v.mtls.enabled -}}
{{- include "evidenceos.checkSecret" (dict "namespace" $namespace "name" $v.mtls.existingSecret "keys" (list $v.mtls.certFile $v.mtls.keyFile $v.mtls.caFile)) -}}
{{- end -}}
{{- if $v.signingKeys.existingSecret -}}
{{- include "evidenceos.checkSecret" (dict "namespace" $namespace "name" $v.signingKeys.existingSecret "suffix" ".key") -}}
{{- end -}}
{{- if $v.auth.existingSecret -}}
{{- include "evidenceos.checkSecret" (dict "namespace" $namespace "name" $v.auth.existingSecret "keys" $v.auth.secretKeys) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* namespace, name; keys: that it must have; suffix: that one of its keys must end in. */}}
{{- define "evidenceos.checkSecret" -}}
{{- $secret := lookup "v1" "Secret" .namespace .name -}}
{{- if not $secret -}}
{{- fail (printf "checkSecrets: there is no Secret %s in namespace %s, or it may not be read" .name .namespace) -}}
{{- end -}}
{{- $data := default dict $secret.data -}}
{{- $there := keys $data | sortAlpha | join ", " | default "nothing" -}}
{{- $secretName := .name -}}
{{- range .keys -}}
{{- if not (hasKey $data .) -}}
{{- fail (printf "checkSecrets: Secret %s has no %s; it has %s" $secretName . $there) -}}
{{- end -}}
{{- end -}}
{{- if .suffix -}}
{{- $suffix := .suffix -}}
{{- $found := false -}}
{{- range $key, $_ := $data -}}
{{- if hasSuffix $suffix $key -}}{{- $found = true -}}{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- fail (printf "checkSecrets: Secret %s has no key that ends in %s; it has %s" .name $suffix $there) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a probe asks: root, port (by TCP), path (by HTTP, always on preflight). */}}
{{- define "evidenceos.probe" -}}
{{- if eq .root.Values.probes.kind "http" -}}
httpGet:
  path: {{ .path }}
  port: preflight
  scheme: {{ ternary "HTTPS" "HTTP" .root.Values.mtls.enabled }}
{{- else -}}
tcpSocket:
  port: {{ .port }}
{{- end -}}
{{- end -}}

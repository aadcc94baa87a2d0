{{- define "glowplug.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "glowplug.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "glowplug.selector" -}}
app.kubernetes.io/name: glowplug
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "glowplug.labels" -}}
{{ include "glowplug.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "glowplug.tokenSecret" -}}
{{- default (printf "%s-token" (include "glowplug.name" .)) .Values.control.token.existingSecret -}}
{{- end -}}

{{- define "glowplug.joinSecret" -}}
{{- printf "%s-join" (include "glowplug.name" .) -}}
{{- end -}}

{{- define "glowplug.controlUrl" -}}
{{- printf "http://%s-control:%d" (include "glowplug.name" .) (int .Values.control.service.port) -}}
{{- end -}}

{{- define "glowplug.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "glowplug.nobody" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

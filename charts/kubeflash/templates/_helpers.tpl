{{- /* Names are fixed, whatever release and namespace are called: one installation a cluster, and Helm refuses a second by
       the ownership of the cluster's objects. Helm's own labels (managed-by) come from Helm itself. */ -}}

{{- define "kubeflash.selector" -}}
app.kubernetes.io/name: kubeflash
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "kubeflash.labels" -}}
app.kubernetes.io/name: kubeflash
app.kubernetes.io/part-of: kubeflash
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "kubeflash.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if or .tag (not .digest) }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{- /* Arguments that both processes have. */ -}}
{{- define "kubeflash.args" -}}
- --namespace=$(POD_NAMESPACE)
- --log-level={{ .Values.logLevel }}
{{- with .Values.clusterId }}
- --cluster-id={{ . }}
{{- end }}
{{- end }}

{{- define "kubeflash.env" -}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What Pod Security `restricted` asks of a container. */ -}}
{{- define "kubeflash.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "kubeflash.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* All of a server that the agent sees, each at the path that it has on the server. docs/security.md explains the same.
       /proc is the server's by hostPID, network and uevents by hostNetwork; TLS keys are in a keyring of the kernel that
       belongs to no container, and the seccomp profile that would hide it is none for a privileged one. */ -}}
{{- define "kubeflash.hostPaths" -}}
- name: dev  # SSDs and partitions, /dev/nvme-fabrics, /dev/kmsg; ones that come later, too, so not a copy
  path: /dev
  propagation: HostToContainer
- name: sys  # the PCIe tree, and nvmet's configfs below it, which may be mounted later
  path: /sys
  propagation: HostToContainer
- name: modules  # which of the running kernel's modules there are, and to load them
  path: /lib/modules
  readOnly: true
- name: boot  # the kernel's configuration: whether its target knows authentication and TLS, before it is loaded
  path: /boot
  readOnly: true
- name: machine-id  # the server's identity where its firmware has none
  path: /etc/machine-id
  type: File
  readOnly: true
- name: state  # the private key that volumes' keys are sealed to: a new one would lose them
  path: /var/lib/kubeflash
  type: DirectoryOrCreate
- name: run  # the lock that keeps a server to one agent, though two pods or a service run it
  path: /run/kubeflash
  type: DirectoryOrCreate
{{- end }}

{{- /* True where there is a cluster to ask: not in `helm template` nor with --dry-run=client. */ -}}
{{- define "kubeflash.connected" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" }}true{{ end }}
{{- end }}

{{- /* What `kubectl flash check` reads beside KubeFlash's own objects: an admin's rights, and the release's test's. */ -}}
{{- define "kubeflash.checkPolicies" -}}
- apiGroups: [admissionregistration.k8s.io]  # whether the policies are in force
  resources: [validatingadmissionpolicies, validatingadmissionpolicybindings]
  resourceNames: [kubeflash-agent, kubeflash-agent-lease, kubeflash-agent-event, kubeflash-controller]
  verbs: [get]
{{- end }}

{{- define "kubeflash.checkAgents" -}}
- apiGroups: [apps]  # whether all agents run
  resources: [daemonsets]
  resourceNames: [kubeflash-agent]
  verbs: [get]
{{- end }}

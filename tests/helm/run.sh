#!/usr/bin/env bash
# The Helm chart: lint, rendering against golden manifests, validation against the schemas of Kubernetes
# 1.25 to 1.37, what must hold of each pod, values that must be refused, and fields that an upgrade
# cannot change.
#
#   tests/helm/run.sh            run everything
#   tests/helm/run.sh --bless    write the golden manifests and the values table again
#
# HELM names a helm that is there already; without it, Helm 3 is built with Go into TOOLS. With CI_FULL=1
# Helm 4 renders everything too, and must render the same.
set -euo pipefail
cd "$(dirname "$0")/../.."

KUBE_VERSION=1.33.0 # what the golden manifests are rendered for
CHART=deploy/helm/evidenceos
HERE=tests/helm

bless=false
case "${1:-}" in
"") ;;
--bless) bless=true ;;
*)
  echo "usage: tests/helm/run.sh [--bless]" >&2
  exit 64
  ;;
esac

SCRATCH=$(mktemp -d)
api=
clean_up() {
  if [ -n "$api" ]; then kill "$api" 2>/dev/null || true; fi
  rm -rf "$SCRATCH"
}
trap clean_up EXIT

source "$HERE/helm.sh"
if [ ! -x "$TOOLS/python/bin/kubernetes-validate" ]; then
  python3 -m venv "$TOOLS/python"
  "$TOOLS/python/bin/pip" install --quiet kubernetes-validate==1.37.0
fi
PYTHON=$TOOLS/python/bin/python
HELM=${HELM:-$(helm_of 3 $HELM3)}

# Its own home: no plugins, no repositories, and no cluster but the one below.
export HELM_CACHE_HOME=$SCRATCH/helm HELM_CONFIG_HOME=$SCRATCH/helm HELM_DATA_HOME=$SCRATCH/helm
export KUBECONFIG=$SCRATCH/kubeconfig

failures=0
wrong() {
  printf 'FAILED: %s\n' "$*" >&2
  failures=$((failures + 1))
}

# Exactly the names of the deployment guide.
GUIDE=(
  --set image.repository=evidenceos
  --set image.tag=local
  --set mtls.enabled=true
  --set mtls.existingSecret=evidenceos-mtls
  --set signingKeys.provider=file
  --set signingKeys.existingSecret=evidenceos-signing-key
)

render() { # helm, chart, arguments
  local helm=$1 chart=$2
  shift 2
  "$helm" template evidenceos "$chart" --namespace lab --kube-version "$KUBE_VERSION" "$@"
}

cases=(guide)
for file in "$HERE"/cases/*.yaml; do
  cases+=("$(basename "$file" .yaml)")
done
arguments_of() { # case: sets the array `arguments`
  if [ "$1" = guide ]; then
    arguments=("${GUIDE[@]}")
  else
    arguments=(-f "$HERE/cases/$1.yaml")
  fi
}

# --- lint, and golden manifests
for case in "${cases[@]}"; do
  arguments_of "$case"
  "$HELM" lint --strict --quiet "$CHART" --kube-version "$KUBE_VERSION" "${arguments[@]}" || wrong "lint of $case"
  render "$HELM" "$CHART" "${arguments[@]}" >"$SCRATCH/$case.yaml" || wrong "rendering of $case"
  if $bless; then
    cp "$SCRATCH/$case.yaml" "$HERE/golden/$case.yaml"
  fi
  diff -u "$HERE/golden/$case.yaml" "$SCRATCH/$case.yaml" ||
    wrong "$case is rendered otherwise than $HERE/golden/$case.yaml; if that is meant: $HERE/run.sh --bless"
done
for golden in "$HERE"/golden/*.yaml; do
  [ -e "$SCRATCH/$(basename "$golden")" ] || wrong "$golden belongs to no case"
done

if [ -n "${CI_FULL:-}" ]; then
  helm4=$(helm_of 4 $HELM4)
  for case in "${cases[@]}"; do
    arguments_of "$case"
    "$helm4" lint --strict --quiet "$CHART" --kube-version "$KUBE_VERSION" "${arguments[@]}" || wrong "Helm 4, lint of $case"
    # It sets an empty line after each manifest.
    render "$helm4" "$CHART" "${arguments[@]}" | diff -uB "$HERE/golden/$case.yaml" - || wrong "Helm 4, $case"
  done
fi

# --- what must hold of each of them, and the schemas of Kubernetes
rendered=()
for case in "${cases[@]}"; do rendered+=("$SCRATCH/$case.yaml"); done
"$PYTHON" "$HERE/check.py" manifests "${rendered[@]}" || wrong "manifests"
"$PYTHON" "$HERE/check.py" settings || wrong "settings in the values' schema"
if $bless; then "$PYTHON" "$HERE/values_table.py"; fi
"$PYTHON" "$HERE/values_table.py" --check || wrong "values table"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
for field in version appVersion; do
  grep -Eq "^$field: \"?$version\"?\$" "$CHART/Chart.yaml" || wrong "$field in Chart.yaml is not $version, the workspace's"
done

# --- values that are refused, each with its sentence
refused() { # part of the sentence, arguments
  local sentence=$1
  shift
  if render "$HELM" "$CHART" "$@" >"$SCRATCH/out" 2>"$SCRATCH/err"; then
    wrong "not refused: $*"
  elif ! grep -qF -- "$sentence" "$SCRATCH/err"; then
    wrong "refused, but without \"$sentence\": $*"
    cat "$SCRATCH/err" >&2
  fi
}
SECRETS=(--set mtls.existingSecret=m --set signingKeys.existingSecret=s)
PLAIN=(--set mtls.enabled=false --set daemon.insecureAllowPlaintext=true --set signingKeys.existingSecret=s)
refused "mtls.existingSecret is empty"
refused "kubectl -n lab create secret generic evidenceos-mtls --from-file=server.crt --from-file=server.key --from-file=ca.crt"
refused "signingKeys.existingSecret is empty" --set mtls.existingSecret=m
refused "kubectl -n lab create secret generic evidenceos-signing-key --from-file=keys/KEY-ID.key" --set mtls.existingSecret=m
for replicas in 0 2 3; do
  refused "replicaCount is $replicas, and must be 1: one writer, one log" "${SECRETS[@]}" --set replicaCount=$replicas
done
refused "--set daemon.insecureAllowPlaintext=true" --set mtls.enabled=false --set signingKeys.existingSecret=s
refused "no certificate authenticates callers" "${PLAIN[@]}"
refused "metrics.tls needs mtls.enabled" "${PLAIN[@]}" --set auth.policy=x --set metrics.tls=true
refused "create secret generic evidenceos-auth --from-file=agent-tokens" "${SECRETS[@]}" --set 'auth.secretKeys={agent-tokens}'
refused "but not auth.secretKeys" "${SECRETS[@]}" --set auth.existingSecret=a
refused "set it to kms" "${SECRETS[@]}" --set signingKeys.kms.provider=aws
refused "must be aws, gcp, azure or mock" --set mtls.existingSecret=m --set signingKeys.provider=kms
refused "keys wrap --provider gcp" --set mtls.existingSecret=m --set signingKeys.provider=kms --set signingKeys.kms.provider=gcp
refused "use signingKeys.kms.expectKeyId" --set mtls.existingSecret=m --set signingKeys.provider=kms \
  --set signingKeys.kms.provider=mock --set "signingKeys.activeKeyId=$(printf '0%.0s' {1..64})"
refused "ingress.enabled needs ingress.host" "${SECRETS[@]}" --set ingress.enabled=true
refused "grpcRoute.enabled needs grpcRoute.parentRefs" "${SECRETS[@]}" --set grpcRoute.enabled=true
# By the schema:
refused "additional properties 'mtsl' not allowed" "${SECRETS[@]}" --set mtsl.enabled=true
refused "additional properties 'existingsecret' not allowed" "${SECRETS[@]}" --set mtls.existingsecret=m
refused "additional properties 'auth_token' not allowed" "${SECRETS[@]}" --set daemon.settings.auth_token=secret
refused "additional properties 'drain_dely' not allowed" "${SECRETS[@]}" --set daemon.settings.drain_dely=5s
refused "signingKeys/provider" "${SECRETS[@]}" --set signingKeys.provider=vault
refused "persistence/accessMode" "${SECRETS[@]}" --set persistence.accessMode=ReadWriteMany
refused "chart requires kubeVersion" "${SECRETS[@]}" --kube-version 1.24.0

# --- Secrets that are looked up: a server that knows two of them is all of a cluster that this needs
"$PYTHON" "$HERE/fake_api.py" >"$SCRATCH/port" &
api=$!
deadline=$((SECONDS + 20))
until [ -s "$SCRATCH/port" ]; do
  if [ $SECONDS -ge $deadline ] || ! kill -0 "$api"; then
    echo "the fake API server does not start" >&2
    exit 1
  fi
  sleep 0.1
done
cat >"$KUBECONFIG" <<EOF
apiVersion: v1
kind: Config
current-context: fake
clusters: [{name: fake, cluster: {server: "http://127.0.0.1:$(cat "$SCRATCH/port")"}}]
contexts: [{name: fake, context: {cluster: fake, user: fake}}]
users: [{name: fake, user: {}}]
EOF
LOOKED_UP=(--set checkSecrets=true --dry-run=server)
render "$HELM" "$CHART" "${GUIDE[@]}" "${LOOKED_UP[@]}" >"$SCRATCH/out" || wrong "checkSecrets refuses Secrets that are there"
diff -u "$HERE/golden/guide.yaml" "$SCRATCH/out" || wrong "checkSecrets changes what is rendered"
refused "there is no Secret absent in namespace lab" "${GUIDE[@]}" "${LOOKED_UP[@]}" --set mtls.existingSecret=absent
refused "Secret evidenceos-mtls has no tls.crt; it has ca.crt, server.crt, server.key" "${GUIDE[@]}" "${LOOKED_UP[@]}" --set mtls.certFile=tls.crt
refused "Secret evidenceos-empty has no key that ends in .key; it has nothing" "${GUIDE[@]}" "${LOOKED_UP[@]}" --set signingKeys.existingSecret=evidenceos-empty
refused "there is no Secret" "${GUIDE[@]}" --set checkSecrets=true
rm -f "$KUBECONFIG"

# --- NOTES: `helm template` does not show them, so a copy of the chart has them in a manifest
cp -r "$CHART" "$SCRATCH/noted"
{
  echo '{{ define "notes" -}}'
  cat "$CHART/templates/NOTES.txt"
  echo '{{ end }}'
} >"$SCRATCH/noted/templates/_notes.tpl"
printf 'kind: Notes\ntext: |\n  {{ include "notes" . | nindent 2 }}\n' >"$SCRATCH/noted/templates/notes.yaml"
notes() { render "$HELM" "$SCRATCH/noted" --show-only templates/notes.yaml "$@"; }
told() { # sentence, arguments
  local sentence=$1
  shift
  notes "$@" >"$SCRATCH/notes" || wrong "notes: $*"
  grep -qF -- "$sentence" "$SCRATCH/notes" || wrong "NOTES do not say \"$sentence\": $*"
}
untold() {
  local sentence=$1
  shift
  notes "$@" >"$SCRATCH/notes" || wrong "notes: $*"
  if grep -qF -- "$sentence" "$SCRATCH/notes"; then wrong "NOTES say \"$sentence\": $*"; fi
}
told "describe pod evidenceos-0" "${GUIDE[@]}"
told "evidenceos.lab.svc:50051" "${GUIDE[@]}"
told "no caller is an operator" "${GUIDE[@]}"
untold "WARNING" "${GUIDE[@]}"
untold "WARNING" -f "$HERE/cases/http-probes.yaml"
told "its node cannot be drained" -f "$HERE/cases/everything.yaml"
told "in the clear" -f "$HERE/cases/plaintext.yaml"
untold "no caller is an operator" -f "$HERE/cases/policy.yaml"

told "A volume that comes back, or moves" "${GUIDE[@]}"

# --- what the README has the pod run in place of the server
grep -o "extraArgs=\[[^']*" "$CHART/README.md" >"$SCRATCH/runs"
[ "$(wc -l <"$SCRATCH/runs")" = 3 ] || wrong "the README's commands: $(cat "$SCRATCH/runs")"
while read -r run; do
  render "$HELM" "$CHART" "${GUIDE[@]}" --set-json "$run" >"$SCRATCH/run.yaml" || wrong "$run"
  "$PYTHON" "$HERE/check.py" arguments "${run#extraArgs=}" "$SCRATCH/run.yaml" || wrong "the pod does not get $run"
done <"$SCRATCH/runs"

# --- upgrades: what users change must not touch what a StatefulSet cannot change
cp -r "$CHART" "$SCRATCH/next"
sed -i -E 's/^(version|appVersion): .*/\1: 99.0.0/' "$SCRATCH/next/Chart.yaml"
upgraded() { # what changes, arguments
  local what=$1 chart=$CHART
  shift
  if [ "$what" = "next version" ]; then chart=$SCRATCH/next; fi
  render "$HELM" "$chart" "${GUIDE[@]}" "$@" >"$SCRATCH/upgraded.yaml" || wrong "upgrade: $what"
  "$PYTHON" "$HERE/check.py" upgrade "$HERE/immutable.json" "$SCRATCH/upgraded.yaml" || wrong "an upgrade with another $what fails in the cluster"
}
upgraded nothing
upgraded "next version"
upgraded image --set image.tag=v2 --set image.repository=other
upgraded policy --set auth.policy=x
upgraded labels --set podLabels.a=b --set podAnnotations.a=b
upgraded KMS --set signingKeys.provider=kms --set signingKeys.kms.provider=aws --set signingKeys.kms.keyId=x
upgraded keys --set signingKeys.persist=true
upgraded TLS --set mtls.enabled=false --set daemon.insecureAllowPlaintext=true --set auth.policy=x
upgraded service --set service.grpcPort=443 --set service.type=NodePort --set serviceAccount.create=false
upgraded resources --set resources.limits.memory=4Gi --set probes.kind=http --set terminationGracePeriodSeconds=90
upgraded switches --set podDisruptionBudget.enabled=true --set serviceMonitor.enabled=true --set networkPolicy.enabled=false

# --- old and new policy, and nothing else, roll the pod
checksum() { render "$HELM" "$1" "${GUIDE[@]}" "${@:2}" | sed -n 's/.*checksum\/config: //p'; }
one=$(checksum "$CHART" --set auth.policy=one)
[ -n "$one" ] || wrong "a policy without a checksum"
[ "$one" != "$(checksum "$CHART" --set auth.policy=two)" ] || wrong "another policy does not roll the pod"
[ "$one" = "$(checksum "$SCRATCH/next" --set auth.policy=one)" ] || wrong "a new chart version changes the checksum of the policy"

if [ "$failures" -gt 0 ]; then
  echo "$failures failed" >&2
  exit 1
fi
echo "chart: ${#cases[@]} cases, all fine ($("$HELM" version --short)${CI_FULL:+, $("$helm4" version --short)})"

#!/usr/bin/env bash
# The Helm chart in a Kubernetes cluster of one node: every `kubectl` and `helm` command of the deployment guide and of
# the chart's README, as these documents have them, and what they say will follow.
#
#   tests/cluster/run.sh PROGRAM [IMAGE]
#
# PROGRAM is `evidenceos`. IMAGE is an archive of the image, as `docker save evidenceos:local` writes it; without it,
# the pods run PROGRAM in an image of it and its libraries. The cluster is real: etcd, the API server, controllers,
# scheduler, kubelet and kube-proxy, built from the upstream modules, and containerd with runc. It runs in namespaces
# of its own (network, mounts, processes) and leaves nothing but its tools behind. Needs root, Go, and what `tools` installs.
# KEEP=1 keeps the scratch directory, with the logs.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
here=$root/tests/cluster
source tests/helm/helm.sh

usage() {
  echo 'usage: tests/cluster/run.sh PROGRAM [IMAGE]' >&2
  exit 64
}
is_inside=false
if [ "${1:-}" = --inside ]; then
  is_inside=true
  shift
fi
[ $# -ge 1 ] && [ $# -le 2 ] && [ -x "$1" ] || usage
program=$(realpath "$1")
image=${2:+$(realpath "$2")}

# --- outside: build, then enter the namespaces ------------------------------------------------------

tools() {
  local missing=()
  command -v containerd >/dev/null || missing+=(containerd)
  command -v runc >/dev/null || missing+=(runc)
  command -v nft >/dev/null || missing+=(nftables)
  command -v ip >/dev/null || missing+=(iproute2)
  command -v jq >/dev/null || missing+=(jq)
  [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
  if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    # Its package starts no service of its own here: containerd is started below.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
}

cgroups_of_kubelets() { find /sys/fs/cgroup -maxdepth 2 -type d -name kubepods 2>/dev/null; }

if ! $is_inside; then
  [ "$(id -u)" = 0 ] || { echo 'needs root' >&2; exit 77; }
  [ -z "$(cgroups_of_kubelets)" ] || { echo 'another kubelet runs on this machine' >&2; exit 77; }
  tools
  version=$(sed -n 's/^require k8s.io\/kubernetes //p; s/^\tk8s.io\/kubernetes //p' "$here/go.mod")
  built=$TOOLS/kubernetes-$version-$(cat "$here"/*.go "$here"/pause/*.go | sha256sum | cut -c1-12)
  if [ ! -x "$built/cluster" ]; then
    echo "building Kubernetes $version, which takes minutes" >&2
    export CGO_ENABLED=0
    # What Helm and kubectl are told is the version.
    minor=${version#v1.}
    said=k8s.io/component-base/version
    (cd "$here" && nice -n 15 go build -o "$built.new/" \
      -ldflags="-s -w -X $said.gitVersion=$version -X $said.gitMajor=1 -X $said.gitMinor=${minor%%.*}" . ./pause) >&2
    mv "$built.new" "$built"
  fi
  HELM=${HELM:-$(helm_of 3 $HELM3)}
  scratch=$(mktemp -d)
  chmod 755 "$scratch"
  status=0
  env BUILT="$built" HELM="$HELM" SCRATCH="$scratch" unshare --net --mount --pid --fork --kill-child --mount-proc \
    bash "$here/run.sh" --inside "$program" ${image:+"$image"} || status=$?
  # A cgroup goes only when its processes are gone, and the kernel ended these with the namespace.
  for group in $(cgroups_of_kubelets); do find "$group" -depth -type d -exec rmdir {} + || true; done
  if [ -n "${KEEP:-}" ]; then
    echo "kept: $scratch" >&2
  else
    rm -rf "$scratch"
  fi
  exit $status
fi

# --- inside: the cluster ----------------------------------------------------------------------------

dir=$SCRATCH/cluster
mkdir -p "$dir" "$SCRATCH/bin" "$SCRATCH/lab"
for name in kubectl cluster; do ln -s "$BUILT/cluster" "$SCRATCH/bin/$name"; done
ln -s "$HELM" "$SCRATCH/bin/helm"
ln -s "$program" "$SCRATCH/bin/evidenceos"
export PATH=$SCRATCH/bin:$PATH KUBECONFIG=$dir/kubeconfig
export HELM_CACHE_HOME=$SCRATCH/helm HELM_CONFIG_HOME=$SCRATCH/helm HELM_DATA_HOME=$SCRATCH/helm

began=$SECONDS
fail() {
  printf 'FAILED: %s\n' "$*" >&2
  {
    kubectl get pods,pvc,pv -o wide
    kubectl describe pod evidenceos-0 | tail -n 25
    kubectl logs evidenceos-0 --all-containers --tail 15
    kubectl logs --previous evidenceos-0 --tail 15
    tail -n 5 "$dir"/*.log
  } >&2 2>/dev/null || true
  exit 1
}
passed() { printf 'ok (%d s): %s\n' $((SECONDS - began)) "$*"; }
until_true() { # seconds, what, command…
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "not within time: $what"
    sleep 0.2
  done
}

# The kubelet of a node would set these for the whole machine; it leaves them if they are as it wants them.
sysctl_as_wanted() { # name, value
  echo "$2" >"$dir/sysctl-${1//\//-}"
  mount --bind "$dir/sysctl-${1//\//-}" "/proc/sys/$1"
}
sysctl_as_wanted vm/overcommit_memory 1
sysctl_as_wanted vm/panic_on_oom 0
sysctl_as_wanted kernel/panic 10
sysctl_as_wanted kernel/panic_on_oops 1
sysctl_as_wanted kernel/keys/root_maxkeys 1000000
sysctl_as_wanted kernel/keys/root_maxbytes 25000000
mount --make-rshared /
ip link set lo up
ip link add pods0 type bridge
ip address add 10.90.0.1/24 dev pods0
ip link set pods0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
# kube-proxy rewrites the address of a Service, but only of a packet that has a way to go.
ip route add 10.96.0.0/24 dev pods0
# What network plugins write, and no option moves.
for place in /run/netns /var/lib/cni; do
  mkdir -p "$place"
  mount -t tmpfs tmpfs "$place"
done
# Names in /etc/hosts are this test's alone.
cp /etc/hosts "$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts

cluster "$dir" >"$dir/cluster.log" 2>&1 &
python3 "$here/image.py" docker.io/library/pause:local "$dir/pause.tar" "$BUILT/pause" /pause
if [ -z "$image" ]; then
  image=$dir/evidenceos.tar
  python3 "$here/image.py" docker.io/library/evidenceos:local "$image" "$program" /usr/local/bin/evidenceos \
    '{"Entrypoint": ["/usr/local/bin/evidenceos-daemon"], "Env": ["EVIDENCEOS_DATA_DIR=/data"], "User": "65532:65532"}'
fi
import() { ctr --address "$dir/containerd.sock" --namespace k8s.io images import "$1"; }
until_true 60 'containerd answers' ctr --address "$dir/containerd.sock" version
import "$dir/pause.tar" >"$dir/import.log" 2>&1 || fail "$(cat "$dir/import.log")"
import "$image" >"$dir/import.log" 2>&1 || fail "$(cat "$dir/import.log")"
until_true 120 'the API answers' kubectl get --raw /readyz
until_true 120 'the node is ready' kubectl wait --for=condition=Ready node/node --timeout=5s
until_true 60 'there are ServiceAccounts' kubectl -n default get serviceaccount default
passed "a cluster: $(kubectl version -o json | jq -r .serverVersion.gitVersion), $(containerd --version | awk '{print $3}')"

# A class of volumes that can grow, and two volumes of it, which keep what is in them.
volumes() { # a name for them
  local name
  for name in data anchor; do
    mkdir -p "$SCRATCH/volumes/$1-$name"
    kubectl apply -f - <<EOF >/dev/null
apiVersion: v1
kind: PersistentVolume
metadata: {name: $1-$name}
spec:
  capacity: {storage: $([ $name = data ] && echo 60Gi || echo 1Gi)}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {path: $SCRATCH/volumes/$1-$name}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
EOF
  done
}
kubectl apply -f - <<'EOF' >/dev/null
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
EOF
# The strictest of the Pod Security Standards: a pod that breaks it is refused.
fresh() { # a name for the volumes
  kubectl delete namespace lab --ignore-not-found >/dev/null
  volumes "$1"
  kubectl create namespace lab >/dev/null
  kubectl label namespace lab pod-security.kubernetes.io/enforce=restricted >/dev/null
  until_true 60 'a ServiceAccount' kubectl get serviceaccount default
}

# --- what the documents have ------------------------------------------------------------------------

GUIDE=docs/deployment-guide.md
README=deploy/helm/evidenceos/README.md
# Executes a command of a document; what it printed is in $dir/out.
play() { # document, words, replacements…
  local command
  command=$(python3 "$here/command.py" "$@") || fail "$*"
  printf '$ %s\n' "$command"
  eval "$command" >"$dir/out" 2>&1 || fail "$command: $(cat "$dir/out")"
}
play_upgrade() { # words after "helm upgrade …", replacements…
  play $README "helm upgrade … $1" 'helm upgrade …=helm upgrade evidenceos deploy/helm/evidenceos --reuse-values' "${@:2}"
}
shown() { grep -qF -- "$1" "$dir/out" || fail "not printed: $1; but: $(cat "$dir/out")"; }

pod() { kubectl get pod evidenceos-0 -o json | jq -r "$1"; }
# The notes of the chart have this one.
ready() { kubectl rollout status statefulset/evidenceos --timeout=120s >"$dir/rollout" 2>&1 || fail "$(cat "$dir/rollout")"; }
is_another_pod() { [ "$(pod .metadata.uid)" != "$uid" ] && kubectl wait --for=condition=Ready pod/evidenceos-0 --timeout=1s; }
replaced() { # the pod that $uid was: by one that is ready
  until_true 180 'another pod is ready' is_another_pod
  ready
}
log_of() { [[ $(kubectl logs evidenceos-0 "${@:2}" 2>&1) == *"$1"* ]]; }
in_pod() { kubectl exec evidenceos-0 -c evidenceos -- "$@"; }
is_gone() { ! kubectl get "$1" >/dev/null 2>&1; }
operator() {
  evidenceos --endpoint https://evidenceos.lab.svc:50051 --tls-ca ca.crt --tls-cert "$client/client.crt" --tls-key "$client/client.key" "$@"
}
reachable() { # under the name that clients use, through the Service
  printf '127.0.0.1 localhost\n%s evidenceos.lab.svc\n' "$(kubectl get service evidenceos -o jsonpath='{.spec.clusterIP}')" >"$dir/hosts"
}

cd "$SCRATCH/lab"
ln -s "$root/deploy" deploy

# --- the deployment guide ---------------------------------------------------------------------------

fresh guide
evidenceos lab init ops --san evidenceos.lab.svc >/dev/null
play $GUIDE 'kubectl create secret generic evidenceos-mtls'
play $GUIDE 'kubectl create secret generic evidenceos-signing-key'
play $GUIDE 'helm upgrade --install'
shown 'kubectl -n lab rollout status statefulset/evidenceos'
ready
play $README 'helm test evidenceos --logs'
shown 'Phase:          Succeeded'
passed "the guide's installation serves"

# What the chart's README says of an uninstall: the claims stay, and the next install takes them again.
claims() { kubectl get pvc -o json | jq -r '.items[] | .metadata.name + " " + .spec.volumeName'; }
before=$(claims)
helm uninstall evidenceos >/dev/null
until_true 90 'the pod is gone' is_gone pod/evidenceos-0
[ "$(claims)" = "$before" ] || fail "claims after an uninstall: $(claims)"
play $GUIDE 'helm upgrade --install'
ready
in_pod evidenceos-daemon healthcheck >/dev/null || fail 'the second install is not healthy'
passed 'an uninstall leaves the claims, and an install takes them again'
helm uninstall evidenceos >/dev/null
cd "$SCRATCH"

# --- the chart's README -----------------------------------------------------------------------------

mkdir chart
cd chart
ln -s "$root/deploy" deploy
fresh chart
evidenceos lab init pki --san evidenceos.lab.svc >/dev/null
cp pki/certs/{server.crt,server.key,ca.crt,policy.toml} .
client=$PWD/pki/clients/operator
play $README 'kubectl create secret generic evidenceos-mtls'
play $README 'evidenceos keys generate'
key=$(basename keys/*.key .key)
play $README 'kubectl create secret generic evidenceos-signing-key --from-file=keys/KEY-ID.key' "KEY-ID=$key"
play $README 'helm upgrade --install'
ready
reachable
play $README 'helm test evidenceos --logs'
shown 'Phase:          Succeeded'
operator server info >/dev/null || fail 'no operator'
items() { # first, last, a number that their labels depend on
  seq "$1" "$2" | awk -v every="$3" 'BEGIN { print "id,label" } { print $1 "," ($1 % every < 2) }'
}
items 1 400 3 >first.csv
items 401 800 5 >second.csv
operator holdout add first.csv --ref first --p0 0.7 >/dev/null 2>&1 || fail 'no holdout'
operator log key >first.vkey
passed 'the chart serves an operator through the Service'

# Commands that the README names in its sentences.
kubectl describe pod evidenceos-0 >/dev/null
log_of 'imported' -c keys || fail "the init container says: $(kubectl logs evidenceos-0 -c keys)"
in_pod evidenceos-daemon backup /tmp/backup >/dev/null 2>&1 || fail 'no backup'

# Tokens.
head -c 24 /dev/urandom | base64 >agent-tokens
head -c 24 /dev/urandom | base64 >auditor-tokens
uid=$(pod .metadata.uid)
play $README 'kubectl create secret generic evidenceos-auth'
play_upgrade '--set auth.existingSecret'
replaced
operator --token-file agent-tokens claim list >/dev/null || fail 'the token is not taken'
passed 'tokens from a Secret'

# Revoked client certificates: the list is in the Secret that the pod mounts.
echo 01 >pki/number
cat >pki/list.conf <<'EOF'
[ca]
default_ca = lists
[lists]
database = /dev/null
crlnumber = pki/number
default_md = sha256
crl_extensions = extensions
[extensions]
authorityKeyIdentifier = keyid
EOF
openssl ca -config pki/list.conf -gencrl -keyfile pki/ca/ca.key -cert ca.crt -crldays 30 -out clients.crl 2>/dev/null
kubectl create secret generic evidenceos-mtls --from-file=server.crt --from-file=server.key --from-file=ca.crt --from-file=clients.crl \
  --dry-run=client -o yaml | kubectl apply -f - >/dev/null 2>&1
uid=$(pod .metadata.uid)
play_upgrade '--set daemon.settings.mtls_client_crl'
replaced
operator server info >/dev/null || fail 'a list that revokes nobody refuses the operator'
passed 'a list of revoked certificates'

# Another key.
play $README 'evidenceos keys generate'
next=$(basename -a keys/*.key | grep -v "$key")
next=${next%.key}
play $README 'kubectl create secret generic evidenceos-signing-key --from-file=keys '
uid=$(pod .metadata.uid)
play_upgrade '--set signingKeys.activeKeyId' "NEW-KEY-ID=$next"
replaced
[ "$(operator log key)" != "$(cat first.vkey)" ] || fail 'the old key signs'
[ "$(operator log key --all | wc -l)" -ge 2 ] || fail "keys of the log: $(operator log key --all)"
uid=$(pod .metadata.uid)
play $README 'kubectl rollout restart'
replaced
passed 'another key signs, and the log knows both'

# A second pod meets the first one's anchor.
volumes second
kubectl scale statefulset evidenceos --replicas=2 >/dev/null
until_true 120 'the second pod refuses' eval '[[ $(kubectl logs evidenceos-1 -c evidenceos) == *anchor* ]]'
kubectl scale statefulset evidenceos --replicas=1 >/dev/null
until_true 90 'the second pod is gone' is_gone pod/evidenceos-1
operator server info >/dev/null || fail 'the first pod does not serve'
passed 'a second pod refuses to start'

# Keys that are made in the pod.
uid=$(pod .metadata.uid)
helm upgrade evidenceos deploy/helm/evidenceos --reuse-values --set signingKeys.persist=true --set signingKeys.activeKeyId= >/dev/null
replaced
before=$(operator log key)
uid=$(pod .metadata.uid)
play $README 'kubectl exec evidenceos-0 -- evidenceos-daemon keys generate'
play $README 'kubectl rollout restart'
replaced
[ "$(operator log key)" != "$before" ] || fail 'the key that was made in the pod does not sign'
operator holdout show first >/dev/null || fail 'the holdout is lost'
passed 'a key that was made in the pod signs'

# A key that no KMS wrapped: the pod does not become ready, and a rollback mends it.
play_upgrade '--set signingKeys.provider=kms'
until_true 120 'the pod ends again and again' eval '[ "$(pod ".status.containerStatuses[0].restartCount")" -ge 1 ]'
until_true 60 'the pod says why' log_of KMS
kubectl logs evidenceos-0 -c evidenceos >"$dir/out" 2>&1
helm rollback evidenceos >/dev/null
until_true 120 'the pod before serves' operator server info
ready
passed "not the key of a KMS: $(head -c 160 "$dir/out" | head -n 1); the rollback serves"

# The data's claim grows; the pod goes on meanwhile.
uid=$(pod .metadata.uid)
play $README 'kubectl patch pvc'
play $README 'kubectl delete statefulset'
play_upgrade '--set persistence.size'
[ "$(pod .metadata.uid)" = "$uid" ] || fail 'the pod did not go on'
[ "$(kubectl get statefulset evidenceos -o jsonpath='{.spec.volumeClaimTemplates[0].spec.resources.requests.storage}')" = 50Gi ] || fail 'no size'
[ "$(kubectl get pvc data-evidenceos-0 -o jsonpath='{.spec.resources.requests.storage}')" = 50Gi ] || fail 'no size of the claim'
passed 'the claim grows, and the pod goes on'

# The anchor's volume is lost.
kubectl scale statefulset evidenceos --replicas=0 >/dev/null
until_true 90 'the pod is gone' is_gone pod/evidenceos-0
kubectl delete pvc evidenceos-anchor >/dev/null
volumes third
helm upgrade evidenceos deploy/helm/evidenceos --reuse-values >/dev/null
ready
until_true 60 'the pod says that it only reads' log_of 'reads only'
! operator holdout add second.csv --ref second --p0 0.7 >"$dir/out" 2>&1 || fail 'a held daemon signs'
shown "read-only: nothing confirms"
uid=$(pod .metadata.uid)
play $README "helm upgrade evidenceos deploy/helm/evidenceos --reuse-values --set-json 'extraArgs=[\"log\",\"continue\""
has_ended() { kubectl logs --previous evidenceos-0 -c evidenceos >"$dir/continue" 2>/dev/null && [ -s "$dir/continue" ] && ! grep -q '^unable to retrieve' "$dir/continue"; }
until_true 120 'the command ended' has_ended
play $README "helm upgrade evidenceos deploy/helm/evidenceos --reuse-values --set-json 'extraArgs=[]'"
until_true 120 'the pod serves again' operator server info
ready
operator holdout add second.csv --ref second --p0 0.7 >"$dir/out" 2>&1 || fail "after the statement: $(cat "$dir/out")"
operator log entries --json | grep -qF 'the anchor volume was lost and the pod had stopped before' || fail 'the statement is no entry of the log'
passed "the anchor's volume is lost: $(head -n 1 "$dir/continue")"

# The node is lost.
uid=$(pod .metadata.uid)
play $README 'kubectl taint' NODE=node
until_true 120 'the pod leaves the node' eval '[ "$(pod .status.phase)" = Pending ] && [ "$(pod .metadata.uid)" != "$uid" ]'
kubectl taint node node node.kubernetes.io/out-of-service- >/dev/null
replaced
operator holdout show second >/dev/null || fail 'the holdout is lost'
passed 'the pod leaves a node that is out of service'

helm uninstall evidenceos >/dev/null
until_true 90 'the pod is gone' is_gone pod/evidenceos-0
echo "every command of the documents, in $((SECONDS - began)) s"

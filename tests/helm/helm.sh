# Sourced: Helm for the tests. Built once, which takes minutes, and kept in TOOLS.
HELM3=v3.22.0
HELM4=v4.3.1
TOOLS=${TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/evidenceos-tests}
mkdir -p "$TOOLS"

# Prints the path of a helm.
helm_of() { # major version, module version
  local bin=$TOOLS/helm-$2 built
  if [ ! -x "$bin" ]; then
    echo "building helm $2" >&2
    built=$(mktemp -d)
    GOBIN=$built CGO_ENABLED=0 nice -n 15 go install "helm.sh/helm/v$1/cmd/helm@$2" >&2
    mv "$built/helm" "$bin"
    rmdir "$built"
  fi
  echo "$bin"
}

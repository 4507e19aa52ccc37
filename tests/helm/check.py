"""What must hold of the chart's manifests.

    check.py manifests FILE…          rendered manifests: schemas of Kubernetes, security, consistency
    check.py upgrade IMMUTABLE FILE   the fields of the StatefulSet that no upgrade can change
    check.py arguments LIST FILE      the daemon's arguments, as JSON
    check.py settings                 the settings in values.schema.json are the daemon's

Prints what is wrong, a line each, and exits with 1 if anything is. Needs kubernetes-validate.
"""

import json
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/evidenceos"
SETTINGS = ROOT / "crates/daemon/src/config/settings.rs"
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]

# Kinds of others, whose schemas do not come with Kubernetes.
FOREIGN = {"ServiceMonitor", "GRPCRoute"}
# What the API server of a StatefulSet takes in an update; everything else in its spec is fixed.
MUTABLE = {
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
}
# The settings that the chart decides itself, from other values.
DECIDED = {
    "listen", "preflight_listen", "metrics_listen", "data_dir", "key_dir", "config",
    "tls_cert", "tls_key", "mtls_client_ca", "require_client_cert", "preflight_tls", "metrics_tls",
    "insecure_allow_plaintext", "preflight_allow_plaintext", "auth_policy",
    "key_provider", "active_key_id", "kms_provider", "kms_key_id", "kms_previous_key_id",
    "kms_expect_key_id", "kms_holdout_key", "kms_context", "kms_endpoint",
}  # fmt: skip


def daemon_settings():
    """Names of the daemon's settings, as in its file."""
    names = re.findall(r'env = "EVIDENCEOS_([A-Z0-9_]+)"', SETTINGS.read_text())
    assert len(names) > 50, f"{SETTINGS} is written otherwise than this expects"
    return {name.lower() for name in names}


def secret_settings():
    text = SETTINGS.read_text()
    listed = re.search(r"SECRETS: \[&str; \d+\] = \[(.*?)\]", text, re.S)
    assert listed, f"{SETTINGS} has no list of secrets"
    return set(re.findall(r'"(\w+)"', listed[1]))


def settings():
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    allowed = set(schema["daemon"]["properties"]["settings"]["properties"])
    files = set(schema["auth"]["properties"]["secretKeys"]["items"]["enum"])
    every, secrets = daemon_settings(), secret_settings()
    in_files = {name.removesuffix("_file") for name in every if name.endswith("_file")} & secrets
    for name in sorted(files ^ {name.replace("_", "-") for name in in_files}):
        yield f"auth.secretKeys: {name} is in the schema or among the daemon's secret files, not in both"
    expected = every - DECIDED - secrets - {f"{name}_file" for name in in_files}
    for name in sorted(allowed - expected):
        yield f"daemon.settings: {name} is in the schema, but is no setting that users may give there"
    for name in sorted(expected - allowed):
        yield f"daemon.settings: {name} is a setting of the daemon, but is not in the schema"
    for name in sorted(DECIDED - every):
        yield f"{name}: the chart decides it, but the daemon has no such setting"


def manifests(paths):
    known = {f"EVIDENCEOS_{name.upper()}" for name in daemon_settings()}
    seen = []  # The cases have many documents in common, and a validation takes its time.
    for path in paths:
        documents = [document for document in yaml.safe_load_all(Path(path).read_text()) if document]
        for problem in [*valid(documents, seen), *consistent(documents, known)]:
            yield f"{Path(path).name}: {problem}"


def valid(documents, seen):
    for document in documents:
        if document["kind"] in FOREIGN or document in seen:
            continue
        seen.append(document)
        name = f"{document['kind']} {document['metadata']['name']}"
        for version in VERSIONS:
            # The field is younger than this, and README says to leave it out there.
            policy = "unhealthyPodEvictionPolicy" in document.get("spec", {})
            if version == "1.25" and policy:
                continue
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{name}, Kubernetes {version}: {error.message}"


def consistent(documents, known):
    by_kind = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    if "Secret" in by_kind:
        yield "the chart makes a Secret"
    (stateful_set,) = by_kind["StatefulSet"]
    (test,) = by_kind["Pod"]
    spec = stateful_set["spec"]
    template = spec["template"]
    pod = template["spec"]
    (daemon,) = pod["containers"]

    if spec["replicas"] != 1:
        yield "not one replica"
    if spec["podManagementPolicy"] != "Parallel":
        yield "a pod that is never ready would block its rollback"
    if set(spec["persistentVolumeClaimRetentionPolicy"].values()) != {"Retain"}:
        yield "the claim goes with the StatefulSet"
    claims = spec.get("volumeClaimTemplates", [])
    for claim in claims:
        if set(claim) != {"metadata", "spec"} or set(claim["metadata"]) != {"name"}:
            yield "the claim template has more than name and spec"

    for name, of in [("daemon", pod), ("test", test["spec"])]:
        for problem in restricted(of):
            yield f"{name}: {problem}"
        for problem in mounts(of, [claim["metadata"]["name"] for claim in claims] if of is pod else []):
            yield f"{name}: {problem}"
    if len({container["image"] for container in [*pod.get("initContainers", []), daemon, *test["spec"]["containers"]]}) != 1:
        yield "init, daemon and test run different images"

    # Settings
    names = [variable["name"] for variable in daemon["env"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} is set twice"
    environment = {variable["name"]: variable.get("value") for variable in daemon["env"]}
    for name, value in environment.items():
        if name.startswith("EVIDENCEOS_"):
            if name not in known:
                yield f"{name} is no setting of the daemon"
            if value == "":
                yield f"{name} is empty"
            # Only what others cannot read in the pod's specification.
            if name.removeprefix("EVIDENCEOS_").lower() in secret_settings():
                yield f"{name} is a secret"
    for name, value in environment.items():
        if value and value.startswith("/etc/evidenceos/"):
            if not any(value.startswith(mount["mountPath"] + "/") for mount in daemon["volumeMounts"]):
                yield f"{name}: nothing is mounted at {value}"
    for name, port in [("LISTEN", 50051), ("PREFLIGHT_LISTEN", 8081), ("METRICS_LISTEN", 9464)]:
        if environment.get(f"EVIDENCEOS_{name}") != f"0.0.0.0:{port}":
            yield f"EVIDENCEOS_{name} is not 0.0.0.0:{port}"
    tls = "EVIDENCEOS_TLS_CERT" in environment
    if tls == ("EVIDENCEOS_INSECURE_ALLOW_PLAINTEXT" in environment):
        yield "TLS and plaintext, or neither"

    # Keys reach the daemon through memory, or the claim if that was asked for.
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: mount for mount in daemon["volumeMounts"]}
    if "key-secret" in {mount["name"] for mount in daemon["volumeMounts"]}:
        yield "the daemon sees the Secret of the keys itself"
    if "keys" in volumes:
        if volumes["keys"]["emptyDir"].get("medium") != "Memory":
            yield "keys reach the disk"
        if (mounted["/data/keys"].get("subPath"), mounted["/data/keys"].get("readOnly")) != ("keys", True):
            yield "the keys' mount is not as it must be"
    for volume in volumes.values():
        if "secret" in volume and volume["secret"].get("defaultMode") != 0o440:
            yield f"volume {volume['name']}: the Secret is open to everybody"
    for mount in daemon["volumeMounts"]:
        if "secret" in volumes.get(mount["name"], {}) and "subPath" in mount:
            yield f"{mount['mountPath']} is never updated"

    # Probes and Services lead somewhere.
    ports = {port["name"]: port["containerPort"] for port in daemon["ports"]}
    probes = {name: probe_port(daemon[f"{name}Probe"]) for name in ["startup", "liveness", "readiness"]}
    is_http = "httpGet" in daemon["readinessProbe"]
    wanted = {"startup": "preflight", "liveness": "preflight", "readiness": "preflight" if is_http else "grpc"}
    if probes != wanted:
        yield f"probes ask {probes}"
    if is_http and daemon["livenessProbe"]["httpGet"]["scheme"] != ("HTTPS" if tls else "HTTP"):
        yield "HTTP probes ask in the wrong scheme"
    labels = template["metadata"]["labels"]
    selectors = [("StatefulSet", spec["selector"]["matchLabels"])]
    for service in by_kind["Service"]:
        selectors.append((f"Service {service['metadata']['name']}", service["spec"]["selector"]))
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"Service {service['metadata']['name']}: no port {port['targetPort']}"
    for kind in ["NetworkPolicy", "PodDisruptionBudget"]:
        for document in by_kind.get(kind, []):
            key = "podSelector" if kind == "NetworkPolicy" else "selector"
            selector = document["spec"][key]["matchLabels"]
            if document["metadata"]["name"] != test["metadata"]["name"]:
                selectors.append((kind, selector))
            elif not selector.items() <= test["metadata"]["labels"].items() or selector.items() <= labels.items():
                yield f"{kind} of the test does not select the test's pod alone"
    for name, selector in selectors:
        if not selector.items() <= labels.items():
            yield f"{name} does not select the pod"
        if selector.items() <= test["metadata"]["labels"].items():
            yield f"{name} selects the test's pod"
    services = {service["metadata"]["name"]: service for service in by_kind["Service"]}
    if services.get(spec["serviceName"], {}).get("spec", {}).get("clusterIP") != "None":
        yield "no headless Service of that name"
    for monitor in by_kind.get("ServiceMonitor", []):
        selector = monitor["spec"]["selector"]["matchLabels"]
        found = [s for s in by_kind["Service"] if selector.items() <= s["metadata"]["labels"].items()]
        if [service["metadata"]["name"] for service in found] != [stateful_set["metadata"]["name"]]:
            yield "the ServiceMonitor does not select the one Service"
    for route in by_kind.get("GRPCRoute", []):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                offered = {port["name"]: port["port"] for port in services[backend["name"]]["spec"]["ports"]}
                if backend["port"] != offered["grpc"]:
                    yield "the GRPCRoute leads to another port"
    for ingress in by_kind.get("Ingress", []):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                offered = {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
                if backend["port"]["name"] not in offered:
                    yield "the Ingress leads to a port that is not there"


def probe_port(probe):
    return (probe.get("tcpSocket") or probe["httpGet"])["port"]


def restricted(pod):
    """Pod Security "restricted", and what we ask beyond it."""
    context = pod["securityContext"]
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if not context.get("runAsNonRoot") or context.get("runAsUser") != 65532 or context.get("runAsGroup") != 65532:
        yield "not run as 65532"
    if context.get("fsGroup") != 65532 or context.get("fsGroupChangePolicy") != "OnRootMismatch":
        yield "volumes are not the group's, or are changed at each mount"
    if pod.get("automountServiceAccountToken") is not False:
        yield "has a service account token"
    if pod.get("enableServiceLinks") is not False:
        yield "has variables of Services among its settings"
    for shared in ["hostNetwork", "hostPID", "hostIPC"]:
        if pod.get(shared):
            yield shared
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= kinds:
            yield f"volume {volume['name']} is of a kind that \"restricted\" forbids"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = container.get("securityContext", {})
        name = container["name"]
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: privileges can grow"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: has capabilities"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: its root can be written"
        if context.get("privileged") or context.get("runAsNonRoot", True) is not True or context.get("runAsUser", 1) == 0:
            yield f"{name}: privileged, or root"
        if context.get("seccompProfile", {"type": "RuntimeDefault"})["type"] != "RuntimeDefault":
            yield f"{name}: another seccomp profile"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name}: uses a port of the host"
        resources = container.get("resources", {})
        if not resources.get("requests"):
            yield f"{name}: asks for no resources"
        if "memory" not in resources.get("limits", {}):
            yield f"{name}: may take any memory"


def mounts(pod, claims):
    volumes = [volume["name"] for volume in pod.get("volumes", [])] + claims
    used = set()
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        places = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        if len(places) != len(set(places)):
            yield f"{container['name']}: two volumes at one place"
        for mount in container.get("volumeMounts", []):
            used.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{container['name']}: there is no volume {mount['name']}"
    for name in sorted(set(volumes) - used):
        yield f"volume {name} is mounted nowhere"
    if len(volumes) != len(set(volumes)):
        yield "two volumes of one name"


def upgrade(immutable, path):
    documents = yaml.safe_load_all(Path(path).read_text())
    (found,) = [document for document in documents if document and document["kind"] == "StatefulSet"]
    now = {"name": found["metadata"]["name"], "spec": {k: v for k, v in found["spec"].items() if k not in MUTABLE}}
    before = json.loads(Path(immutable).read_text())
    if now != before:
        yield f"the StatefulSet's immutable fields are not those of {immutable}:\n{json.dumps(now, indent=2)}"


def arguments(expected, path):
    documents = yaml.safe_load_all(Path(path).read_text())
    (found,) = [document for document in documents if document and document["kind"] == "StatefulSet"]
    (daemon,) = found["spec"]["template"]["spec"]["containers"]
    if daemon.get("args", []) != json.loads(expected):
        yield f"its arguments are {daemon.get('args')}"


def main():
    match sys.argv[1:]:
        case ["manifests", *paths] if paths:
            problems = manifests(paths)
        case ["upgrade", immutable, path]:
            problems = upgrade(immutable, path)
        case ["settings"]:
            problems = settings()
        case ["arguments", expected, path]:
            problems = arguments(expected, path)
        case _:
            sys.exit(__doc__)
    problems = list(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


main()

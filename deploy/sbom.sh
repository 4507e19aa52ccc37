#!/usr/bin/env bash
# The bill of materials of what is shipped: every crate in the program of the image and of the package, with
# version, checksum and licence, as CycloneDX 1.5. The same commit gives the same bytes, wherever it is cloned.
#
#   deploy/sbom.sh evidenceos.cdx.json        needs: cargo install cargo-cyclonedx --locked
set -euo pipefail
to=$(realpath -m "${1:?where to write it}")
cd "$(dirname "$0")/.."

FEATURES=kms-aws,kms-gcp,kms-azure
TARGET=$(rustc -vV | sed -n 's/^host: //p')
name=sbom-$$
made=$(mktemp)
trap 'rm -f crates/*/"$name".json "$made"' EXIT

# It writes one for each package of the workspace.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) cargo cyclonedx --quiet --manifest-path crates/cli/Cargo.toml --target "$TARGET" \
    --features "$FEATURES" --no-build-deps --format json --spec-version 1.5 --override-filename "$name"
# It goes by features of the whole workspace, and so lists crates that are not linked: they are taken out. What is
# linked and not listed is an error.
python3 - "crates/cli/$name.json" "$PWD" "$made" <(cargo tree --locked -p evidenceos --features "$FEATURES" \
    --target "$TARGET" -e normal --prefix none --format '{p}') <<'PYTHON'
import json, sys

source, root, to, tree = sys.argv[1:]
bom = json.loads(open(source).read().replace(f"file://{root}/", "file:///"))
linked = {(line.split()[0], line.split()[1].removeprefix("v")) for line in open(tree)}
parts = [part for part in bom["components"] if (part["name"], part["version"]) in linked]
ours = bom["metadata"]["component"]
missing = linked - {(part["name"], part["version"]) for part in [*parts, ours]}
unlicensed = [part["name"] for part in parts if not part.get("licenses")]
if missing or unlicensed:
    sys.exit(f"FAILED: linked and not listed: {sorted(missing)}; without a licence: {unlicensed}")
refs = {part["bom-ref"] for part in [*parts, ours]}
bom["components"] = parts
bom["dependencies"] = [
    {**one, **({"dependsOn": [ref for ref in one["dependsOn"] if ref in refs]} if "dependsOn" in one else {})}
    for one in bom["dependencies"]
    if one["ref"] in refs
]
with open(to, "w") as file:
    json.dump(bom, file, indent=2)
    file.write("\n")
print(f"{len(parts)} crates")
PYTHON
mv "$made" "$to"
chmod 644 "$to"

"""Checks the Helm chart with a real Helm: lint, templates with all values, golden files, wrong values.

    check.py LIBRARY            compares
    check.py LIBRARY --update   writes the golden files and deploy/kubernetes

The golden files of deploy/helm/leasemux/ci/NAME-values.yaml are golden/NAME.yaml here. Those of kustomize-NAME-values.yaml
are the files of deploy/kubernetes/NAME: all of the chart, or only NAME.yaml if the chart has it.
"""

import pathlib
import re
import shutil
import sys
import tempfile

import yaml

from engine import NAMESPACE, Helm

ROOT = pathlib.Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy/helm/leasemux"
GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
KUSTOMIZE = ROOT / "deploy/kubernetes"
GENERATED = "# Generated from deploy/helm/leasemux by `.ci/helm --update`.\n"
# Labels that only Helm sets.
HELM_LABELS = re.compile(r"^ *(app\.kubernetes\.io/(version|managed-by)|helm\.sh/chart): .*\n", re.MULTILINE)

# Maps with any keys.
MAPS = [("resources", "requests"), ("resources", "limits"), ("front", "sharedAddressLimits"), ("dashboard", "labels")]

# Wrong values, and a part of the message about them.
WRONG = [
    ({}, "/image"),
    ({"provider": None}, "provider is required"),
    ({"provider": "akash1short"}, "/provider"),
    ({"provider": ""}, "provider is required"),
    ({"publicHostname": ""}, "publicHostname is required"),
    ({"publicHostname": "https://provider.example.com"}, "/publicHostname"),
    ({"platform": "local"}, "/platform"),
    ({"replicas": 0}, "/replicas"),
    ({"replicas": "two"}, "/replicas"),
    ({"replica": 2}, "replica"),
    ({"image": {"repository": ""}}, "/image/repository"),
    ({"image": {"digest": "latest"}}, "/image/digest"),
    ({"settings": {"max-stream": 1}}, "max-stream"),
    ({"settings": {"rest-listen": "0.0.0.0:1"}}, "rest-listen"),
    ({"settings": {"max-streams": {}}}, "/settings/max-streams"),
    ({"trust": {"chainGrpc": "akash-node-1:9090"}}, "/trust/chainGrpc"),
    ({"front": {"upstreamProvider": "http://akash-provider:8443"}}, "/front/upstreamProvider"),
    ({"front": {"sharedAddressLimits": {"max-streams": 1}}}, "max-streams"),
    ({"front": {"enabled": True}}, "tls.authoritySecret"),
    ({"rest": {"port": 70000}}, "/rest/port"),
    ({"traces": {"otlpEndpoint": "collector:4317"}}, "/traces/otlpEndpoint"),
    ({"autoscaling": {"targetCPU": "70%"}}, "/autoscaling/targetCPU"),
    ({"platform": "node", "autoscaling": {"enabled": True}}, "autoscaling needs platform: kube"),
    ({"fleet": {"nats": ["nats://nats.nats:4222"]}}, "/fleet/nats/0"),
    ({"fleet": {"nats": ["tls://nats.nats"]}}, "/fleet/nats/0"),
    ({"fleet": {"name": "east.west"}}, "/fleet/name"),
    ({"fleet": {"sources": {"enabled": True}}}, "fleet.nats is required with fleet.sources"),
    ({"fleet": {"nats": ["tls://nats.nats:4222"], "sources": {"enabled": True}}, "platform": "node"}, "needs platform: kube"),
    ({"fleet": {"credentialsSecret": "user"}}, "fleet.nats is required"),
    ({"fleet": {"nats": ["tls://nats.nats:4222"], "clientCertificate": True}}, "fleet.tlsSecret is required"),
    ({"trustedProxies": ["10.0.0.1"]}, "/trustedProxies"),
    ({"lameDuck": "15"}, "/lameDuck"),
    ({"canary": {"enabled": True}}, "canary.lease is required"),
    ({"canary": {"lease": "akash1angwnmwnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991"}}, "/canary/lease"),
    ({"canary": {"gateway": "http://provider.example.com:8446"}}, "/canary/gateway"),
    ({"canary": {"identitySecret": ""}}, "/canary/identitySecret"),
    ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ({"podLabels": {"a": 1}}, "/podLabels"),
]


class Golden:
    """Compares texts with files, or writes them."""

    def __init__(self, update):
        self.update = update
        self.faults = []

    def file(self, path, text):
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            self.fault(f"{path.relative_to(ROOT)} differs from the chart; write it with: .ci/helm --update")

    def fault(self, text):
        self.faults.append(text)
        print(f"wrong: {text}")


def cases():
    for path in sorted((CHART / "ci").glob("*-values.yaml")):
        yield path.name.removesuffix("-values.yaml"), yaml.safe_load(path.read_text())


def merged(values, changes):
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        result[key] = merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return result


def by_template(manifest):
    """Splits a manifest into the outputs of the chart's templates."""
    files = {}
    for document in manifest.split("---\n# Source: ")[1:]:
        source, text = document.split("\n", 1)
        files.setdefault(source.rsplit("/", 1)[1], []).append(text.strip() + "\n")
    return {name: "---\n".join(texts) for name, texts in files.items()}


def check_objects(golden, name, manifest):
    objects = [item for item in yaml.safe_load_all(manifest) if item]
    keys = {(item["kind"], item["metadata"]["name"]) for item in objects}
    if len(keys) != len(objects):
        golden.fault(f"{name}: two objects of one kind have the same name")
    for item in objects:
        if not item["kind"].startswith("Cluster") and item["metadata"]["namespace"] != NAMESPACE:
            golden.fault(f"{name}: {item['kind']} is in another namespace")
        for container in item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            variables = [variable["name"] for variable in container["env"]]
            if len(set(variables)) != len(variables):
                golden.fault(f"{name}: a variable is set twice")


def check_values(golden):
    """Each value must differ from its default in a case, so that a golden file shows its effect."""

    def leaves(values, at=()):
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, (*at, key))
            else:
                yield (*at, key), value

    unset = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    for _, values in cases():
        for path in list(unset):
            found = values
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            if found is not None and found != unset[path]:
                del unset[path]
    for path in unset:
        # The cases set other keys of these maps.
        if path[:-1] not in MAPS:
            golden.fault(f"no case changes the value {'.'.join(path)}")


def lint(helm, golden):
    minimal = dict(cases())["minimal"]
    with tempfile.TemporaryDirectory() as directory:
        chart = pathlib.Path(directory) / "leasemux"
        shutil.copytree(CHART, chart)
        values = merged(yaml.safe_load((chart / "values.yaml").read_text()), minimal)
        (chart / "values.yaml").write_text(yaml.safe_dump(values))
        result = helm.lint(chart)
    # Helm's severities: 1 information (the chart has no icon), 2 warning, 3 error.
    for message in result["Messages"]:
        if message["Severity"] > 1:
            golden.fault(f"lint: {message}")
    if result["TotalChartsLinted"] != 1 or result["Errors"]:
        golden.fault(f"lint: {result}")


def main():
    golden = Golden("--update" in sys.argv)
    helm = Helm(sys.argv[1])
    lint(helm, golden)
    check_values(golden)
    for name, values in cases():
        manifest, notes = helm.render(CHART, values)
        check_objects(golden, name, manifest)
        files = by_template(manifest)
        if name.startswith("kustomize-"):
            directory = KUSTOMIZE / name.removeprefix("kustomize-")
            own = f"{directory.name}.yaml"
            files = {own: files[own]} if own in files else files
            for file, text in files.items():
                golden.file(directory / file, GENERATED + HELM_LABELS.sub("", text))
            expected = {*files, "kustomization.yaml"}
            for path in directory.iterdir():
                if path.name not in expected:
                    golden.fault(f"{path.relative_to(ROOT)} is not part of the chart; delete it")
            continue
        # The long contents of these files have their own tests.
        text = re.sub(r"^  leasemux.json: .*$", "  leasemux.json: ...", manifest, flags=re.MULTILINE)
        text = re.sub(r"^  groups:\n(  .*\n)+", "  groups: ...\n", text, flags=re.MULTILINE)
        golden.file(GOLDEN / f"{name}.yaml", text.lstrip() + "---\n" + notes.strip() + "\n")
    minimal = dict(cases())["minimal"]
    for changes, part in WRONG:
        try:
            helm.render(CHART, merged(minimal, changes) if changes else {})
        except RuntimeError as error:
            if part not in str(error):
                golden.fault(f"{changes} is rejected without {part!r}: {error}")
        else:
            golden.fault(f"{changes} is accepted")
    print(f"{len(list(cases()))} cases, {len(WRONG)} wrong values, {len(golden.faults)} faults")
    sys.exit(1 if golden.faults else 0)


main()

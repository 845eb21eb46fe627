"""Build step: write the image's bill of materials as CycloneDX 1.6 JSON to standard output.

``sbom.py NAME``. It lists the Python distributions that this interpreter sees and the Debian
packages of the base, each with the package URL that vulnerability scanners look up. The same
contents give the same bytes.
"""

import importlib.metadata
import json
import pathlib
import sys
import urllib.parse

DPKG_STATUS = pathlib.Path("/var/lib/dpkg/status")
Entry = dict[str, object]


def component(
    kind: str, namespace: str, name: str, version: str, licence: str
) -> dict[str, object]:
    """One entry of the list; ``kind`` and ``namespace`` are those of the package URL."""
    prefix = f"pkg:{kind}/{namespace}{'/' if namespace else ''}"
    url = f"{prefix}{urllib.parse.quote(name)}@{urllib.parse.quote(version)}"
    entry: Entry = {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
    }
    if licence:
        entry["licenses"] = [{"license": {"name": licence}}]
    return entry


def python_packages() -> list[Entry]:
    """Every distribution on this interpreter's path, by name."""
    found = []
    for distribution in importlib.metadata.distributions():
        fields = distribution.metadata
        name = fields["Name"].lower().replace("_", "-").replace(".", "-")
        names = (key for key in ("License-Expression", "License") if key in fields)
        licence = next((fields[key] for key in names), "")
        found.append(component("pypi", "", name, distribution.version, licence.split("\n")[0][:80]))
    return sorted(found, key=lambda entry: str(entry["purl"]))


def debian_packages() -> list[Entry]:
    """Every installed package of the base image, in dpkg's own order; none elsewhere."""
    found = []
    for block in DPKG_STATUS.read_text().split("\n\n") if DPKG_STATUS.exists() else []:
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line[:40])
        if fields.get("Status", "").endswith(" installed"):
            found.append(component("deb", "debian", fields["Package"], fields["Version"], ""))
    return found


def main() -> int:
    """Print the whole document."""
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "image", "name": sys.argv[1]}},
        "components": python_packages() + debian_packages(),
    }
    json.dump(document, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

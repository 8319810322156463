#!/usr/bin/env python3
"""The files of deploy/: they parse, and every flag and path in them exists.

usage: deploy_test.py PROGRAM SOURCE_DIR
Runs in the environment that tools/install_dependencies.sh makes at SOURCE_DIR/.venv.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from server_tools import enter_environment

if len(sys.argv) < 3:
    sys.exit(__doc__)
enter_environment(sys.argv[2])

import yaml

PUBLIC_PATHS = {"/health", "/v2/health/live", "/v2/health/ready", "/metrics"}


def main():
    program, deploy = sys.argv[1], pathlib.Path(sys.argv[2]) / "deploy"
    help_text = subprocess.run(
        [program, "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = set(re.findall(r"--[a-z][a-z-]+", help_text))
    failures = []

    def expect(condition, what):
        if not condition:
            failures.append(what)

    def expect_flags(where, text):
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        expect(used, f"{where}: no flag in it")
        for flag in used - flags:
            failures.append(f"{where}: {flag} is no flag of caravan serve")

    unit = (deploy / "caravan.service").read_text()
    expect_flags("caravan.service", re.search(r"^ExecStart=(.*)$", unit, re.M).group(1))
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as work:
            path = pathlib.Path(work) / "caravan.service"
            installed = str(pathlib.Path(program).resolve())
            path.write_text(unit.replace("/usr/local/bin/caravan", installed))
            command = ["systemd-analyze", "verify", path]
            result = subprocess.run(command, capture_output=True, text=True)
            about_unit = [line for line in result.stderr.splitlines() if "caravan.service" in line]
            expect(result.returncode == 0 and not about_unit, f"systemd-analyze: {result.stderr}")

    docker = (deploy / "Dockerfile").read_text()
    expect_flags("Dockerfile", docker[docker.index("ENTRYPOINT") :])
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.M):
        for name in source.split():
            expect((deploy.parent / name).exists(), f"Dockerfile: COPY {name}: no such path")

    documents = list(yaml.safe_load_all((deploy / "kubernetes.yaml").read_text()))
    kinds = [document["kind"] for document in documents]
    expect(kinds == ["Deployment", "Service", "PodDisruptionBudget"], f"kubernetes.yaml: {kinds}")
    pod = documents[0]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    expect_flags("kubernetes.yaml", " ".join(container["args"]))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        expect(get["path"] in PUBLIC_PATHS, f"kubernetes.yaml: {probe} asks for {get['path']}")
        expect(get["port"] in ports, f"kubernetes.yaml: {probe} asks at {get['port']}")
    labels = pod["metadata"]["labels"].items()
    for document in documents:
        selector = document["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        expect(selector.items() <= labels, f"kubernetes.yaml: {document['kind']} selects {selector}")
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for mount in container["volumeMounts"]:
        expect(mount["name"] in volumes, f"kubernetes.yaml: no volume {mount['name']}")

    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()

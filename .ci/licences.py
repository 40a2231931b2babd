"""docs/licences.md from the JSON of pip-licenses on stdin."""

import json
import sys

print("# Licences\n")
print(
    "Of what `pip install distill-tune` brings along on Linux without a GPU, as each package's metadata has it. A CUDA"
)
print("build of PyTorch brings NVIDIA's libraries besides, under NVIDIA's terms. `make licences` writes this page.\n")
print("| package | version | licence |\n| --- | --- | --- |")
for package in sorted(json.load(sys.stdin), key=lambda package: package["Name"].lower()):
    lines = [line.strip() for line in package["License"].splitlines() if line.strip()]
    licence = lines[0] if lines and lines[0] != "UNKNOWN" else "in its LICENSE file"
    print(f"| {package['Name']} | {package['Version']} | {licence} |")

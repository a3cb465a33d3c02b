#!/bin/sh
# Writes sbom.cdx.json here, the CycloneDX list of the Python packages of the image: the one that the image itself holds.
# Where no Docker engine answers it is made from a virtual environment, which holds the development tools too:
#   tools/sbom.sh .venv/bin
# What the base image brings of its own (Debian, Python) is not in it.
set -eu
bin=$1
file=sbom.cdx.json

if docker info >/dev/null 2>&1; then
  docker compose build
  docker run --rm --entrypoint cat resnet-service "/srv/resnet/$file" >"$file.tmp"
  mv "$file.tmp" "$file"
  echo "$file: what the image resnet-service holds"
else
  "$bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --output-file "$file" "$bin/python"
  echo "$file: no Docker engine answers, so this is what $bin/python sees, with the development tools"
fi

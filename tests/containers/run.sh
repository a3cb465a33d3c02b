#!/usr/bin/env bash
# Builds both images, brings the one for CPUs up with Docker Compose, predicts, looks at how it is locked up, takes it down.
# Needs a Docker engine, or a command that runs another beside a throw-away engine: WITH_DOCKER=COMMAND.
# Also from the environment: EXPECT_LABEL (of examples/cat.png), PIP_ARGS, BASE_IMAGE, BUILD_ARGS (more for `docker build`).
# Removes its containers and network; its images stay, so that the next build need not install torch.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

if ! docker info >/dev/null 2>&1; then
  if [ -n "${IN_HELPER:-}" ] || ! helper=$(command -v "${WITH_DOCKER:-}"); then
    echo "no Docker engine answers, and there is no helper that starts one (WITH_DOCKER=COMMAND)" >&2
    exit 1
  fi
  echo "no Docker engine answers: running beside the one of $helper"
  IN_HELPER=1 exec "$helper" "$PWD/tests/containers/run.sh"
fi

image=resnet-service:test-cpu
whole=resnet-service:test
project=resnet-test-$$
work=$(mktemp -d)
export PUBLISH=127.0.0.1:0 # a free port
unset "${!RESNET_@}" SECRETS WEIGHTS
printf 'services: {resnet: {image: "%s"}}\n' "$image" >"$work/image.yml"
files=(-f docker-compose.yml -f docker-compose.cpu.yml -f "$work/image.yml")
failures=0

compose() { docker compose --env-file /dev/null --project-name "$project" --project-directory . "${files[@]}" "$@"; }
inside() { docker exec "$container" "$@"; }
finish() {
  code=$?
  compose down --timeout 5 --volumes >/dev/null 2>&1
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# check NAME COMMAND...: PASS if the command succeeds, else FAIL and what it said.
report() {
  echo "$1 $2"
  [ "$1" = PASS ] || failures=$((failures + 1))
}
check() { if "${@:2}" >"$work/out" 2>&1; then report PASS "$1"; else report FAIL "$1"; tail -n 20 "$work/out"; fi; }

# --- the files, as Compose reads them ---
devices() {
  docker compose --env-file /dev/null -f docker-compose.yml "$@" config --format json |
    python3 -c 'import json, sys
service = json.load(sys.stdin)["services"]["resnet"]
devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
print(service["environment"]["RESNET_DEVICE"], [(d["driver"], d["capabilities"]) for d in devices])'
}
gpu=$(devices) cpu=$(devices -f docker-compose.cpu.yml)
check "docker-compose.yml reserves a GPU: $gpu" test "$gpu" = "cuda [('nvidia', ['gpu'])]"
check "docker-compose.cpu.yml reserves none: $cpu" test "$cpu" = "cpu []"

# shellcheck disable=SC2016
mounted() { # mounted FOLDER SETTING
  docker compose --env-file /dev/null -f docker-compose.yml config --format json |
    python3 -c 'import json, os, sys
folder, setting = sys.argv[1:]
service = json.load(sys.stdin)["services"]["resnet"]
(mount,) = (one for one in service["volumes"] if one["target"] == folder)
assert mount["read_only"], mount
print(mount["type"], os.path.basename(mount["source"]), service["environment"].get(setting))' "$@"
}
none=$(mounted /secrets RESNET_TLS_CERT)
some=$(SECRETS=./tests/tls RESNET_TLS_CERT=/secrets/localhost.crt mounted /secrets RESNET_TLS_CERT)
check "/secrets is an empty volume: $none" test "$none" = "volume no-secrets None"
check "/secrets is the folder SECRETS: $some" test "$some" = "bind tls /secrets/localhost.crt"
none=$(mounted /weights RESNET_WEIGHTS)
some=$(WEIGHTS=./weights RESNET_WEIGHTS=/weights/own.safetensors mounted /weights RESNET_WEIGHTS)
check "/weights is an empty volume: $none" test "$none" = "volume no-weights None"
check "/weights is the folder WEIGHTS: $some" test "$some" = "bind weights /weights/own.safetensors"

one_gpu() {
  GPU=1 docker compose --env-file /dev/null -f docker-compose.yml -f examples/one-gpu.yml config --format json |
    python3 -c 'import json, sys
(device,) = json.load(sys.stdin)["services"]["resnet"]["deploy"]["resources"]["reservations"]["devices"]
print(device["device_ids"], device.get("count"))'
}
second=$(one_gpu)
check "examples/one-gpu.yml reserves that GPU in place of the first: $second" test "$second" = "['1'] None"

# --- build ---
build() { # build TAG WITH_TORCH
  start=$SECONDS
  # shellcheck disable=SC2086
  docker build --tag "$1" --build-arg "PIP_ARGS=${PIP_ARGS:-}" --build-arg "WITH_TORCH=$2" \
    ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} ${BUILD_ARGS:-} . >"$work/build" 2>&1 || {
    tail -n 30 "$work/build"
    report FAIL "$1 builds"
    exit 1
  }
  size=$(($(docker image inspect --format '{{.Size}}' "$1") / 1000000))
  report PASS "$1 builds ($((SECONDS - start)) s, $size MB)"
}
build "$whole" yes
build "$image" no
check "the image for CPUs is small: $size MB" test "$size" -lt 1000
by_itself() { docker run --rm --interactive --entrypoint sh "$1" -c "cat >/tmp/cat.png && resnet predict /tmp/cat.png $2" <examples/cat.png; }
check "the whole image predicts, with torch" by_itself "$whole" "--runtime torch --device cpu"
cat "$work/out"
cores() { docker run --rm --cpus 1 --entrypoint python3 "$image" -c "from model.hardware.cores import available_cores; print(available_cores())"; }
check "with --cpus 1 it takes one core for its threads" test "$(cores)" = 1
check "the image for CPUs predicts" by_itself "$image" ""
tight() {
  docker run --rm --interactive --read-only --tmpfs /tmp:size=1m,mode=1777 --entrypoint sh "$image" \
    -c "cat >/tmp/cat.png && resnet predict /tmp/cat.png --runtime mnn --precision float32" <examples/cat.png
}
check "MNN works there, and needs no disk" tight
needs_torch() { ! docker run --rm "$image" evaluate --data cifar10 --root /tmp 2>"$work/seen" && cat "$work/seen" && grep -qx 'resnet: error: this needs torch.*' "$work/seen"; }
check "and says that it cannot evaluate" needs_torch

# --- up ---
start=$SECONDS
compose up --detach --no-build >"$work/up" 2>&1 || {
  cat "$work/up"
  compose logs --tail 30
  report FAIL "compose up"
  exit 1
}
await_health() {
  container=$(compose ps --all --quiet resnet)
  health=
  while [ $((SECONDS - start)) -lt 120 ] && [ "$health" != healthy ] && [ "$health" != unhealthy ]; do
    sleep 1
    health=$(docker inspect --format '{{.State.Health.Status}}' "$container")
  done
  check "healthy after $((SECONDS - start)) s" test "$health" = healthy
  [ "$health" = healthy ] || { docker logs --tail 30 "$container"; exit 1; }
}
await_health

# --- the service ---
url=http://$(compose port resnet 8000)
get() { python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())' "$url$1"; }
has() { grep -q "$2" <<<"$(get "$1")"; }
predict() {
  python3 - "$url/predict" examples/cat.png "${EXPECT_LABEL:-cat}" <<'PYTHON'
import json, sys, urllib.request
url, image, label = sys.argv[1:]
request = urllib.request.Request(url, open(image, "rb").read(), {"content-type": "image/png"})
with urllib.request.urlopen(request, timeout=30) as answer:
    status, body = answer.status, answer.read().decode()
print(status, body)
(prediction,) = json.loads(body)["predictions"]
probabilities = [entry["probability"] for entry in prediction["probabilities"]]
assert status == 200 and len(probabilities) == 10 and abs(sum(probabilities) - 1) < 1e-3, body
assert prediction["label"] == label, f"{prediction['label']}, not {label}"
PYTHON
}
check "POST examples/cat.png to /predict: 200, 10 probabilities, ${EXPECT_LABEL:-cat}" predict
cat "$work/out"
check "/readyz answers" has /readyz ready
check "/metrics answers" has /metrics '^resnet_ready 1'

# --- what it is made of ---
made_of() {
  docker exec --interactive "$container" /opt/venv/bin/python - <<'PYTHON'
import importlib.metadata, json, pathlib, re
def key(name): return re.sub("[-_.]+", "-", name).lower()
bom = json.loads(pathlib.Path("/srv/resnet/sbom.cdx.json").read_text())
assert bom["bomFormat"] == "CycloneDX", bom["bomFormat"]
listed = {key(one["name"]): one["version"] for one in [bom["metadata"]["component"], *bom["components"]]}
installed = {key(one.name): one.version for one in importlib.metadata.distributions()}
assert listed == installed, sorted(listed.items() ^ installed.items())
assert not [name for name in installed if "cyclonedx" in name], "its tool is in the image"
print(", ".join(f"{name} {listed[name]}" for name in ("resnet-service", "openvino", "fastapi", "pillow")))
assert "torch" not in installed, "torch is in the image for CPUs"
PYTHON
}
check "the SBOM lists what is installed, version for version, and nothing else" made_of
cat "$work/out"
check "the checkpoint is the pinned one" inside sh -c 'cd weights && sha256sum --check --strict SHA256SUMS'

# --- how it is locked up ---
status() { inside cat /proc/1/status | grep -E "^$1:\s+$2\$"; }
read_only() { grep 'Read-only file system' <<<"$(docker exec --user 0 "$container" touch "$1" 2>&1)"; }
no_compiler() {
  inside sh -c 'for name in cc gcc g++ c++ clang make ld as; do command -v $name && exit 1; done; echo none found' | tee "$work/seen"
  grep -qx 'none found' "$work/seen"
}
writable() { docker run --rm --entrypoint find "$image" /srv /opt ! -type l -writable; }
check "by itself, too, the image runs as $(docker run --rm --entrypoint id "$image" -u)" \
  test "$(docker image inspect --format '{{.Config.User}}' "$image")" = 10001:10001
check "what it serves belongs to others, also where / can be written" test "$(writable | wc -l)" = 0
check "process 1 is user and group 10001" eval "status Uid '(10001\s*){4}' && status Gid '(10001\s*){4}'"
check "no capabilities" eval "status CapEff 0+ && status CapPrm 0+ && status CapBnd 0+"
check "no new privileges" status NoNewPrivs 1
check "system calls are filtered" status Seccomp 2
check "/ is read-only, for root too" eval "read_only /probe && read_only /srv/resnet/app/probe"
check "/tmp can be written" inside touch /tmp/probe
check "no compiler" no_compiler
check "memory is limited" test "$(docker inspect --format '{{.HostConfig.Memory}}' "$container")" -gt 0
check "published on the loopback only: $url" test "${url#http://127.0.0.1:}" != "$url"

# --- down ---
start=$SECONDS
compose stop >/dev/null 2>&1
check "SIGTERM: exit code 0 after $((SECONDS - start)) s" test "$(docker inspect --format '{{.State.ExitCode}}' "$container")" = 0
docker logs --tail 20 "$container" >"$work/log" 2>&1
check "the last log lines show the drain, from SIGTERM to its end" sh -c "grep -q draining '$work/log' && grep -q 'Finished server' '$work/log'"
check "as JSON, which the image sets" sh -c "! grep -v '^{' '$work/log'"
cat "$work/log"
check "compose down" compose down

# --- with secrets: HTTPS, keys, a port for probes; and with weights of another folder ---
mkdir "$work/secrets" "$work/weights"
cp weights/resnet18-cifar10.safetensors "$work/weights/own.safetensors"
cp tests/tls/localhost.* "$work/secrets"
printf 'alice:%s\n' "$(printf %s hunter2 | sha256sum | cut -d ' ' -f 1)" >"$work/secrets/keys.txt"
chmod -R a+rX "$work/secrets" "$work/weights"
export WEIGHTS=$work/weights RESNET_WEIGHTS=/weights/own.safetensors
export SECRETS=$work/secrets RESNET_ADMIN_PORT=9000 RESNET_API_KEYS_FILE=/secrets/keys.txt
export RESNET_TLS_CERT=/secrets/localhost.crt RESNET_TLS_KEY=/secrets/localhost.key
start=$SECONDS
compose up --detach --no-build >"$work/up" 2>&1 || cat "$work/up"
await_health
ask() { # ask KEY: the status that /model answers with over HTTPS
  python3 - "https://localhost:$(compose port resnet 8000 | cut -d : -f 2)/model" "$1" <<'PYTHON'
import ssl, sys, urllib.error, urllib.request
url, key = sys.argv[1:]
request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
try:
    with urllib.request.urlopen(request, timeout=30, context=ssl.create_default_context(cafile="tests/tls/localhost.crt")) as answer:
        print(answer.status)
except urllib.error.HTTPError as error:
    print(error.code)
PYTHON
}
check "HTTPS and the key: 200" test "$(ask hunter2)" = 200
check "HTTPS and another key: 401" test "$(ask hunter3)" = 401
check "the certificate and the keys are read again" inside resnet reload
docker logs --tail 20 "$container" >"$work/log" 2>&1
check "the log says so" sh -c "grep -q 'read the certificate' '$work/log' && grep -q 'read 1 keys' '$work/log'"
check "it serves the weights of that folder" sh -c "docker logs '$container' 2>&1 | grep -q 'weights=/weights/own.safetensors'"
check "compose down again" compose down --volumes

echo "$failures failed"
[ "$failures" -eq 0 ]

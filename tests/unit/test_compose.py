"""docker-compose.yml knows the settings."""

import json
import re

import pytest

from app.backends.cuda_lane import SEARCH_S
from app.backends.cuda_precision import FINER
from app.processes.supervisor import MARGIN_S
from app.settings import Settings
from tests.conftest import ROOT

COMPOSE = (ROOT / "docker-compose.yml").read_text()

DOCKERFILE = (ROOT / "Dockerfile").read_text()

FIXED = {"host", "port"}  # those of the image


def test_every_setting_is_passed_on():
    passed = re.findall(r"^      RESNET_([A-Z0-9_]+):", COMPOSE, re.M)
    assert sorted(name.lower() for name in passed) == sorted(Settings.model_fields.keys() - FIXED)


def test_what_the_image_sets_is_not_unset():
    """Compose takes a name without a value out of the environment, if the shell does not have it."""
    set_by_image = dict(re.findall(r"^ +(RESNET_[A-Z0-9_]+)=(\S+)", DOCKERFILE, re.M))
    assert set_by_image.pop("RESNET_HOST") == "0.0.0.0"
    assert set_by_image
    for name, value in set_by_image.items():
        assert f"      {name}: ${{{name}:-{value}}}\n" in COMPOSE


def test_the_image_knows_the_revision_that_it_was_built_from():
    """After ARG, which is empty above it; and Compose does not take it out again."""
    assert re.search(r"^ARG REVISION=.*\n(.*\n)?ENV RESNET_REVISION=\$\{REVISION\}$", DOCKERFILE, re.M)
    assert "RESNET_REVISION" not in COMPOSE


def test_a_signal_in_the_first_moment_is_not_lost():
    """For which the service itself must not be the first process."""
    assert re.search(r"^    init: true\b", COMPOSE, re.M)


def test_a_drain_of_the_usual_length_is_not_cut_short():
    settings = Settings()
    delay_s = int(re.search(r"RESNET_DRAIN_DELAY_S:-(\d+)", COMPOSE)[1])
    grace_s = int(re.search(r"stop_grace_period: \$\{GRACE:-(\d+)s\}", COMPOSE)[1])
    assert grace_s > delay_s + settings.drain_timeout_s + MARGIN_S


def test_a_host_of_256_cores_has_no_more_threads_than_the_container_may_have():
    """Two a core, for whole batches and for pieces; and 64 HTTP processes of ten each."""
    assert int(re.search(r"^    pids_limit: (\d+)", COMPOSE, re.M)[1]) >= 2 * 256 + 64 * 10
    assert re.search(r"^    OPENBLAS_NUM_THREADS=1 ", DOCKERFILE, re.M)  # else a thread a core more in each process


def test_a_start_that_takes_minutes_is_no_failure():
    """On a GPU, in each precision that "auto" may come to, by each of two ways to fill a lane."""
    searches_s = (1 + len(FINER)) * 2 * SEARCH_S
    assert int(re.search(r"^HEALTHCHECK .*--start-period=(\d+)s", DOCKERFILE, re.M)[1]) >= 2 * searches_s
    manifest = (ROOT / "examples" / "kubernetes.yaml").read_text()
    assert int(re.search(r"^# .*startupProbe: failureThreshold: (\d+)", manifest, re.M)[1]) * 2 >= 2 * searches_s
    start_s = 2 * int(re.search(r"^# .*startupProbe: failureThreshold: (\d+)", manifest, re.M)[1])
    assert int(re.search(r"^# .*progressDeadlineSeconds: (\d+)", manifest, re.M)[1]) > start_s
    alerts = (ROOT / "examples" / "alerts.yml").read_text()
    assert 60 * int(re.search(r"for: \d+m # on GPUs (\d+)m", alerts)[1]) > start_s


def test_the_health_check_is_the_images():
    """Podman's own format of images has none, so both files have it."""
    flags, command = re.search(r"^HEALTHCHECK (.*) CMD (\[.*\])$", DOCKERFILE, re.M).groups()
    image = {name.replace("-", "_"): value for name, value in re.findall(r"--([a-z-]+)=(\S+)", flags)}
    block = re.search(r"^    healthcheck:.*\n((?: {6}.*\n)+)", COMPOSE, re.M)[1]
    compose = dict(re.findall(r"^ {6}(\w+): (.+)$", block, re.M))
    assert compose.pop("test") == f"[CMD, {', '.join(json.loads(command))}]"
    assert compose == image


def test_folders_are_mounted_for_reading_where_the_settings_of_the_head_expect_them():
    mounted = dict(re.findall(r"^      - \$\{(\w+):-[\w-]+\}:(/\w+):ro\b", COMPOSE, re.M))
    assert mounted == {"SECRETS": "/secrets", "WEIGHTS": "/weights"}
    head = COMPOSE.partition("\nname:")[0]
    paths = dict(re.findall(r"\b(RESNET_\w+)=(/\S+)", head))
    assert {"RESNET_WEIGHTS", "RESNET_TLS_KEY"} <= paths.keys()
    assert {path.rpartition("/")[0] for path in paths.values()} == set(mounted.values())


def test_a_folder_without_a_slash_is_refused():
    """Compose takes `SECRETS=secrets` for a volume's name: it must not be that of an empty volume."""
    empty = re.findall(r"^      - \$\{\w+:-([\w-]+)\}", COMPOSE, re.M)
    assert re.findall(r"^  ([\w-]+):", COMPOSE.split("\nvolumes:")[1], re.M) == empty
    assert all(name.startswith("no-") for name in empty)


def test_one_gpu_takes_the_place_of_the_first():
    """`count` and `device_ids` exclude each other, and without its tag a list is added to the one before."""
    yaml = pytest.importorskip("yaml", reason="nothing else here needs PyYAML")

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!override", lambda loader, node: ("instead", loader.construct_sequence(node, deep=True)))

    def devices(text):
        return yaml.load(text, Loader)["services"]["resnet"]["deploy"]["resources"]["reservations"]["devices"]

    (usual,) = devices(COMPOSE)
    kind, (chosen,) = devices((ROOT / "examples" / "one-gpu.yml").read_text())
    assert (kind, usual.pop("count"), chosen.pop("device_ids")[0][:7]) == ("instead", 1, "${GPU:?")
    assert chosen == usual

import argparse
import subprocess
import sys

import pytest
from pydantic import ValidationError

from app.cli import build_parser
from app.commands.settings_flags import add_settings, read_settings
from app.settings import PROTECTIONS, SERVICE_LINK, Settings
from tests.conftest import ROOT


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_settings(parser.parse_args(arguments))


def test_defaults_are_local_and_keyless():
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.port == 8000
    assert settings.api_key is None
    assert settings.max_wait_ms == 0


def test_environment_sets_and_flags_win(monkeypatch):
    monkeypatch.setenv("RESNET_PORT", "9000")
    monkeypatch.setenv("RESNET_BATCH_SIZES", "1,8")
    assert parse().port == 9000
    assert parse().batch_sizes == (1, 8)
    assert parse("--port", "9001").port == 9001


def shown(default):
    if isinstance(default, bool):
        return str(default).lower()
    return "none" if default is None else str(default)


def test_every_setting_is_a_flag_with_its_default_in_the_help():
    parser = build_parser()
    serve = parser._subparsers._group_actions[0].choices["serve"].format_help()
    words = " ".join(serve.split())
    unspaced = words.replace(" ", "")  # argparse breaks lines also behind hyphens
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in words
        assert f"[RESNET_{name.upper()}, default {shown(field.default)}]".replace(" ", "") in unspaced


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "99999"),
        ("--device", "tpu"),
        ("--precision", "int4"),
        ("--batch-sizes", "8,4"),
        ("--batch-sizes", "x"),
        ("--max-queue-images", "8", "--max-images", "9"),
        ("--max-queue-images", "8", "--batch-sizes", "1,16"),
        ("--max-queue-images", "8", "--max-images", "8", "--batch-sizes", "1,16"),
        ("--timeout-ms", "0"),
        ("--tls-cert", "cert.pem"),
        ("--tls-key", "key.pem"),
        ("--admin-port", "8000"),
        ("--header-timeout-s", "0"),
        ("--http-processes", "0"),
        ("--admin-host", "127.0.0.1"),  # of a port that there is not
        ("--http-processes", "17"),  # each needs room for one body of the largest size
        ("--max-buffered-bytes", "16777215"),
        ("--threads", "-1"),
        ("--batch-sizes", "0,8"),
        ("--batch-sizes", "8,8"),
        ("--max-queue-images", "0"),
        ("--max-images", "0"),
        ("--max-pixels", "1023"),
        ("--max-body-bytes", "1023"),
        ("--max-connections", "0"),
        ("--keep-alive-s", "0"),
        ("--body-timeout-s", "0"),
        ("--max-queue-s", "0"),
        ("--max-wait-ms", "-1"),
        ("--decode-threads", "-1"),
        ("--connection-age-s", "-1"),
        ("--watch-files-s", "-1"),
        ("--weights-sha256", "abc"),
        ("--device", "cuda:0x"),
    ],
)
def test_a_bad_value_is_one_line(arguments):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert "\n" not in str(stopped.value)
    assert str(stopped.value).startswith("resnet: error: ")


def test_bodies_may_take_all_that_is_buffered():
    assert parse("--max-buffered-bytes", "16777216").max_buffered_bytes == parse().max_body_bytes


def test_an_empty_key_is_not_taken_for_a_key(monkeypatch):
    monkeypatch.setenv("RESNET_API_KEY", " ")
    with pytest.raises(SystemExit, match="api_key"):
        parse()


def test_a_short_queue_alone_bounds_requests_to_what_may_wait():
    assert parse("--max-queue-images", "8").max_images == 8
    assert parse("--max-queue-images", "300").max_images == 256


@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        ("host", "", "127.0.0.1"),  # not every address
        ("precision", "", "auto"),
        ("batch_sizes", "", None),
        ("admin_port", "none", None),
        ("batch_sizes", "none", None),
        ("split_batches", "None", None),
        ("weights_sha256", "none", None),
        ("api_keys_file", "none", None),
        ("log_level", "DEBUG", "debug"),
        ("port", "tcp://10.0.0.1:8000", 8000),
        ("admin_port", "tcp://10.0.0.1:9000", None),
    ],
)
def test_what_the_environment_does_not_mean_as_a_value_is_none(monkeypatch, name, value, means):
    """Empty, the default as the documentation writes it, or what Kubernetes says of a service of the same name."""
    monkeypatch.setenv(f"RESNET_{name.upper()}", value)
    assert getattr(parse(), name) == means


def test_the_names_that_kubernetes_gives_are_known_and_none_is_a_settings():
    links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR"]
    links += ["ADMIN_SERVICE_HOST", "ADMIN_PORT_9000_TCP_PROTO"]
    assert all(SERVICE_LINK.fullmatch(f"RESNET_{name}") for name in links)
    assert not any(SERVICE_LINK.fullmatch(f"RESNET_{name.upper()}") for name in Settings.model_fields)


@pytest.mark.parametrize("name", PROTECTIONS)
def test_what_protects_is_not_left_out_because_it_is_empty(monkeypatch, name):
    monkeypatch.setenv(f"RESNET_{name.upper()}", "")
    with pytest.raises(SystemExit, match=f"{name} must not be empty"):
        parse()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--api-key", "none"), "api_key must not be none"),
        (("--batch-sizes", "1;2"), "whole numbers with commas"),
        (("--port", "none"), "port: "),
        (("--drain-delay-s", "inf"), "finite"),
        (("--drain-timeout-s", "nan"), "finite"),
        (("--stall-timeout-s", "1e9"), "86400"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(arguments, reason):
    with pytest.raises(SystemExit, match=reason):
        parse(*arguments)


@pytest.mark.parametrize(
    ("cores", "given", "processes", "threads"),
    [(1, 0, 1, 1), (9, 0, 1, 8), (3, 2, 1, 2), (3, 20, 1, 20), (9, 0, 3, 2), (1, 1, 2, 1)],
)
def test_processes_share_the_threads_that_decode_of_which_there_is_one_a_core_up_to_a_limit(
    monkeypatch, cores, given, processes, threads
):
    monkeypatch.setattr("app.settings.available_cores", lambda: cores)
    assert Settings(decode_threads=given, http_processes=processes).decode_threads_per_process == threads


@pytest.mark.parametrize(("given", "threads"), [(0, 5), (3, 3)])
def test_the_engine_has_a_thread_a_core_unless_told_otherwise(monkeypatch, given, threads):
    monkeypatch.setattr("app.settings.available_cores", lambda: 5)
    assert Settings(threads=given).engine_threads == threads


@pytest.mark.parametrize(("processes", "connections", "buffered"), [(1, 5, 9000), (2, 2, 4500), (8, 1, 1125)])
def test_processes_share_connections_and_bytes(processes, connections, buffered):
    settings = Settings(http_processes=processes, max_connections=5, max_buffered_bytes=9000, max_body_bytes=1024)
    assert (settings.connections_per_process, settings.buffered_bytes_per_process) == (connections, buffered)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_the_key_does_not_show():
    settings = Settings(api_key="hunter2")
    assert "hunter2" not in str(settings.model_dump(mode="json"))


def test_the_command_line_and_the_health_check_do_not_wait_for_torch():
    code = "import sys, app.cli; app.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_key_is_what_a_header_can_carry():
    assert Settings(api_key=" secret\n").api_key.get_secret_value() == "secret"
    with pytest.raises(ValueError, match="api_key must not be empty"):
        Settings(api_key="\n")


@pytest.mark.parametrize(("given", "host"), [("[::1]", "::1"), ("[::]", "::"), ("::1", "::1"), ("[x]", "[x]")])
def test_an_ipv6_address_may_stand_in_the_brackets_that_it_has_in_a_url(given, host):
    settings = Settings(host=given, admin_host=given, admin_port=9000)
    assert (settings.host, settings.admin_host) == (host, host)

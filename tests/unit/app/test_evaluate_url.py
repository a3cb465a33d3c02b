"""`resnet evaluate --url` of what is no such service: one line, whatever it answers."""

import asyncio
import json
import math

import httpx
import pytest

from app.client import classify_dataset, fetch_card
from model.evaluate import score
from tests.http_server import http_server
from tests.unit.app.command_runs import run_command
from tests.unit.app.conftest import TOY_CLASSES, toy_test_set

CARD = {"input_size": 16, "classes": list(TOY_CLASSES)}
MODEL = {"name": "toy", "version": "0" * 12}
PREDICTION = {"probabilities": [{"label": name, "probability": 0.25} for name in TOY_CLASSES]}


def evaluate_url(url, capsys):
    """Return the lines of an evaluation that fails."""
    assert run_command("evaluate", "--url", url) == 1
    return capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a:b", "http://\0", "http://xn--.de", "http://", "there", "", "ftp://there"]
)
def test_what_is_no_address_is_one_line(url, capsys):
    url = url or " "  # without one, a checkpoint is evaluated
    assert evaluate_url(url, capsys) == [f"resnet: error: not an http(s) URL: {url!r}"]


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Welcome</html>",
        b"",
        b"[]",
        b"{}",
        b"\xff",
        json.dumps(CARD | {"input_size": "large"}).encode(),
        json.dumps(CARD | {"classes": 10}).encode(),
        json.dumps({"classes": ["a"]}).encode(),
    ],
)
def test_a_card_of_something_else_is_one_line(answer, capsys):
    with http_server(get=lambda: (200, answer)) as url:
        assert evaluate_url(url, capsys) == [f"resnet: error: {url} does not answer as this service does"]


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("error", [httpx.DecodingError("no gzip"), httpx.ReadTimeout("late")])
def test_an_answer_that_cannot_be_read_is_one_line(error, capsys, monkeypatch):
    def get(*_, **__):
        raise error

    monkeypatch.setattr(httpx, "get", get)
    (line,) = evaluate_url("http://there", capsys)
    assert line == f"resnet: error: no answer from http://there: {type(error).__name__}"


@pytest.mark.parametrize(
    "content",
    [
        "no object",
        {},
        {"model": MODEL},
        {"model": MODEL, "predictions": []},
        {"model": {"name": "toy"}, "predictions": [PREDICTION]},
        {"model": MODEL, "predictions": [{"probabilities": [{"label": "elk", "probability": 1.0}]}]},
        {"model": MODEL, "predictions": [{"probabilities": [{"label": "ant", "probability": None}]}]},
    ],
)
def test_predictions_of_something_else_are_one_error(content):
    service = http_server(lambda *_: (200, json.dumps(content).encode()))
    with service as url, pytest.raises(ConnectionError, match="does not answer as this service does"):
        asyncio.run(classify_dataset(url, toy_test_set(), 2))


def test_what_a_service_says_is_taken():
    answer = json.dumps({"model": MODEL, "predictions": [PREDICTION]}).encode()
    with http_server(lambda *_: (200, answer), get=lambda: (200, json.dumps(CARD | {"more": 1}).encode())) as url:
        assert fetch_card(url).classes == TOY_CLASSES
        model, probabilities = asyncio.run(classify_dataset(url, toy_test_set(), 2))
    assert model == MODEL
    assert (probabilities == 0.25).all()


def test_a_class_that_is_rounded_away_is_not_taken_for_impossible():
    """A true class below half a millionth comes as 0.0, and its image would cost 27.6 nats."""
    rounded = {"probabilities": [{"label": name, "probability": float(name == "bee")} for name in TOY_CLASSES]}
    answer = json.dumps({"model": MODEL, "predictions": [rounded]}).encode()
    dataset = toy_test_set()
    with http_server(lambda *_: (200, answer)) as url:
        _, probabilities = asyncio.run(classify_dataset(url, dataset, 2))
    rounded_away = float((dataset.labels != 1).double().mean())
    assert score(probabilities, dataset).nll == pytest.approx(rounded_away * math.log(2e6))


def test_a_model_that_changes_meanwhile_is_one_error():
    versions = iter(["a" * 12, "a" * 12, *["b" * 12] * len(toy_test_set())])

    def answer(*_):
        return 200, json.dumps({"model": MODEL | {"version": next(versions)}, "predictions": [PREDICTION]}).encode()

    with http_server(answer) as url, pytest.raises(ConnectionError, match=r"from version a{12} to b{12}: evaluate"):
        asyncio.run(classify_dataset(url, toy_test_set(), 1))

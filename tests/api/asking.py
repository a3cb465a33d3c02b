"""What the tests of the API ask with, and what a problem looks like."""

from tests.conftest import encode, noise

PNG = {"content-type": "image/png"}
PICTURE = encode(noise())


def assert_problem(answer, status, code):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:resnet:problem:{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    for secret in ("Traceback", "0x", "/app", "Error:", "site-packages"):
        assert secret not in answer.text


def post(client, content=PICTURE, headers=PNG, path="/predict"):
    return client.post(path, content=content, headers=headers)

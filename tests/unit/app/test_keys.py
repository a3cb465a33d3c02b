import hashlib
import secrets

import pytest

from app.errors import TooManyRequests
from app.keys import SINGLE, Keys, read_keys
from app.settings import Settings, SettingsError

ALICE = hashlib.sha256(b"alice's key").hexdigest()
BOB = hashlib.sha256(b"bob's key").hexdigest()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\nalice:{ALICE}\n  bob:{BOB.upper()}:2\n")
    return file


def test_a_key_is_found_by_its_digest(path):
    keys = Keys(Settings(api_keys_file=path, api_key="single"))
    assert keys.required
    assert keys.find("Bearer alice's key").name == "alice"
    assert keys.find("bearer  bob's key ").max_concurrent == 2
    assert keys.find("Bearer single").name == SINGLE
    for header in ("", "Bearer", "Bearer wrong", f"Bearer {ALICE}", "Basic alice's key", "alice's key", "Bearer \x80"):
        assert keys.find(header) is None


def test_without_keys_none_is_asked_for():
    assert not Keys(Settings()).required


@pytest.mark.parametrize(
    "key", ["schlüssel", "voilà", "Å", "\u0445"]
)  # the last three end in what Latin-1 takes for space
def test_a_key_beyond_ascii_is_found_as_a_header_carries_it(key):
    keys = Keys(Settings(api_key=key))
    assert keys.find("Bearer \t" + key.encode().decode("latin-1") + " \t").name == SINGLE


def test_every_key_is_compared_whichever_is_right(path, monkeypatch):
    keys = Keys(Settings(api_keys_file=path))
    compared = []
    real = secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    for header in ("Bearer alice's key", "Bearer bob's key", "Bearer wrong", ""):
        compared.clear()
        keys.find(header)
        assert len(compared) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"alice:{ALICE}\nalice's key\n", "line 2: not name:"),
        (f"alice:{ALICE[:-1]}\n", "line 1: not name:"),
        (f"al ice:{ALICE}\n", "line 1: not name:"),
        (f"alice:{ALICE}:0\n", "line 1: not name:"),
        (f"alice:{ALICE}:x\n", "line 1: not name:"),
        (f"alice:{ALICE}\n\nalice:{BOB}\n", "line 3: this name or key is taken"),
        (f"alice:{ALICE}\nbob:{ALICE}\n", "line 2: this name or key is taken"),
        (f"{SINGLE}:{ALICE}\n", "line 1: this name or key is taken"),
        ("# nothing\n", "holds no key"),
    ],
)
def test_a_bad_file_is_one_line_that_shows_nothing_of_what_is_in_it(path, text, reason):
    path.write_text(text)
    with pytest.raises(SettingsError, match=reason) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)
    for secret in (ALICE[:-1], BOB, "alice", "\n"):
        assert secret not in str(caught.value)


def test_a_name_of_64_characters_and_a_limit_of_six_digits_are_the_longest(path):
    path.write_text(f"{'a' * 64}:{ALICE}:999999\n")
    assert read_keys(path)[0].max_concurrent == 999_999
    for line in (f"{'a' * 65}:{ALICE}\n", f"alice:{ALICE}:1000000\n"):
        path.write_text(line)
        with pytest.raises(SettingsError, match="line 1: not name:"):
            read_keys(path)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        read_keys(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not a text file"):
        read_keys(tmp_path / "keys")


def test_reloading_replaces_the_keys_and_a_bad_file_leaves_them(path, caplog):
    caplog.set_level("INFO")
    keys = Keys(Settings(api_keys_file=path, api_key="single"))
    path.write_text(f"bob:{BOB}\n")
    assert keys.reload()
    assert caplog.messages == [f"read 1 keys from {path}"]
    assert keys.find("Bearer alice's key") is None
    assert keys.find("Bearer bob's key").max_concurrent is None
    path.write_text("nonsense\n")
    assert not keys.reload()
    assert "line 1" in caplog.text
    assert keys.find("Bearer bob's key") is not None
    assert keys.find("Bearer single") is not None


def test_a_key_has_at_most_so_many_requests_in_flight_also_across_a_reload(path):
    keys = Keys(Settings(api_keys_file=path))
    bob = keys.find("Bearer bob's key")
    releases = [keys.take(bob), keys.take(bob)]
    with pytest.raises(TooManyRequests):
        keys.take(bob)
    keys.reload()
    with pytest.raises(TooManyRequests):
        keys.take(keys.find("Bearer bob's key"))
    releases.append(keys.take(keys.find("Bearer alice's key")))
    releases.pop(0)()
    releases.append(keys.take(bob))
    for release in releases:
        release()
    assert keys.in_flight._counts == {}


class Known:
    """A count elsewhere, which is told the names."""

    def know(self, names):
        self.names = sorted(names)


def test_who_counts_elsewhere_knows_the_names_of_all_keys_also_after_a_reload(path):
    keys, known = Keys(Settings(api_keys_file=path, api_key="single")), Known()
    keys.count_in(known)
    assert known.names == ["RESNET_API_KEY", "alice", "bob"]
    path.write_text(f"carol:{hashlib.sha256(b'carol').hexdigest()}\n")
    keys.reload()
    assert known.names == ["RESNET_API_KEY", "carol"]

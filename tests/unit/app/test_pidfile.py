import os

import pytest

from app.pidfile import find_pid, pid_file, pid_path

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_process_is_found_while_it_serves_and_not_afterwards(folder):
    with pid_file(HOST, 8000):
        assert find_pid(HOST, 8000) == os.getpid()
        assert find_pid(HOST, 8001) is None
    assert list(folder.iterdir()) == []
    assert find_pid(HOST, 8000) is None


def test_of_two_services_on_one_port_the_one_at_the_address_is_found(monkeypatch):
    with pid_file("127.0.0.1", 8000):
        monkeypatch.setattr("os.getpid", lambda: 4242)
        with pid_file("127.0.0.2", 8000):
            assert find_pid("127.0.0.2", 8000) == 4242
            assert find_pid("127.0.0.1", 8000) != 4242
            assert find_pid("127.0.0.3", 8000) is None


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_a_service_at_every_address_is_found_at_each(everywhere):
    with pid_file(everywhere, 8000):
        assert find_pid("127.0.0.1", 8000) == os.getpid()


def test_a_file_that_was_left_behind_leads_to_nobody():
    pid_path(HOST, 8000).write_text("1\n")
    assert find_pid(HOST, 8000) is None
    with pid_file(HOST, 8000):
        assert pid_path(HOST, 8000).read_text() == f"{os.getpid()}\n"


def test_a_second_service_on_the_port_leaves_the_file_of_the_first(caplog):
    with pid_file(HOST, 8000):
        with pid_file(HOST, 8000):
            assert "needs --pid" in caplog.text
        assert find_pid(HOST, 8000) == os.getpid()


def test_who_closes_the_port_leaves_the_file_to_the_next_one(caplog):
    with pid_file(HOST, 8000) as give_up:
        give_up()
        assert find_pid(HOST, 8000) is None
        with pid_file(HOST, 8000):
            give_up()
            assert find_pid(HOST, 8000) == os.getpid()
    assert caplog.text == ""


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), NotADirectoryError(20, "Not a directory")])
def test_a_file_that_cannot_be_removed_keeps_no_service_from_its_end(monkeypatch, error):
    def unlink(_path, missing_ok=False):
        raise error

    with pid_file(HOST, 8000) as give_up:
        monkeypatch.setattr("pathlib.Path.unlink", unlink)
        give_up()
        assert pid_path(HOST, 8000).exists()
        assert find_pid(HOST, 8000) is None  # the lock is gone


def test_what_another_put_there_is_not_followed(folder, caplog):
    target = folder / "precious"
    target.write_text("content")
    pid_path(HOST, 8000).symlink_to(target)
    with pid_file(HOST, 8000):
        assert "needs --pid" in caplog.text
    assert target.read_text() == "content"
    with pytest.raises(OSError, match="symbolic"):
        find_pid(HOST, 8000)


def test_a_file_of_another_user_is_not_believed(monkeypatch, caplog):
    with pid_file(HOST, 8000):
        monkeypatch.setattr("os.geteuid", lambda: 12345)
        with pytest.raises(PermissionError):
            find_pid(HOST, 8000)
    pid_path(HOST, 8000).write_text("1\n")
    with pid_file(HOST, 8000):
        assert "belongs to another user" in caplog.text
    assert pid_path(HOST, 8000).read_text() == "1\n"


def test_a_free_port_has_no_file(folder):
    with pid_file(HOST, 0):
        assert list(folder.iterdir()) == []


def test_without_a_folder_for_temporary_files_the_service_serves_all_the_same(monkeypatch, caplog):
    def missing():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", missing)
    with pid_file(HOST, 8000):
        assert "needs --pid" in caplog.text
        assert "No usable temporary directory" in caplog.text

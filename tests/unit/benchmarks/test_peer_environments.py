"""Environments of the peers' own."""

from benchmarks.peers import environments
from benchmarks.peers.contenders import CONTENDERS


def test_one_that_is_there_already_finds_the_packages_of_the_environment_that_runs_it_now(tmp_path):
    peer = next(contender for contender in CONTENDERS if contender.packages)
    (tmp_path / peer.name).mkdir()
    requirements = environments.HERE / "requirements" / f"{peer.name}.txt"
    (tmp_path / peer.name / "installed.txt").write_text(requirements.read_text())
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "numpy").symlink_to(tmp_path / "of an environment that has gone")

    environments.make(peer, tmp_path)

    assert (tmp_path / "shared" / "numpy" / "__init__.py").is_file()

"""Environments of the peers' own."""

import subprocess
import sys

import pytest

from benchmarks.peers import environments
from benchmarks.peers.contenders import CONTENDERS

PEER = next(contender for contender in CONTENDERS if contender.packages)


@pytest.fixture
def installed(tmp_path):
    """An environment that is there already; its folder of packages."""
    environment = tmp_path / PEER.name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    requirements = environments.HERE / "requirements" / f"{PEER.name}.txt"
    (environment / "installed.txt").write_text(requirements.read_text())
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    (packages / "zz_shared.pth").write_text(str(tmp_path / "shared"))
    return packages


def test_one_that_is_there_already_finds_the_packages_of_the_environment_that_runs_it_now(tmp_path, installed):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "numpy").symlink_to(tmp_path / "of an environment that has gone")

    environments.make(PEER, tmp_path)

    assert (tmp_path / "shared" / "numpy" / "__init__.py").is_file()


def test_one_that_lacks_what_a_package_needs_is_an_error_before_anything_is_measured(tmp_path, installed, capfd):
    """As where it came with our own dependencies, and does no more."""
    (installed / "peer-1.dist-info").mkdir()
    (installed / "peer-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: peer\nVersion: 1\nRequires-Dist: gone\n"
    )
    with pytest.raises(subprocess.CalledProcessError):
        environments.make(PEER, tmp_path)
    assert "peer 1 requires gone, which is not installed" in capfd.readouterr().err

"""Our service with two processes that speak HTTP in front of the one with the engine."""

from app.settings import Settings
from benchmarks.peers.engine import port
from benchmarks.peers.ours import run

if __name__ == "__main__":
    run(Settings(port=port(), http_processes=2))

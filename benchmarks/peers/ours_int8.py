"""Our service computing in eight-bit integers."""

from app.settings import Settings
from benchmarks.peers.engine import port
from benchmarks.peers.ours import run

if __name__ == "__main__":
    run(Settings(port=port(), precision="int8"))

import subprocess
import sys

from tests.conftest import ROOT


def test_an_http_process_loads_neither_torch_nor_openvino():
    code = "import sys, app.processes.http_process; print(sorted({'torch', 'openvino'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

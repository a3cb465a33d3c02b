"""TorchServe: its HTTP server in Java, batching in front of one worker process. Needs a Java runtime.

Started in an empty folder, where it leaves its logs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.engine import MAX_BATCH, port
from benchmarks.ports import free_port

# Errors only: by default every request writes lines into several files.
LOG4J = """<Configuration><Appenders><Console name="out"/></Appenders>
<Loggers><Root level="error"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""

if __name__ == "__main__":
    commands, folder = Path(sys.executable).parent, Path.cwd()
    handler = Path(__file__).with_name("torchserve_handler.py")
    archive = ["--model-name", "resnet", "--version", "1.0", "--handler", str(handler)]
    archive += ["--export-path", str(folder), "--force"]
    subprocess.run([commands / "torch-model-archiver", *archive], check=True)
    model = {"marName": "resnet.mar", "minWorkers": 1, "maxWorkers": 1, "batchSize": MAX_BATCH, "maxBatchDelay": 1}
    properties = {
        "inference_address": f"http://127.0.0.1:{port()}",
        "management_address": f"http://127.0.0.1:{free_port()}",
        "metrics_address": f"http://127.0.0.1:{free_port()}",
        "model_store": str(folder),
        "load_models": "resnet.mar",
        "models": json.dumps({"resnet": {"1.0": {**model, "responseTimeout": 120}}}),
        "job_queue_size": 1024,
        "disable_system_metrics": "true",
    }
    (folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    (folder / "log4j2.xml").write_text(LOG4J)
    command = [str(commands / "torchserve"), "--start", "--foreground", "--disable-token-auth", "--ncs"]
    command += ["--ts-config", "config.properties", "--log-config", "log4j2.xml"]
    os.execv(command[0], command)

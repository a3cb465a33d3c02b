"""Which connections each of several HTTP processes has, and clients of each of them."""

import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx


def client_ports(service):
    """For each HTTP process, the ports of the clients that it has connections with."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {
        f"socket:[{one[9]}]": port_of(one[2]) for one in fields if port_of(one[1]) == service.port and one[3] == "01"
    }

    def of(pid):
        found = set()
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.add(str(file.readlink()))
        return {ports[one] for one in found & ports.keys()}

    return [of(pid) for pid in service.children]


def port_of(address):
    return int(address.partition(":")[2], 16)


def connections(service):
    """How many connections with clients each HTTP process has."""
    return [len(ports) for ports in client_ports(service)]


@contextmanager
def kept_client(service, **headers):
    """A client that has been answered, and keeps its connection, and that connection's port."""
    limits = httpx.Limits(keepalive_expiry=60)  # after httpx's 5 s of waiting for its turn a client would come anew
    with httpx.Client(base_url=service.url, headers=headers, timeout=60, limits=limits) as client:
        answer = client.get("/livez")
        yield client, answer.extensions["network_stream"].get_extra_info("client_addr")[1]


@contextmanager
def one_each(service, **headers):
    """A client of each HTTP process, which keeps its connection."""
    with ExitStack() as stack:
        while True:
            clients = [stack.enter_context(kept_client(service, **headers))[0] for _ in range(2)]
            if all(connections(service)):
                break
            stack.close()
        yield clients


def wait_for_queue(service, images):
    while service.probe("/health").json()["queue_images"] != images:
        time.sleep(0.01)


def predict(client, content, kind="image/png", **headers):
    return client.post("/predict", content=content, headers={"content-type": kind, **headers})

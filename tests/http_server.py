"""A small HTTP server whose answers a test decides."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers a POST with what `answer` makes of its body and headers: a status and a body; a GET with `get`'s."""

    protocol_version = "HTTP/1.1"
    answer = get = None

    def do_GET(self):
        self.send(*self.get())

    def do_POST(self):
        self.send(*self.answer(self.rfile.read(int(self.headers["content-length"])), self.headers))

    def send(self, status, answer):
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextmanager
def http_server(answer=None, get=None):
    """Serve; yield the URL of the server's root."""
    answers = {"answer": staticmethod(answer), "get": staticmethod(get)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Handler,), answers))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # how soon it ends, seconds
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

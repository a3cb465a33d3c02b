"""The application under another server than its own, which speaks to it by ASGI's messages alone."""

from app.http.answering import CONNECTION


class OtherServer:
    """Stands in for the connection, which another server does not give (`AnsweringConnection`)."""

    refused_with = None

    def __init__(self, send):
        self._send = send

    def when_gone(self, callback):
        """Never call it."""

    def body_is_here(self):
        """False: it may be, but nothing says so."""
        return False

    def awaits_100_continue(self):
        """False: the server sends 100 Continue by itself."""
        return False

    def require_room(self, count):
        """Raise nothing: what clients leave unread, the server knows."""

    async def respond(self, status, headers, body):
        """Send the answer by two messages."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def headers_of_pieces(self, headers):
        """Return the same: the server decides by itself."""
        return headers


def under_another_server(app):
    """Return `app` as another server may run it."""

    async def run(scope, receive, send):
        scope.setdefault("extensions", {})[CONNECTION] = OtherServer(send)
        await app(scope, receive, send)

    return run

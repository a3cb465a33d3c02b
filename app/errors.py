"""Everything that can go wrong for a client, each with its status: the one map from errors to HTTP.

Texts are fixed: nothing of an exception, an address, a path or a stack ever reaches a client (RFC 9457 problems).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

# The metrics' reason where a connection is closed because there are too many: an idle one, or else the new one.
TOO_MANY_CONNECTIONS = "too-many-connections"
UNREAD_RESPONSE = "unread-response"

# After so long a client that was told 503 may find the service ready, or another instance of it.
RETRY_AFTER_S = 5


class ServiceError(Exception):
    """A problem that a client is told of. `code` is stable and also the metrics' reason."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"
    text: ClassVar[str] = "The service failed to answer. The request id helps its operators to find out why."

    def __init__(self, text: str | None = None, *, retry_after_s: int | None = None) -> None:
        super().__init__(self.code)
        self.detail = text or self.text
        self.retry_after_s = retry_after_s

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 object."""
        return problem_object(self.code, self.title, self.status, self.detail)

    def without_stack(self) -> Self:
        """Take from it what it holds of the calls that it came through, a picture and its pixels among it.

        In a list or a future that one of these calls holds, it would be garbage in a circle: hundreds of MB until
        Python looks for it.
        """
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


def problem_object(code: str, title: str, status: int, detail: str) -> dict[str, Any]:
    """Return the RFC 9457 object."""
    return {"type": f"urn:resnet:problem:{code}", "title": title, "status": status, "detail": detail}


class MalformedRequest(ServiceError):
    """The body is not what its content type says, or holds no image."""

    status, code, title = 400, "malformed-request", "Malformed request"
    text = "The body is empty or not what its Content-Type says."


class Unauthorized(ServiceError):
    """A key is needed and missing or wrong."""

    status, code, title = 401, "unauthorized", "Missing or wrong key"
    text = "Send the API key as 'Authorization: Bearer KEY'."


class NotFound(ServiceError):
    """No such path."""

    status, code, title = 404, "not-found", "Not found"
    text = "There is nothing at this path. GET /docs, unless it is switched off, lists what there is."


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    status, code, title = 405, "method-not-allowed", "Method not allowed"
    text = "This path does not answer to this method."


class HeaderTooSlow(ServiceError):
    """The header did not arrive in time."""

    status, code, title = 408, "header-too-slow", "Header arrived too slowly"
    text = "The request's header did not arrive in time."


class BodyTooSlow(ServiceError):
    """The body did not arrive in time."""

    status, code, title = 408, "body-too-slow", "Body arrived too slowly"
    text = "The request's body did not arrive in time."


class BodyTooLarge(ServiceError):
    """Too many bytes."""

    status, code, title = 413, "body-too-large", "Body too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than the limit of {limit_bytes} bytes.")


class TooManyImages(ServiceError):
    """Too many images in one request."""

    status, code, title = 413, "too-many-images", "Too many images"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request holds more than the limit of {limit} images.")


class UnsupportedMediaType(ServiceError):
    """A content type that `/predict` does not read."""

    status, code, title = 415, "unsupported-media-type", "Unsupported media type"
    text = (
        "Send an image as image/jpeg, image/png, image/webp, image/gif, image/bmp or application/octet-stream, "
        "images as multipart/form-data in fields named 'file', base64 in application/json, or an array as "
        "application/x-npy; not compressed."
    )


class BadParameter(ServiceError):
    """A query parameter or header that cannot be used."""

    status, code, title = 422, "bad-parameter", "Bad parameter"
    text = "A parameter has a value that cannot be used."

    @classmethod
    def of(cls, names: Iterable[str]) -> BadParameter:
        """Return the error that names these parameters."""
        return cls(f"Not a usable value: {', '.join(sorted(names))}.")


class BadBase64(ServiceError):
    """An entry of `images` is not base64."""

    status, code, title = 422, "bad-base64", "Not base64"
    text = "This entry of 'images' is not valid base64."


class UndecodableImage(ServiceError):
    """The bytes are no image of an accepted format, or a damaged one."""

    status, code, title = 422, "undecodable-image", "Image cannot be decoded"
    text = "The bytes are not an intact JPEG, PNG, WebP, GIF or BMP image."
    unread_text = "HEIC, AVIF and TIFF images (and cameras' raw files) are not read here: send them as JPEG or PNG."


class UnusableArray(ServiceError):
    """An array of another type, shape or memory order than the network's images have."""

    status, code, title = 422, "unusable-array", "Array cannot be used"

    def __init__(self, size: int) -> None:
        super().__init__(f"The array must be uint8 (N, 3, {size}, {size}) or (3, {size}, {size}) in C order.")


class TooManyPixels(ServiceError):
    """The image's header announces more pixels than allowed."""

    status, code, title = 422, "too-many-pixels", "Too many pixels"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The image has more than the limit of {limit} pixels.")


class TooManyPixelsTogether(TooManyPixels):
    """The headers of a request's images announce more pixels in all than allowed; none of them alone is at fault."""

    def __init__(self, limit: int) -> None:
        ServiceError.__init__(self, f"The request's images have more than the limit of {limit} pixels together.")


class QueueFull(ServiceError):
    """More images wait than the queue may hold."""

    status, code, title = 429, "queue-full", "Queue full"
    text = "The service has as much work as it can queue. Try again after the seconds in Retry-After."

    def __init__(self, *, retry_after_s: int | None = None, batch_s: float = 0.0) -> None:
        """`batch_s` is how long a full batch takes, 0 where that is not known."""
        super().__init__(retry_after_s=retry_after_s)
        self.batch_s = batch_s


class TooManyRequests(ServiceError):
    """A key has as many requests under way as it may."""

    status, code, title = 429, "too-many-requests", "Too many requests of this key"
    text = "This key has as many requests under way as it may. Try again after the seconds in Retry-After."


class ClientGone(ServiceError):
    """The client left before its answer; nobody reads this response."""

    status, code, title = 499, "client-gone", "Client closed the request"
    text = "The client left before its answer was ready."


class NotReady(ServiceError):
    """The service is starting, draining or broken."""

    status, code, title = 503, "not-ready", "Not ready"
    text = "The service is not ready to predict. Try again after the seconds in Retry-After."

    def __init__(self) -> None:
        super().__init__(retry_after_s=RETRY_AFTER_S)


class EngineFailed(ServiceError):
    """The engine broke or ran out of memory; the request is worth another try, elsewhere or later."""

    status, code, title = 503, "engine-failed", "Engine failed"
    text = "The engine could not compute an answer. Try again after the seconds in Retry-After."

    def __init__(self) -> None:
        super().__init__(retry_after_s=RETRY_AFTER_S)


class DeadlinePassed(ServiceError):
    """The request's deadline passed before its answer."""

    status, code, title = 504, "deadline-passed", "Deadline passed"
    text = "The request's deadline passed before its answer was ready."

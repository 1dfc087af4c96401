"""Errors of obstore's: their HTTP status, and what they say on one line."""

from __future__ import annotations

import re

from limrank.errors import first_line

_STATUS = re.compile(r"status code: (\d{3})")
_REQUEST = re.compile(r"Error performing (\w+) (\w+://[^/\s]+)\S* in .*? - (.*)")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>|\"message\": ?\"(.*?)\"", re.DOTALL)

NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
_METADATA = "169.254.169.254"


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status in an error of obstore's; None where there was no answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def reason_of(error: Exception) -> str:
    """An error on one line: what the store said, or what the client met."""
    text, status = str(error), status_of(error)
    if _METADATA in text:
        return NO_CREDENTIALS if "S3" in text else "no credentials: set GOOGLE_APPLICATION_CREDENTIALS, or a role"
    if said := _MESSAGE.search(text):
        return f"{said[1] or said[2]} (HTTP status {status})"
    if (asked := _REQUEST.search(text)) and status is None:
        return f"{asked[2]} does not answer: {asked[3]}"
    return f"{asked[1]} {asked[2]}: {asked[3]}" if asked else first_line(error)

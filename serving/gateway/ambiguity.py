"""Finds requests that two servers could read differently, to refuse them (RFC 9112 section 11.2, smuggling)."""


def ambiguity(headers: list[tuple[bytes, bytes]], version: str) -> str | None:
    """Why two servers might read this request in two ways, or None. Names are in lower case."""
    names = [name for name, _ in headers]
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and b"content-length" in names:
        return "Content-Length and Transfer-Encoding contradict each other"
    if names.count(b"content-length") > 1:
        return "there is more than one Content-Length"
    if codings and (codings != [b"chunked"] or version != "1.1"):
        return "Transfer-Encoding is not chunked alone, or not HTTP/1.1"
    if names.count(b"host") > 1 or (version == "1.1" and b"host" not in names):
        return "there must be one Host"
    return None

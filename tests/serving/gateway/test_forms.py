"""Forms as no client library writes them: every one is read, or refused as broken."""

import asyncio
import contextlib
import encodings.aliases

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from urllib3.fields import RequestField, format_header_param_rfc2231
from urllib3.filepost import encode_multipart_formdata

from serving.gateway.errors import MalformedRequest
from serving.gateway.uploads import read_uploads
from tests.conftest import encoded, photograph

PICTURE = encoded(photograph(96, 64))


def part(content=PICTURE, disposition=b'form-data; name="image"; filename="a.jpg"'):
    return b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"


def post(client, body, content_type="multipart/form-data; boundary=x"):
    return client.post("/classify", content=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("charset", ["punycode", "undefined", "unicode_escape", "utf-7", "idna", "utf-16", "nonsense"])
def test_names_are_utf_8_whatever_charset_the_form_names(client, charset, images):
    body = part(disposition='form-data; name="image"; filename="grün\\x.jpg"'.encode()) * images + b"--x--\r\n"
    answer = post(client, body, f"multipart/form-data; boundary=x; charset={charset}")
    assert answer.status_code == 200
    if images > 1:
        assert {result["filename"] for result in answer.json()["results"]} == {"grün\\x.jpg"}


@pytest.mark.parametrize(
    "body",
    [
        part(),
        part() + b"--x\r\n",
        part() + part()[:-20],
        part() + part() + b"--x-",
        part()[:-2],
        b"",
        b"--x\r\n",
    ],
    ids=["no end", "another part announced", "cut in a part", "cut in the end", "cut before the end", "empty", "begun"],
)
def test_a_form_that_was_cut_off_is_400(client, body):
    answer = post(client, body)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request")


@pytest.mark.parametrize("end", [b"--x--\r\n", b"--x--", b"--x--\r\nafterword"])
def test_a_form_ends_with_its_closing_boundary(client, end):
    assert post(client, part() + end).status_code == 200


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        (b'form-data; name="image"', ""),  # Flutter, React Native, curl -F 'image=<photo.jpg'
        (b"form-data; name=image", ""),
        (b'form-data; name="image[]"; filename="a.jpg"', "a.jpg"),  # axios, PHP
        (b'form-data; name="image[0]"; filename="a.jpg"', "a.jpg"),
        (b"form-data; name=\"image\"; filename*=utf-8''%E5%9B%BE.jpg", "图.jpg"),  # urllib3 before 2
        (b"form-data; name=\"image\"; filename*=ISO-8859-1''gr%FCn%22%5C.jpg", 'grün"\\.jpg'),
        (b'form-data; name="image"; filename*="UTF-8\'\'a%20b.jpg"', "a b.jpg"),
        (b'form-data; name="image"; filename="plain.jpg"; filename*=utf-8\'\'%E5%9B%BE.jpg', "plain.jpg"),
    ],
)
def test_parts_as_frameworks_write_them_are_files(client, disposition, filename):
    answer = post(client, part(disposition=disposition) * 2 + b"--x--\r\n")
    assert answer.status_code == 200, answer.text
    assert [result["filename"] for result in answer.json()["results"]] == [filename] * 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_urllib3_sends_a_name_that_is_not_ascii(client):
    """As its `format_header_param_rfc2231` writes it, which was the default before 2.0."""
    field = RequestField("image", PICTURE, filename="图.jpg", header_formatter=format_header_param_rfc2231)
    field.make_multipart(content_type="image/jpeg")
    body, content_type = encode_multipart_formdata([field])
    assert b"filename*=" in body
    assert post(client, body, content_type).status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (part(disposition=b'form-data; name="file"; filename="a.jpg"'), "it has 'file'"),
        (part(PICTURE * 4, b'form-data; name="files"'), "the field 'files' has no file name"),
        (part(b"1", b'form-data; name="a"') + part(b"2", b'form-data; name="b"'), "it has 'a', 'b'"),
        (b"", "it has no field"),
        (part(b"photo.jpg", b'form-data; name="image"'), "holds a text, not a file"),  # curl without the @
    ],
)
def test_the_refusal_names_the_fields_that_came(client, body, named):
    answer = post(client, body + b"--x--\r\n")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request")
    assert named in answer.json()["detail"]
    assert "curl -F image=@photo.jpg" in answer.json()["detail"]


def read(content_type, body):
    messages = iter([{"type": "http.request", "body": body[:40], "more_body": True}])

    async def receive():
        return next(messages, {"type": "http.request", "body": body[40:], "more_body": False})

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}
    return asyncio.run(read_uploads(Request(scope, receive), max_images=64))


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([*encodings.aliases.aliases, "undefined", "punycode", "idna", "unicode_escape"]),
    st.lists(st.binary(max_size=40) | st.sampled_from([b'; filename="a"', b'; name="image"', b"\r\nA: "]), max_size=4),
    st.binary(max_size=60),
    st.binary(max_size=20),
)
def test_nonsense_in_a_form_is_read_or_refused(charset, disposition, rest, more):
    content_type = f"multipart/form-data; charset={charset}; boundary=x".encode() + more
    with contextlib.suppress(MalformedRequest):
        read(content_type, part(disposition=b"form-data" + b"".join(disposition)) + rest + b"\r\n--x--")

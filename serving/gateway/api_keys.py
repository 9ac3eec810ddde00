"""API keys, stored only as SHA-256 and compared in constant time; several are valid at once, so that they can be
changed.

A key is a long random string, so a fast hash is enough: nobody can try 2^128 of them.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deit.errors import ServingError

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "DEIT_API_KEYS"
"""Keys themselves, separated by commas. It is not an option, because every local user can read a command line."""

MIN_KEY_CHARACTERS = 20

LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64})\s+(?P<name>[A-Za-z0-9._-]{1,64})")


@dataclass
class ApiKeys:
    """SHA-256 by the name of the key; names are for logs and limits, not secret. Replaced whole by `reload`."""

    digests: Mapping[str, bytes]

    def reload(self, file: Path | None, from_environment: str | None) -> None:
        """Read the file again. If it cannot be read, or has no key, the old keys stay, and the log says why."""
        try:
            keys = load_api_keys(file, from_environment)
        except ServingError as error:
            logger.error("the API keys are unchanged: %s", error)
            return
        if keys is not None:
            before, self.digests = self.digests, keys.digests
            new, gone = sorted(keys.digests.keys() - before.keys()), sorted(before.keys() - keys.digests.keys())
            logger.info("%d API keys; new: %s; gone: %s", len(keys.digests), _listed(new), _listed(gone))

    def name_of(self, key: str) -> str | None:
        """The name of this key, or None. Takes equally long for every key."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, digest in self.digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def load_api_keys(file: Path | None, from_environment: str | None) -> ApiKeys | None:
    """The keys of the file and of the environment variable; None when neither is given.

    Raises:
        ServingError: a key is too short, or the file cannot be read. Messages never contain a key or a line of the
            file.
    """
    digests: dict[str, bytes] = {}
    if from_environment is not None:
        for number, key in enumerate(filter(None, map(str.strip, from_environment.split(","))), 1):
            if len(key) < MIN_KEY_CHARACTERS:
                raise ServingError(
                    f"key {number} in {ENVIRONMENT_VARIABLE} has {len(key)} characters, and {MIN_KEY_CHARACTERS} are "
                    "needed; make one with: openssl rand -base64 32"
                )
            digests[f"environment-{number}"] = hashlib.sha256(key.encode()).digest()
    if file is not None:
        digests |= _read(file)
    if not digests:
        if file is None and from_environment is None:
            return None
        raise ServingError(
            f"{file or ENVIRONMENT_VARIABLE} does not contain a key; add one (docs/serving.md says how), or leave it "
            "out"
        )
    return ApiKeys(digests)


def _read(file: Path) -> dict[str, bytes]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"the file of API keys {file} cannot be read: {error}") from error
    digests = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ServingError(
                f"{file} line {number} is not a SHA-256 in hexadecimal and a name; write one with: "
                'printf %s "$KEY" | sha256sum'
            )
        if match["name"] in digests:
            raise ServingError(f"{file} line {number}: the name {match['name']} is taken; give each key its own")
        digests[match["name"]] = bytes.fromhex(match["digest"])
    return digests

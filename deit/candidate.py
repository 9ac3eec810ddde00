"""A model or version that is tried on a share of another model's traffic before it replaces that model.

A model has at most one candidate. It is named in `parameters` of the model's config.pbtxt, so it reaches a running
server like a new version, or in the options of `deit serve`, which take precedence.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

CANDIDATE_PARAMETER = "candidate"
"""Key in config.pbtxt's parameters; the value is `CandidateModel.to_json()`."""

Mode = Literal["shadow", "canary"]

OPTION = re.compile(r"(?P<of>[^=/:,]+)=(?P<model>[^=/:,]+)(/(?P<version>[1-9]\d*))?:(?P<percent>\d+(\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class CandidateModel:
    """Attributes:
    mode: "shadow" if its predictions are only compared, "canary" if callers get them.
    percent: share of the model's requests; 0 for none.
    model: its name, which is that of the model itself for another version of it.
    version: None for the newest.
    preprocessing, provenance: of another version of the same model, as in its own config.pbtxt, because Triton gives
        one configuration for all versions of a model; None for another model.
    """

    mode: Mode
    percent: float
    model: str
    version: str | None = None
    preprocessing: str | None = None
    provenance: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("shadow", "canary"):
            raise ValueError(f"the mode is {self.mode!r}; choose shadow or canary")
        if not 0 <= self.percent <= 100:
            raise ValueError(f"the share is {self.percent:g} %; give 0 to 100")

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        return f"{self.mode} {self.model}{version} with {self.percent:g} %"

    def takes(self, request_id: str) -> bool:
        """Whether a request is in its share.

        The id decides, so gateways and retries agree, and requests in the share stay in it when it grows.
        """
        return is_in_share(request_id, self.percent, of="candidate")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CandidateModel":
        """Raises ValueError."""
        fields: dict[str, Any] = json.loads(text)
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a description of a candidate: {error}") from error


def is_in_share(request_id: str, percent: float, *, of: str) -> bool:
    """Whether a request is in the sample of `percent` %, by a hash of its id; samples `of` other things are
    independent."""
    digest = hashlib.blake2b(f"{of} {request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < percent / 100 * 2**64


def candidates_of(mode: Mode, text: str) -> dict[str, CandidateModel]:
    """By model, out of an option such as "deit=deit_next:5,other=other/3:10": MODEL=CANDIDATE[/VERSION]:PERCENT.

    Raises:
        ValueError: what is wrong, without the name of the option.
    """
    found: dict[str, CandidateModel] = {}
    for each in filter(None, map(str.strip, text.split(","))):
        match = OPTION.fullmatch(each)
        if match is None:
            raise ValueError(
                "give MODEL=CANDIDATE:PERCENT or MODEL=CANDIDATE/VERSION:PERCENT, such as deit=deit_next:5"
            )
        if match["of"] in found:
            raise ValueError(f"{match['of']} is named twice, and a model has one candidate")
        if match["of"] == match["model"] and match["version"] is None:
            raise ValueError(
                f"{each} names the model itself; name another model, or a version: {each.replace(':', '/2:')}"
            )
        found[match["of"]] = CandidateModel(
            mode=mode, percent=float(match["percent"]), model=match["model"], version=match["version"]
        )
    return found

"""What errors of the two S3 clients mean, what to do about them, and for how long it is worth trying again.

pyarrow describes errors in texts, boto3 in codes. This module understands both and imports neither library.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from stitchgrid.printable import masked

ARROW_CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
ARROW_OWN_CODE = re.compile(r"Unable to parse ExceptionName: (\w+)")
CURL_CODE = re.compile(r"curlCode: (\d+)")
CURL_NEVER_REACHED = {"5", "6", "7"}  # proxy or host not found, connection refused

BUSY_SECONDS = 60.0  # for a server that is overloaded or stops answering: it may recover
ABSENT_SECONDS = 8.0  # for a server that cannot be reached at all: its name is probably wrong

DENIED = {
    "accessdenied",
    "allaccessdisabled",
    "expiredtoken",
    "invalidaccesskeyid",
    "invalidclienttokenid",
    "invalidtoken",
    "missingauthenticationtoken",
    "requestexpired",
    "requesttimetooskewed",
    "signaturedoesnotmatch",
    "unrecognizedclient",
}
ELSEWHERE = {"permanentredirect", "authorizationheadermalformed", "illegallocationconstraintexception"}
BUSY = {
    "conditionalrequestconflict",  # two conditional writes at once: the result is known when one has ended
    "internalerror",
    "internalfailure",
    "operationaborted",
    "requesttimeout",
    "serviceunavailable",
    "slowdown",
    "throttling",
}
NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "SSOError",
    "TokenRetrievalError",
}
UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"}
SILENT = {"ReadTimeoutError", "ConnectionClosedError", "HTTPClientError", "ResponseStreamingError"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error in words for users."""

    reason: str
    remedy: str
    patience: float = 0.0  # seconds for which the request may be repeated


def explain(error: BaseException, *, bucket: str, endpoint: str | None) -> Problem:
    """Return what an error of pyarrow or boto3 means, without what may be secret in the addresses it repeats."""
    found = _explained(error, bucket=bucket, endpoint=endpoint)
    return replace(found, reason=masked(found.reason))


def _explained(error: BaseException, *, bucket: str, endpoint: str | None) -> Problem:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"FileNotFoundError"}:
        return Problem(reason="there is no such object", remedy="check that the store is complete.")
    if kinds & NO_CREDENTIALS:
        return Problem(
            reason=f"no usable credentials were found ({_line(error)})",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, here and for all workers.",
        )
    code, status, curl = _codes(error)
    if kinds & UNREACHABLE or curl in CURL_NEVER_REACHED:
        return Problem(
            reason=f"{endpoint or 'the object store'} cannot be reached ({_line(error)})",
            remedy="check the network, AWS_ENDPOINT_URL and endpoint_override in the store's URI.",
            patience=ABSENT_SECONDS,
        )
    if kinds & SILENT or code == "networkconnection":
        return Problem(
            reason=f"{endpoint or 'the object store'} does not answer in time ({_line(error)})",
            remedy="check the network and the server; what is stored stays, and 'stitchgrid resume' goes on.",
            patience=BUSY_SECONDS,
        )
    return _answered(error, code, status, bucket)


def pauses(random: Random) -> Iterator[float]:
    """Yield seconds to wait between attempts: doubled each time, ten at most, and random so that clients differ."""
    pause = 0.1
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(2 * pause, 10.0)


def _answered(error: BaseException, code: str, status: int, bucket: str) -> Problem:
    """Return what a server's own answer means."""
    if code == "nosuchbucket":
        return Problem(reason=f"there is no bucket {bucket!r}", remedy="make it, or name another store with --store.")
    if code in ELSEWHERE or status in (301, 307):
        return Problem(
            reason=f"the bucket {bucket!r} is in another region",
            remedy="set AWS_REGION, or append ?region=REGION to the store's URI.",
        )
    if code in DENIED or status in (401, 403):
        return Problem(
            reason=f"access to the bucket {bucket!r} is denied ({_line(error)})",
            remedy="check the credentials, and that they may s3:ListBucket, s3:GetObject, s3:PutObject and "
            "s3:DeleteObject there.",
        )
    if code in BUSY or status in (408, 429) or (status >= 500 and status != 501):
        return Problem(
            reason=f"the object store is overloaded ({_line(error)})",
            remedy="try again later, or with fewer workers: what is stored stays, and 'stitchgrid resume' goes on.",
            patience=BUSY_SECONDS,
        )
    return Problem(reason=_line(error), remedy="check the region, the endpoint and the credentials.")


def _codes(error: BaseException) -> tuple[str, int, str]:
    """Return an error's code in lower case, its HTTP status (0 if unknown) and curl's code."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # boto3's ClientError
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return str(response.get("Error", {}).get("Code", "")).lower(), int(status), ""
    said = str(error)
    curl = CURL_CODE.search(said)
    if not (found := ARROW_CODE.search(said)):
        return "", 0, ""
    own = ARROW_OWN_CODE.search(said)
    code = (own or found)[1].replace("_", "").lower()
    return code, int(found[2] or 0), curl[1] if curl else ""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__

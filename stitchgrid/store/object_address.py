"""Where a store in a bucket lies: `s3://BUCKET/PREFIX?endpoint_override=...&region=...`, without any secret."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from stitchgrid.errors import StoreError, nearest
from stitchgrid.printable import masked

PARAMETERS = ("endpoint_override", "region")
SECRETS = ("access_key", "secret_key", "session_token")  # as pyarrow takes them in a URI
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
INSTEAD = (
    "credentials in a store's URI would end in logs and reports: leave them out, and set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for this command and for all workers."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectAddress:
    """A prefix in a bucket, and how to get there where that is not the default."""

    bucket: str
    prefix: str  # without slashes at its ends; may be empty
    endpoint: str | None = None  # http://HOST:PORT
    region: str | None = None

    @property
    def uri(self) -> str:
        """What `parse_address` turns into this address again, whatever the environment says."""
        known = {"endpoint_override": self.endpoint, "region": self.region}
        query = urlencode({name: value for name, value in known.items() if value is not None}, safe=":/")
        return f"{self.where('').rstrip('/')}{'?' if query else ''}{query}"

    def key(self, name: str) -> str:
        """Return the key of a file of the store in its bucket."""
        return f"{self.prefix}/{name}".strip("/")

    def where(self, name: str) -> str:
        """Return the full name of a file of the store."""
        return f"s3://{self.bucket}/{quote(self.key(name))}"


def parse_address(uri: str, environment: Mapping[str, str] = os.environ) -> ObjectAddress:
    """Return the address in a URI; what it leaves open comes from AWS's usual variables.

    >>> parse_address("s3://bucket/my/grid?region=eu-west-1", {}).where("store.json")
    's3://bucket/my/grid/store.json'

    Raises:
        StoreError: If there is a secret in it, which the message does not repeat, or it is not such a URI.
    """
    parts = urlsplit(uri)
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc or parameters.keys() & set(SECRETS):
        raise StoreError(f"the URI of the store at s3://{parts.netloc.rpartition('@')[2]} holds credentials; {INSTEAD}")
    if unknown := sorted(parameters.keys() - set(PARAMETERS)):
        raise StoreError(f"unknown parameter {unknown[0]!r} in the store's URI; {nearest(unknown[0], PARAMETERS)}.")
    prefix = unquote(parts.path).strip("/")
    if not parts.netloc or parts.fragment or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise StoreError(f"wanted a store like s3://bucket/prefix, got {masked(uri)!r}; name another with --store.")
    return ObjectAddress(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=_endpoint(parameters.get("endpoint_override") or _first(environment, ENDPOINTS)),
        region=parameters.get("region") or _first(environment, REGIONS),
    )


def _endpoint(text: str | None) -> str | None:
    """Return an endpoint with its scheme; `host:port` alone is taken as https."""
    if text is None:
        return None
    parts = urlsplit(text if "://" in text else f"https://{text}")
    if "@" in parts.netloc:
        raise StoreError(f"the endpoint of the store holds credentials; {INSTEAD}")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
        raise StoreError(
            f"wanted an endpoint like http://127.0.0.1:9000, got {masked(text)!r}; change it in the store's URI."
        )
    return f"{parts.scheme}://{parts.netloc}"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)

"""The two S3 clients: pyarrow reads and lists; boto3 writes where it is installed, since it can write conditionally.

Neither is imported before a store in a bucket is opened. Both try each request once; `ObjectFiles` repeats requests, by
the same rules for both.
"""

import os
import threading
from typing import Any, Protocol

import pyarrow as pa

from stitchgrid.errors import StoreError
from stitchgrid.store.object_address import ObjectAddress

CONNECT_SECONDS = 5
SILENCE_SECONDS = 30  # without a byte from a server that was reached
NUM_CONNECTIONS = 16
ARROW_ERRORS: tuple[type[Exception], ...] = (OSError, pa.ArrowException)


class Writing(Protocol):
    """Whole objects in one request each."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whether or not there is one."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""


class ObjectClients:
    """Clients of one bucket, made when first needed; safe to use from several threads."""

    def __init__(self, address: ObjectAddress):
        self.address = address
        self.errors = ARROW_ERRORS
        self._lock = threading.RLock()
        self._session: Any = None  # boto3's, which finds credentials in more ways than pyarrow does
        self._writing: Writing | None = None
        self._reading: tuple[Any, Any] | None = None  # credentials, the file system made with them

    @property
    def writing(self) -> Writing:
        """The client that writes."""
        with self._lock:
            if self._writing is None:
                try:
                    import boto3
                    import botocore.exceptions as problems
                except ImportError:
                    self._writing = ArrowWriting(self)
                else:
                    self.errors = (*ARROW_ERRORS, problems.BotoCoreError, problems.ClientError)
                    self._session = boto3.Session(region_name=self.address.region)
                    self._writing = BotoWriting(self._session, self.address)
            return self._writing

    @property
    def reading(self) -> Any:
        """The `pyarrow.fs.S3FileSystem` that reads, with the credentials that boto3 finds now."""
        with self._lock:
            _ = self.writing  # decides which library finds credentials
            keys = None if self._session is None else self._keys()
            if self._reading is None or self._reading[0] != keys:
                self._reading = keys, _file_system(self.address, keys)
            return self._reading[1]

    def _keys(self) -> Any:
        from botocore.exceptions import NoCredentialsError

        credentials = self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError()
        return credentials.get_frozen_credentials()


def _file_system(address: ObjectAddress, keys: Any) -> Any:
    from pyarrow import fs

    return fs.S3FileSystem(
        access_key=keys and keys.access_key,
        secret_key=keys and keys.secret_key,
        session_token=keys and keys.token,
        region=address.region or ("us-east-1" if address.endpoint else None),
        endpoint_override=address.endpoint,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENCE_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        background_writes=False,
        allow_delayed_open=True,  # small objects become one PUT
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )


class BotoWriting:
    """Writing by boto3: one PUT, conditional where it has to be."""

    def __init__(self, session: Any, address: ObjectAddress):
        from botocore.config import Config

        self._bucket = address.bucket
        self._client = session.client(
            "s3",
            endpoint_url=address.endpoint,
            region_name=address.region or session.region_name or "us-east-1",
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=SILENCE_SECONDS,
                max_pool_connections=NUM_CONNECTIONS,
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Other servers than AWS's may know neither names of buckets in host names nor the newest checksums.
                s3={"addressing_style": "path" if address.endpoint else "auto"},
                request_checksum_calculation="when_required",
            ),
        )

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whether or not there is one."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Raises:
            StoreError: If the server knows no conditional writes.
        """
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
        except self._client.exceptions.ClientError as problem:
            code = problem.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412"):
                return False
            if code in ("NotImplemented", "501"):
                raise StoreError(
                    f"the object store of the bucket {self._bucket!r} cannot write on the condition that there is no "
                    "such object (If-None-Match); use a newer version of it, or uninstall boto3 to write without."
                ) from problem
            raise
        return True

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""
        self._client.delete_object(Bucket=self._bucket, Key=key)


class ArrowWriting:
    """Writing by pyarrow, which has no conditional writes: another writer within the same instant goes unnoticed."""

    def __init__(self, clients: ObjectClients):
        self._clients = clients
        self._bucket = clients.address.bucket

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whether or not there is one.

        Beyond 10 MB pyarrow sends several pieces, and on an error joins those that arrived. Only files whose name or
        manifest holds their digest are that large, so that readers notice a file that was cut short.
        """
        stream = self._clients.reading.open_output_stream(f"{self._bucket}/{key}")
        stream.write(data)
        stream.close()

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that was not there a moment ago; return True."""
        self.put(key, data)
        return True

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""
        try:
            self._clients.reading.delete_file(f"{self._bucket}/{key}")
        except FileNotFoundError:
            return

"""Which file system serves a URI: the one of fsspec, which does everything, and the one of pyarrow, which reads fast.

Addresses and keys come from environment variables, looked up at each call: a changed variable is followed.
"""

from __future__ import annotations

import os
import urllib.request
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import fsspec

from rayssl.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
_GCS_RETRIES_S = 5
GOOGLE, AZURE = ("gs", "gcs"), ("az", "abfs", "abfss")


def scheme(uri: str) -> str:
    """The scheme of ``uri``: ``s3``, ``gs`` and so on; ``file`` for a local path."""
    before, separator, _ = uri.partition("://")
    return before if separator else "file"


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of ``uri``, and the path on it.

    Raises:
        StorageError: the scheme is not supported or its package is not installed, a file URI is not absolute, or the
            URI names no bucket.
    """
    kind, rest = scheme(uri), uri.partition("://")[2]
    if kind == "file":
        return fsspec.filesystem("file"), local_path(uri)
    if kind == "s3":
        bucket_of(uri)
        return _s3(), rest.rstrip("/")
    found = arrow_filesystem(uri)
    if found is not None:
        from fsspec.implementations.arrow import ArrowFSWrapper

        return ArrowFSWrapper(found[0], skip_instance_cache=True), found[1]
    return _other(uri, kind)


def local_path(uri: str) -> str:
    """The absolute path of a local path or a file URI. Raises `StorageError` if a file URI is not absolute."""
    if "://" not in uri:
        return os.path.abspath(os.path.expanduser(uri))
    rest = uri.partition("://")[2]
    if not rest.startswith("/"):
        raise StorageError(f"{uri}: write a file URI with an absolute path, file:///folder/name")
    return os.path.abspath(unquote(rest))


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str] | None:
    """The file system of pyarrow for ``uri``, and the path on it; None if ``uri`` is not of s3, gs or az.

    One object for each address and set of keys is kept in the process; a forked process makes its own.

    Raises:
        StorageError: the URI names no bucket, half of the keys is missing, or this pyarrow was built without the store.
    """
    kind, path = scheme(uri), uri.partition("://")[2].rstrip("/")
    if kind not in ("s3", *GOOGLE, *AZURE):
        return None
    bucket = bucket_of(uri)
    try:
        if kind == "s3":
            return _s3_arrow(uri, bucket), path
        if kind in GOOGLE:
            return _google(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST", "")), path
        container, _, host = bucket.partition("@")
        account = host.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        if not account:
            raise StorageError(f"{uri}: names no account; set AZURE_STORAGE_ACCOUNT_NAME")
        key, token = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"), os.environ.get("AZURE_STORAGE_SAS_TOKEN")
        return _azure(os.getpid(), account, key, None if key else token), container + path[len(bucket) :]
    except ImportError:
        raise StorageError(f"{uri}: this pyarrow was built without '{kind}://'; install pyarrow's wheel") from None


def bucket_of(uri: str) -> str:
    """The bucket or container that ``uri`` names; "" if it is a file's. Raises `StorageError` if it names none."""
    bucket, _, _ = uri.partition("://")[2].partition("/")
    if not bucket and scheme(uri) != "file":
        raise StorageError(f"{uri}: names no bucket; write {scheme(uri)}://bucket/key")
    return bucket


def _other(uri: str, kind: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if kind not in fsspec.available_protocols():
        raise StorageError(f"{uri}: '{kind}://' is not supported; use s3://bucket/key, file:///path or a local path")
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        text = " ".join(str(error).split())
        raise StorageError(f"{uri}: '{kind}://' needs a package that is not installed ({text}); install it") from None
    except Exception as error:
        text = " ".join(str(error).split())
        raise StorageError(f"{uri}: '{kind}://' cannot be used ({type(error).__name__}: {text})") from None
    return fs, path if kind in ("http", "https") else path.rstrip("/")


_S3_SETTINGS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL")


def _check_s3(*settings: str | None) -> None:
    """Raises `StorageError` for values of `_S3_SETTINGS` with which no request can be made."""
    for name, value in zip(_S3_SETTINGS, settings, strict=True):
        if any(map(str.isspace, value or "")):
            raise StorageError(f"{name}: has a space or the end of a line in it, as from a file; store it without")
    key, secret, _, endpoint = settings
    if (not key) != (not secret):
        raise StorageError("half of the credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or none")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise StorageError(f"AWS_ENDPOINT_URL={endpoint}: must begin with http:// or https://")


def _s3() -> fsspec.AbstractFileSystem:
    # an empty value, as from an unset variable of a template, is none
    return _s3_fsspec(os.getpid(), *(os.environ.get(name) or None for name in _S3_SETTINGS))


@cache  # never destroyed: a forked process must not close the connections of its parent
def _s3_fsspec(
    process: int, key: str | None, secret: str | None, token: str | None, endpoint: str | None
) -> fsspec.AbstractFileSystem:
    _check_s3(key, secret, token, endpoint)
    # Only our own attempts count: the layers below would multiply the retries, and a refused connection would take a
    # minute to be reported.
    fs = fsspec.filesystem(
        "s3",
        key=key,
        secret=secret,
        token=token,
        endpoint_url=endpoint,
        use_listings_cache=False,
        config_kwargs={
            "retries": {"max_attempts": 0},
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
        },
    )
    fs.retries = 1
    return fs


def _s3_arrow(uri: str, bucket: str) -> pyarrow.fs.FileSystem:
    get = os.environ.get
    key, secret = get("AWS_ACCESS_KEY_ID") or None, get("AWS_SECRET_ACCESS_KEY") or None
    token = get("AWS_SESSION_TOKEN") or None if key else None
    region = get("AWS_REGION") or get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = get("AWS_ENDPOINT_URL") or ""
    if not endpoint:
        region = _region(bucket) or region
    return _s3_client(os.getpid(), endpoint, key, secret, token, region, get("AWS_CA_BUNDLE") or None)


@cache  # never destroyed, as in `_s3_fsspec`
def _s3_client(
    process: int,
    endpoint: str,
    key: str | None,
    secret: str | None,
    token: str | None,
    region: str,
    authorities: str | None,
) -> pyarrow.fs.FileSystem:
    from pyarrow import fs

    _check_s3(key, secret, token, endpoint)
    address = urlsplit(endpoint)
    return fs.S3FileSystem(
        access_key=key,
        secret_key=secret,
        session_token=token,
        region=region,
        scheme=address.scheme or None,
        endpoint_override=(address.netloc + address.path).rstrip("/") or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,  # without a byte
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # as in `_s3_fsspec`
        tls_ca_file_path=authorities,
        proxy_options=_proxy(endpoint or f"https://s3.{region}.amazonaws.com"),
    )


@cache
def _region(bucket: str) -> str:
    """The region of a bucket of AWS: pyarrow does not follow the redirect to it, as s3fs does; empty if unknown."""
    from pyarrow import fs

    try:
        return str(fs.resolve_s3_region(bucket))
    except Exception:  # no such bucket, or only a private address answers: the first read says what is wrong
        return ""


def _proxy(endpoint: str) -> str | None:
    """The proxy that the environment names for ``endpoint``: pyarrow itself looks for none."""
    address = urlsplit(endpoint)
    if urllib.request.proxy_bypass(address.hostname or ""):
        return None
    return urllib.request.getproxies().get(address.scheme)


@cache
def _google(process: int, emulator: str) -> pyarrow.fs.FileSystem:
    from pyarrow import fs

    limits: dict[str, Any] = {"retry_time_limit": timedelta(seconds=_GCS_RETRIES_S)}
    if emulator:
        address = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
        limits |= {"anonymous": True, "scheme": address.scheme, "endpoint_override": address.netloc}
    return fs.GcsFileSystem(**limits)


@cache
def _azure(process: int, account: str, key: str | None, token: str | None) -> pyarrow.fs.FileSystem:
    from pyarrow import fs

    return fs.AzureFileSystem(account, account_key=key, sas_token=token)

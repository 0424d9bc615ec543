"""Tries an operation of storage several times, and turns its error into one line that names the URI and the way out.

What a store does for a moment, or for minutes, may pass: no answer, a reset, a server error, too many requests. Such an
operation is tried `ATTEMPTS` times within seconds, so that a wrong address is told at once. A job whose store has
answered calls `be_patient`: from then on it is tried for so many seconds. An absent bucket and refused keys never pass.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import botocore.exceptions  # type: ignore[import-untyped, unused-ignore]

from rayssl.errors import StorageError, StorageOutage
from rayssl.storage import stores

ATTEMPTS = 4
FIRST_WAIT_S = 0.2
MOST_WAIT_S = 15.0
TELL_S = 60.0  # between two lines about an operation that is tried again
PATIENCE = "RAYSSL_STORAGE_PATIENCE_S"  # in the environment, so that processes on other nodes are patient, too
_FULL = (errno.ENOSPC, errno.EDQUOT)
ABSENT = (errno.ENOENT, errno.ENOTDIR)  # `StorageError.errno` is one of these if there is no such file
_DENIED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "ExpiredToken", "403", "401")
_DENIED_TEXT = re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|OAuth2|Authenticat|Authoriz|\b40[13]\b")
# What pyarrow says if the store gave no answer, or an answer that the next attempt may not get.
_PASSING = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT)"
    r"|HTTP status (429|5\d\d)"
)
_CURL = re.compile(r"curlCode: (\d+), ([^;]+)")
_NOT_CONNECTED = ("6", "7")  # curl's codes: no such host, no connection

T = TypeVar("T")


def be_patient(seconds: float) -> None:
    """From now on, this process and those that it starts try again for ``seconds`` what may pass."""
    os.environ[PATIENCE] = f"{seconds:g}"


def attempt(uri: str, action: Callable[[], T]) -> T:
    """The result of ``action``, which is tried again after transient errors: `ATTEMPTS` times, or see `be_patient`.

    Raises:
        StorageOutage: the store gave no good answer in that time.
        StorageError: for every other error of storage.
    """
    patience = float(os.environ.get(PATIENCE) or 0)
    wait, began, count = FIRST_WAIT_S, time.monotonic(), 0
    told = began
    while True:
        count += 1
        try:
            return action()
        except Exception as error:
            if isinstance(error, StorageError) or not _is_storage_failure(uri, error):
                raise
            if not _is_transient(uri, error, patience > 0):
                raise _explain(uri, error) from None
            now = time.monotonic()
            if count >= ATTEMPTS and now - began >= patience:
                raise _outage(_explain(uri, error), count, now - began) from None
            if patience and now - told >= TELL_S:
                told = now
                line = f"{_outage(_explain(uri, error), count, now - began)}; tries for {patience:g} s"
                sys.stderr.write(f"{line}\n")
        # jittered, so that the ranks of a job do not ask all at once
        time.sleep(
            min(wait, max(0.1, began + patience - now) if count >= ATTEMPTS else wait) * random.uniform(0.7, 1.0)
        )
        wait = min(3 * wait, MOST_WAIT_S)


def _outage(error: StorageError, count: int, seconds: float) -> StorageOutage:
    text, some = str(error), f" in {ATTEMPTS} attempts"
    if count > ATTEMPTS:
        many = f" in {count} attempts, {seconds:.0f} s"
        text = text.replace(some, many, 1) if some in text else f"{text} ({many.strip()})"
    made = StorageOutage(text)
    made.errno = error.errno
    return made


def is_passing(error: OSError) -> bool:
    """Whether pyarrow's ``error`` is one of the network, or one with which an overloaded S3 server answers."""
    return bool(_PASSING.search(str(error)))


def _is_storage_failure(uri: str, error: Exception) -> bool:
    if stores.scheme(uri) not in ("file", "s3"):
        return True  # each file system of fsspec has errors of its own
    kinds = (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, asyncio.TimeoutError)
    return isinstance(error, kinds) or type(error).__module__.startswith(("aiohttp", "aiobotocore", "fsspec", "s3fs"))


def _is_transient(uri: str, error: Exception, patient: bool) -> bool:
    kind = stores.scheme(uri)
    if kind == "file" and patient and getattr(error, "errno", None) in _FULL:
        return True  # somebody may free some space before an hour of work is lost
    if kind == "file" or isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    if kind in (*stores.GOOGLE, *stores.AZURE):
        return False  # their clients try again themselves
    if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.ParamValidationError)):
        return False
    if kind != "s3":
        return isinstance(error, (OSError, asyncio.TimeoutError)) and int(getattr(error, "status", 500)) >= 500
    status = int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status == 0 or status == 429 or status >= 500


def _response(error: BaseException) -> dict[str, Any]:
    """The server's answer that led to an error of s3fs, whose cause is botocore's error; empty without an answer."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _explain(uri: str, error: Exception) -> StorageError:
    kind = stores.scheme(uri)
    if kind == "file":
        return _explain_local(uri, error)
    return _explain_s3(uri, error) if kind == "s3" else _explain_other(uri, error)


def _explain_s3(uri: str, error: Exception) -> StorageError:
    code = str(_response(error).get("Error", {}).get("Code", ""))
    text = _line(error)
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return _error(errno.EINVAL, f"{uri}: not the URI of a file; write s3://bucket/key")
    if code == "NoSuchBucket" or "bucket does not exist" in text:
        return _error(errno.ENXIO, f"{uri}: there is no bucket '{bucket}'; create it, or correct the URI")
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return _error(errno.EACCES, f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, PermissionError) or code in _DENIED:
        message = f"{uri}: access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        return _error(errno.EACCES, message)
    if isinstance(error, FileNotFoundError):
        return _explain_absent(uri, bucket)
    curl = _CURL.search(text)
    if _response(error) or ("AWS Error" in text and not curl):
        return _error(errno.EIO, f"{uri}: the object store answered '{text}'")
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or "the default AWS endpoint (AWS_ENDPOINT_URL is not set)"
    reached = curl[1] not in _NOT_CONNECTED if curl else "Connect" not in type(error).__name__
    failed = "no whole answer from" if reached else "no answer from"
    reason = curl[2] if curl else type(error).__name__
    message = f"{uri}: {failed} {endpoint} in {ATTEMPTS} attempts ({reason}); is it running and reachable?"
    return _error(errno.EIO, message)


def _explain_absent(uri: str, bucket: str) -> StorageError:
    # The answer to a HEAD request has no body. Only a request for the bucket shows whether key or bucket is absent.
    try:
        stores.filesystem(uri)[0].call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FileNotFoundError:
        return _error(errno.ENXIO, f"{uri}: there is no bucket '{bucket}'; create it, or correct the URI")
    except Exception:
        pass  # perhaps the keys may not list the bucket: the plain message is still true
    return _error(errno.ENOENT, f"{uri}: no such file")


def _explain_other(uri: str, error: Exception) -> StorageError:
    """The error of a store that is neither a local disk nor S3."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        error = cause  # fsspec calls a file of http absent if the server does not answer
    kind, text = stores.scheme(uri), _line(error)
    if isinstance(error, FileNotFoundError):
        return _error(errno.ENOENT, f"{uri}: no such file")
    if isinstance(error, IsADirectoryError) or "Not a regular file" in text:
        return _error(errno.EISDIR, f"{uri}: is a directory")
    if isinstance(error, PermissionError) or _DENIED_TEXT.search(text):
        where = "the credentials"
        if kind in stores.GOOGLE:
            where = "GOOGLE_APPLICATION_CREDENTIALS or the machine's role"
        elif kind in stores.AZURE:
            where = "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or the machine's identity"
        return _error(errno.EACCES, f"{uri}: access denied; check {where}")
    return _error(errno.EIO, f"{uri}: {type(error).__name__} ({text[:200]}); is the store running and reachable?")


def _explain_local(uri: str, error: Exception) -> StorageError:
    number = getattr(error, "errno", None) or (errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO)
    if number in ABSENT:
        return _error(number, f"{uri}: no such file")
    return _error(number, f"{uri}: {os.strerror(number).lower()}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _error(number: int, message: str) -> StorageError:
    # the number is not passed to the constructor: OSError would print it before the message
    error = StorageError(message)
    error.errno = number
    return error

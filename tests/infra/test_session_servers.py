"""The session's Ray cluster and S3 server fit together, whatever the order in which tests ask for them."""

from __future__ import annotations

import os

import pytest

from rayssl import storage


@pytest.mark.ray
@pytest.mark.s3
def test_ray_tasks_reach_the_s3_server(ray_cluster, s3_server) -> None:
    """Written by pyarrow inside a task, read by s3fs here: the task has the endpoint, keys and checksum settings."""
    uri = s3_server.bucket("session-servers")

    def write(path: str) -> str:
        from pyarrow import fs

        filesystem, key = fs.FileSystem.from_uri(path)
        with filesystem.open_output_stream(key) as stream:
            stream.write(b"from a task")
        return os.environ["AWS_ENDPOINT_URL"]

    endpoint = ray_cluster.get(ray_cluster.remote(write).remote(f"{uri}/object"))
    import s3fs

    assert endpoint == s3_server.endpoint
    assert s3fs.S3FileSystem().cat_file(f"{uri}/object") == b"from a task"


@pytest.mark.ray
@pytest.mark.s3
def test_ray_tasks_read_ranges(ray_cluster, s3_server) -> None:
    """Several at once, and a worker that has read is used again."""
    uri = f"{s3_server.bucket('session-servers')}/ranges"
    storage.write_bytes(uri, bytes(range(256)) * 10000)

    def read(start: int) -> list[bytes]:
        return [bytes(each) for each in storage.read_ranges(uri, [(start, 2), (start + 256, 2), (2_559_999, 9)])]

    starts = [0, 7, 200, 100_000] * 3
    found = ray_cluster.get([ray_cluster.remote(read).remote(start) for start in starts])
    assert found == [[bytes([start % 256, start % 256 + 1])] * 2 + [b"\xff"] for start in starts]


@pytest.mark.ray
def test_cluster_is_local(ray_cluster) -> None:
    assert ray_cluster.cluster_resources()["CPU"] == 8
    assert len(ray_cluster.nodes()) == 1

"""The session's Ray cluster and S3 server fit together, whatever the order in which tests ask for them."""

from __future__ import annotations

import os

import pytest


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
def test_cluster_is_local(ray_cluster) -> None:
    assert ray_cluster.cluster_resources()["CPU"] == 8
    assert len(ray_cluster.nodes()) == 1

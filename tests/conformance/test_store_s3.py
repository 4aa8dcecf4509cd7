"""The S3 back-end passes the suite that every back-end must pass, against a real S3 server."""

import pathlib
from typing import Any

import obstore
import pytest
import store_suite as suite
from s3_rig import S3Server

from gristmill.store.bucket import Bucket, Credentials
from gristmill.store.interface import BlobStore
from gristmill.store.s3 import S3Store


@pytest.fixture(scope="module")
def bucket_name(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_s3(check: Any, s3: S3Server, bucket_name: str, tmp_path: pathlib.Path) -> None:
    clock, prefix = suite.Clock(), check.__name__
    account = Credentials(s3.access_key, s3.secret_key, "", "the test")
    bucket = Bucket(f"s3://{bucket_name}/{prefix}", s3.endpoint, "us-east-1", account)
    opened = [S3Store(bucket, tmp_path / "state", 8 << 20, clock)]
    behind = s3.objects(bucket_name, prefix)

    def reopen() -> BlobStore:
        opened[-1].close()
        opened.append(S3Store(bucket, tmp_path / "state", 8 << 20, clock))
        return opened[-1]

    def damage(digest: str) -> None:
        body = bytearray(obstore.get(behind, f"blobs/{digest}").bytes())
        body[-1] ^= 1
        obstore.put(behind, f"blobs/{digest}", bytes(body))

    try:
        check(suite.Bench(opened[-1], clock, reopen, damage))
        assert list((tmp_path / "state" / "tmp").iterdir()) == []
        kept = {each["path"] for batch in obstore.list(behind, "blobs") for each in batch}
        assert len(kept) == opened[-1].usage().blobs, "an object without a row was left"
    finally:
        opened[-1].close()

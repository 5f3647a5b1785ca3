"""`python -m talkoo_runtime.make_bucket URL`: wait for a blob store on S3 and make its bucket unless it is there."""

from __future__ import annotations

import argparse
import asyncio
import sys

from talkoo_core.errors import TalkooError, Unavailable
from talkoo_runtime.blobs import GATEWAY_SCHEME, S3BlobStore, open_blob_store

TIMEOUT_S = 120.0
POLL_S = 1.0


async def make_bucket(url: str, timeout_s: float = TIMEOUT_S) -> None:
    """A folder needs nothing, nor does a gateway. Raises Unavailable when the server does not answer in time."""
    if url.startswith(f"{GATEWAY_SCHEME}://"):
        return
    store = open_blob_store(url)
    if not isinstance(store, S3BlobStore):
        return
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await store.make_bucket()
            return
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(POLL_S)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_runtime.make_bucket", description=__doc__)
    parser.add_argument("url", help="s3://bucket/prefix?endpoint=http://host:port")
    try:
        asyncio.run(make_bucket(parser.parse_args().url))
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

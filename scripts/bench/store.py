"""The bucket, reached past the proxy and past what is measured: filled before, watched until it has all."""

import datetime
import hashlib
import hmac
import http.client
import os
import re
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

# How often the bucket is looked at: what is measured is known to half of it.
PERIOD = 0.05


class Store:
    """One bucket and one connection; not for two threads."""

    def __init__(self):
        self.address = os.environ["STORE_ADDRESS"]
        self.region = os.environ["STORE_REGION"]
        self.bucket = os.environ["STORE_BUCKET"]
        self.key_id = os.environ["AWS_ACCESS_KEY_ID"]
        self.secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        self.connection = http.client.HTTPConnection(self.address, timeout=60)

    def request(self, verb, key="", query=(), headers=(), body=None):
        """Sends a signed request: (status, headers, body)."""
        path = "/" + urllib.parse.quote(f"{self.bucket}/{key}" if key else self.bucket)
        query = "&".join(f"{k}={urllib.parse.quote(v, safe='')}" for k, v in sorted(query))
        now = datetime.datetime.now(datetime.timezone.utc)
        signed = {
            "host": self.address,
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        }
        names = ";".join(signed)
        canonical = [verb, path, query, *(f"{k}:{v}" for k, v in signed.items()), "", names]
        canonical = "\n".join([*canonical, signed["x-amz-content-sha256"]])
        scope = [now.strftime("%Y%m%d"), self.region, "s3", "aws4_request"]
        text = ["AWS4-HMAC-SHA256", signed["x-amz-date"], "/".join(scope)]
        text = "\n".join([*text, hashlib.sha256(canonical.encode()).hexdigest()])
        signature = f"AWS4{self.secret}".encode()
        for part in [*scope, text]:
            signature = hmac.digest(signature, part.encode(), "sha256")
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key_id}/{'/'.join(scope)},"
            f"SignedHeaders={names},Signature={signature.hex()}"
        )
        url = f"{path}?{query}" if query else path
        self.connection.request(verb, url, body, {**signed, **dict(headers)})
        answer = self.connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def put(self, key, body, length):
        status, _, text = self.request("PUT", key, headers={"content-length": str(length)}.items(), body=body)
        if status != 200:
            raise OSError(f"PUT {key}: {status} {text[:200]}")

    def size(self, key):
        """Its bytes, or None where there is no such object."""
        status, headers, _ = self.request("HEAD", key)
        return int(headers["content-length"]) if status == 200 else None

    def read(self, key, offset=0, length=None):
        last = "" if length is None else offset + length - 1
        status, _, body = self.request("GET", key, headers={"range": f"bytes={offset}-{last}"}.items())
        return body if status in (200, 206) else None

    def sizes(self, prefix=""):
        """Every key below the prefix with its size."""
        found, token = {}, None
        while True:
            query = [("list-type", "2"), ("prefix", prefix)]
            query += [("continuation-token", token)] if token else []
            status, _, text = self.request("GET", query=query)
            if status != 200:
                raise OSError(f"LIST {prefix}: {status} {text[:200]}")
            text = text.decode()
            found.update(
                (key, int(size)) for key, size in re.findall(r"<Key>(.*?)</Key>.*?<Size>(\d+)</Size>", text)
            )
            more = re.search(r"<NextContinuationToken>(.*?)</NextContinuationToken>", text)
            if not more:
                return found
            token = more.group(1)

    def fill(self, bodies):
        """Puts what the dictionary holds, eight at a time."""

        def put_share(share):
            store = Store()
            for key, body in share:
                store.put(key, body, len(body))

        items = list(bodies.items())
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put_share, (items[n::8] for n in range(8))))


def wait_until(holds, limit):
    """Waits until the condition holds. False: it did not before time.monotonic() was at the limit."""
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(PERIOD)
    return True

"""The HTTP API of a Ray head (jobs, Serve, nodes) as far as the commands use it. Needs no Ray on this side."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests

from crmray import log
from crmray.errors import AuthError, ClusterError
from crmray.head import Head, local_head

AGENT_TIMEOUT_S = 60.0
PENDING_WORD_S = 20.0
LOST_S = 60.0
"""so long `follow` asks again while the dashboard does not answer"""
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


def token(head: Head | None) -> str | None:
    """The token of the local head, else where Ray looks: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if not head and os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    named = head.token_path if head else os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if named:
            raise AuthError(
                f"token file {path}: not there; set RAY_AUTH_TOKEN_PATH to the cluster's token file"
            ) from None
        return None


class NoAnswer(ClusterError):
    """The dashboard does not answer, or answers that it cannot just now (5xx): the one that is worth another try."""


class NoCluster(ClusterError):
    """Nothing says which cluster is meant, and no local head runs."""


class _Once:
    """Passes on each character of a text that is given several times from its beginning."""

    def __init__(self, write: Callable[[str], Any]):
        self.write, self.done, self.at = write, 0, 0

    def rewind(self) -> None:
        """What is given next is the text from its beginning."""
        self.at = 0

    def __call__(self, text: str) -> None:
        new = text[max(0, self.done - self.at) :]
        self.at += len(text)
        if new:
            self.done = self.at
            self.write(new)

    def aside(self, text: str) -> None:
        """Pass on what is not part of the text."""
        self.write(text)


class Dashboard:
    """One Ray head's dashboard. Raises ClusterError when it does not answer, AuthError when it wants another token."""

    def __init__(self, address: str | None = None, timeout_s: float = 30.0):
        """address: http(s)://host:port; default RAY_API_SERVER_ADDRESS, else the local head of `crmray up`."""
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
        here = local_head()
        self.head = here if here and address in (None, here.dashboard) else None
        if not address and not self.head:
            raise NoCluster("no cluster: none was given and no local head runs; do `crmray up` or give its address")
        self.address = (address or self.head.dashboard).rstrip("/")  # type: ignore[union-attr]
        if not self.address.startswith(("http://", "https://")):
            raise ClusterError(
                f"got address {self.address!r}, expected the dashboard's URL, e.g. http://127.0.0.1:8265"
            )
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {found}"} if (found := token(self.head)) else {}

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request; answers of 400 and above raise with what the server said."""
        try:
            with requests.Session() as session:
                session.trust_env = self.address.startswith("https://")  # no proxy for a tunnel or this machine
                answer = session.request(
                    method, self.address + path, auth=with_headers(self._headers), timeout=self.timeout_s, **options
                )
        except requests.RequestException as error:
            raise NoAnswer(
                f"{self.address} does not answer ({type(error).__name__}); is the cluster up? `crmray doctor` looks"
            ) from None
        if answer.status_code in (401, 403):
            raise AuthError(f"{self.address} refuses the token; set RAY_AUTH_TOKEN_PATH to the cluster's token file")
        if answer.status_code >= 400:
            kind = NoAnswer if answer.status_code >= 500 else ClusterError
            raise kind(f"{method} {path}: {answer.status_code} {_reason(answer.text)}")
        return answer

    # -- jobs ------------------------------------------------------------------------------------------------------

    def submit(
        self, entrypoint: str, *, submission_id: str, metadata: Mapping[str, str], runtime_env: Mapping[str, Any]
    ) -> str:
        """Start a job; its submission id. Nothing given here may be secret: the dashboard shows it all."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "metadata": metadata,
            "runtime_env": runtime_env,
        }
        deadline = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                return self.call("POST", "/api/jobs/", json=body).json()["submission_id"]
            except ClusterError as error:
                # Right after a start the node's agent, which runs jobs, is not there yet.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def job(self, submission_id: str) -> dict[str, Any]:
        """Status, exit code and times of a job."""
        return self.call("GET", f"/api/jobs/{submission_id}").json()

    def jobs(self) -> list[dict[str, Any]]:
        """All submitted jobs, newest first."""
        found = [job for job in self.call("GET", "/api/jobs/").json() if job.get("submission_id")]
        return sorted(found, key=lambda job: job.get("start_time") or 0, reverse=True)

    def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM, then SIGKILL."""
        self.call("POST", f"/api/jobs/{submission_id}/stop")

    def follow(self, submission_id: str, write: Callable[[str], Any]) -> int:
        """Pass a job's output to `write` as it comes; the job's exit code when it has ended.

        A job that cannot start is told as an event every PENDING_WORD_S seconds, with the reason Ray gives. A dashboard
        that does not answer is asked again for LOST_S seconds, then ClusterError; the job itself goes on.
        """
        said, lost_since = _Once(write), None
        while True:
            try:
                job = self.job(submission_id)
                lost_since = None
                said.rewind()  # a stream that broke off is begun again
                if job["status"] in TERMINAL:
                    said(self.call("GET", f"/api/jobs/{submission_id}/logs").json()["logs"])
                    break
                asyncio.run(self._tail(submission_id, said))
            except NoAnswer as error:
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    log.warn("job.lost", job_id=submission_id, tries_for_s=LOST_S, because=str(error))
                elif now - lost_since > LOST_S:
                    raise
                time.sleep(1)
            time.sleep(0.2)
        if job["status"] == "SUCCEEDED":
            return 0
        if job["status"] == "STOPPED":
            return 143
        if job.get("driver_exit_code") is None:
            write(f"{_reason(job.get('message') or '')}\n")
        return job.get("driver_exit_code") or 1

    async def _tail(self, submission_id: str, write: _Once) -> None:
        import aiohttp

        url = f"{self.address}/api/jobs/{submission_id}/logs/tail"
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers) as session,
                session.ws_connect(url, heartbeat=30) as socket,
            ):
                while True:
                    try:
                        message = await socket.receive(timeout=PENDING_WORD_S)
                    except TimeoutError:
                        job = await asyncio.to_thread(self.job, submission_id)
                        if job["status"] in TERMINAL:
                            return
                        if job["status"] == "PENDING":
                            why = _reason(job.get("message") or "")
                            write.aside(
                                json.dumps({"event": "job.pending", "job_id": submission_id, "because": why}) + "\n"
                            )
                        continue
                    if message.type != aiohttp.WSMsgType.TEXT:
                        return
                    write(message.data)
        except aiohttp.ClientError as error:
            log.warn("job.log_lost", job_id=submission_id, because=str(error))  # begun again by `follow`

    def upload(self, files: Mapping[str, bytes]) -> str:
        """Put files where every node can fetch them; the URI for `working_dir`. Equal content has the same URI."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in sorted(files.items()):
                archive.writestr(zipfile.ZipInfo(name), content)
        name = f"_ray_pkg_{hashlib.sha256(packed.getvalue()).hexdigest()[:16]}.zip"
        self.call("PUT", f"/api/packages/gcs/{name}", data=packed.getvalue())
        return f"gcs://{name}"

    # -- serve and nodes -------------------------------------------------------------------------------------------

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make Serve run exactly this configuration (ServeDeploySchema)."""
        self.call("PUT", "/api/serve/applications/", json=config)

    def serve(self) -> dict[str, Any]:
        """Applications, deployments, replicas and proxies with their states."""
        return self.call("GET", "/api/serve/applications/").json()

    def version(self) -> dict[str, Any]:
        """Ray's version and session of the cluster."""
        return self.call("GET", "/api/version").json()

    def nodes(self) -> list[dict[str, Any]]:
        """Nodes with state, address and total resources."""
        answer = self.call("GET", "/api/v0/nodes?detail=1&limit=1000").json()
        return answer["data"]["result"]["result"]

    def usage(self) -> dict[str, list[float]]:
        """Resource -> [used, total], over the cluster."""
        answer = self.call("GET", "/api/cluster_status").json()
        report = (answer["data"].get("clusterStatus") or {}).get("loadMetricsReport") or {}
        return report.get("usage") or {}


def _reason(text: str) -> str:
    """Last line of a server's message that says something; its tracebacks end with it."""
    try:
        body = json.loads(text)
        text = str(body.get("msg") or body) if isinstance(body, dict) else text
    except ValueError:
        pass
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:500]


def with_headers(headers: Mapping[str, str]) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Headers as `auth` of requests, which would let an entry in ~/.netrc take the place of a plain Authorization."""

    def add(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(headers)
        return request

    return add

"""What all replicas of a task answer with, asked from a job: `publish` waits here until every one has swapped.

An application is named by its task, so a cluster serves one org. A replica says of which lake it is: a version of
another org is refused before it is promoted, because no replica here would ever answer with it.
"""

from __future__ import annotations

import os
import time
from typing import Any

from crmray import log
from crmray.cluster import connect
from crmray.errors import ClusterError, WatchdogError
from crmray.head import local_head
from crmray.storage import Lake

_ASK_S = 0.5
_ANSWER_S = 10.0
_NO_ENDPOINT = (
    "nothing is wrong: its endpoint answers with this version as soon as `crmray deploy` (or `run`) starts it"
)


def states(task: str) -> list[dict[str, Any]]:
    """{pid, org, lake, version, examples, problem} of each running replica; empty where the task's application is not
    running. lake: as `Lake.address_of` gives it; not there in answers of an older crmray.

    A replica that does not answer, because it is being taken down or is lost, has no org, lake and version, and that
    as its problem.
    Joins the cluster if there is one to join; none is started for the question. The application has the task's name.
    """
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    if not ray.is_initialized():
        if not (os.environ.get("RAY_ADDRESS") or local_head()):
            return []
        connect()
    try:
        answers = serve.get_app_handle(task).broadcast("status").results(timeout_s=_ANSWER_S, return_exceptions=True)
    except (RayServeException, KeyError):  # no Serve here, or not this application
        return []
    except TimeoutError as error:  # not even which replicas there are
        answers = [error]
    return [_silent(answer) if isinstance(answer, Exception) else answer for answer in answers]


def _silent(error: Exception) -> dict[str, Any]:
    unknown = dict.fromkeys(("pid", "org", "lake", "version", "examples"))
    return {**unknown, "problem": f"no answer ({type(error).__name__})"}


def check_org(task: str, org: str, lake: Lake) -> None:
    """ClusterError where replicas of the task answer from another lake than that of this org; not where they do not say
    from which."""
    others = {state.get("org") for state in states(task) if state.get("lake") not in (None, Lake.address_of(lake.root))}
    if others:
        raise ClusterError(
            f"the endpoint of {task} on this head answers for org {min(map(str, others))!r}, from another lake, so "
            f"nothing was promoted: what was trained stays in the registry of {org!r} and is not served here. A head "
            "serves one org: do `crmray down` first, or publish on another head"
        )


def wait_for(task: str, version: str, *, timeout_s: float = 120.0) -> int:
    """Wait until every replica answers with the version; how many there are (0: the task is not served here).

    Replicas look at the ledger by themselves, so nothing is sent and no request is dropped. WatchdogError names what
    a replica still answers with, and why it could not load the version.
    """
    started = time.monotonic()
    while True:
        found = states(task)
        behind = [state for state in found if state["version"] != version]
        if not behind:
            if found:
                log.event("publish.live", task=task, version=version, replicas=len(found))
            else:
                log.event("publish.no_endpoint_yet", task=task, version=version, note=_NO_ENDPOINT)
            return len(found)
        if time.monotonic() - started > timeout_s:
            reasons = "; ".join(sorted({state["problem"] for state in behind if state["problem"]})) or "no reason given"
            raise WatchdogError(
                f"{task}: {len(behind)} of {len(found)} replicas still answer with {behind[0]['version']} after "
                f"{timeout_s:.0f} s, expected {version}: {reasons}"
            )
        time.sleep(_ASK_S)

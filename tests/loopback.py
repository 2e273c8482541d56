"""A server on this machine that speaks the protocol of Weights & Biases' client, and keeps what it
is sent.

It replaces lines of a history by their numbers, as the real one does: what is sent twice is there
once, and a file that begins at line 0 replaces one that did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

Temper = Callable[[int], int | None]
"""Of a server: the status that it answers its nth request with; ``None``: it never answers."""


LITTLE = {
    **dict.fromkeys(("group", "jobType", "commit", "description", "notes", "heartbeatAt")),
    "user": {"name": "me", "username": "me"},
    "state": "finished",
    "readOnly": False,
    "createdAt": "2026-01-01T00:00:00Z",
    "systemMetrics": "{}",
}
"""What nobody here asks of a run."""


@dataclass
class Received:
    """What the server knows of a run."""

    fields: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    streams: int = 0

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its rows."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """Its last values."""
        return json.loads((self.lines.get("wandb-summary.json") or ["{}"])[-1])

    @property
    def config(self) -> dict[str, Any]:
        """What it was run with."""
        nodes = json.loads(self.fields.get("config") or "{}")
        return {name: node["value"] for name, node in nodes.items() if name != "_wandb"}

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Training steps and values of a metric."""
        rows = [row for row in self.history if metric in row]
        return [(row["trainer/global_step"], row[metric]) for row in rows]


class Server(ThreadingHTTPServer):
    """Accepts everything, until its temper says otherwise."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.temper: Temper = lambda request: 200
        self.requests = 0
        self.over = Event()
        self.runs: dict[str, Received] = {}
        self.views: list[dict[str, Any]] = []
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL request asks for."""
        name = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        operation = getattr(self, f"_{name[1]}", None) if name else None
        return dict(operation(given)) if operation else {}

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "x", "entity": "me", "username": "me", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def _ServerInfo(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"cliVersionInfo": "{}", "features": []}}

    _ServerFeaturesQuery = _ServerInfo
    _GetViewer = _GetDefaultEntity = _Viewer

    def _bucket(self, run: str, project: str) -> dict[str, Any]:
        known = self.runs[run]
        entity = {"id": "e", "name": known.fields.get("entity", "me")}
        return {
            "id": run,
            "name": run,
            "displayName": known.fields.get("displayName"),
            "config": known.fields.get("config"),
            "sweepName": None,
            "summaryMetrics": json.dumps(known.summary),
            "historyLineCount": len(known.lines.get("wandb-history.jsonl", [])),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(known.lines.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": "[]",
            "tags": known.fields.get("tags") or [],
            "wandbConfig": '{"t": 1}',
            "project": {"id": "p", "name": project, "entity": entity},
        }

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        new = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], Received())
        run.fields.update({name: value for name, value in given.items() if value is not None})
        bucket = self._bucket(given["name"], given["project"])
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        known = given["name"] in self.runs
        bucket = self._bucket(given["name"], given["project"]) if known else None
        return {"model": {"id": "p", "name": given["project"], "bucket": bucket}}

    def _Run(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["name"] not in self.runs:
            return {"project": {"internalId": "p", "run": None}}
        bucket = self._bucket(given["name"], given["project"])
        last = {"lastStep": bucket["historyLineCount"] - 1, "keys": {}}
        run = {**bucket, **LITTLE, "projectId": "1", "historyKeys": last}
        return {"project": {"internalId": "p", "run": run}}

    def _RunHistoryKeys(self, given: dict[str, Any]) -> dict[str, Any]:
        last = max((row["_step"] for row in self.runs[given["name"]].history), default=-1)
        return {"project": {"run": {"historyKeys": {"lastStep": last, "keys": {}}}}}

    def _RunParquetHistory(self, given: dict[str, Any]) -> dict[str, Any]:
        live = [{"_step": row["_step"]} for row in self.runs[given["runName"]].history]
        history = {"parquetUrls": [], "liveData": live}
        return {"project": {"run": {"parquetHistory": history}}}

    def _HistoryPage(self, given: dict[str, Any]) -> dict[str, Any]:
        rows = self.runs[given["run"]].history
        wanted = [row for row in rows if given["minStep"] <= row["_step"] < given["maxStep"]]
        lines = [json.dumps(row) for row in wanted[: given["pageSize"]]]
        return {"project": {"run": {"history": lines}}}

    def _GetProjects(self, given: dict[str, Any]) -> dict[str, Any]:
        page = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}
        named = {"id": "p", "name": "betasigma", "entityName": "me", "isBenchmark": False}
        node = {**named, "createdAt": "2026-01-01T00:00:00Z", "user": None}
        edges = [{"node": {**node, "__typename": "Project"}, "cursor": "p"}]
        return {"models": {"edges": edges, "pageInfo": page}}

    def _upsertView(self, given: dict[str, Any]) -> dict[str, Any]:
        self.views.append({**given, "spec": json.loads(given["spec"])})
        view = {"id": f"view{len(self.views)}", "name": given["name"], "type": given["type"]}
        more = {"displayName": given["displayName"], "description": "", "spec": given["spec"]}
        project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
        user = {"id": "u", "username": "me", "photoUrl": None, "name": "me"}
        times = {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
        view = {**view, **more, **times, "project": project, "user": user, "locked": False}
        return {"upsertView": {"view": view, "inserted": True}}

    _UpsertView2 = _upsertView

    def _ProjectInternalId(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"internalId": "1"}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        place = f"{self.address}/storage/{given['run']}"
        files = [{"name": name, "uploadUrl": f"{place}/{name}"} for name in given["files"]]
        return {
            "createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files},
        }

    def _artifact(self, identity: str) -> dict[str, Any]:
        known = self.artifacts[identity]
        names = [one["alias"] for one in known["aliases"]]
        collection = {
            "__typename": "ArtifactSequence",
            "id": "c",
            "name": known["artifactCollectionName"],
            "project": {
                "id": "p",
                "internalId": "1",
                "name": known["projectName"],
                "entity": {"name": "me"},
            },
        }
        return {
            "__typename": "Artifact",
            "id": identity,
            "state": known.get("state", "PENDING"),
            "digest": known["digest"],
            "versionIndex": 0,
            "commitHash": "c",
            "description": None,
            "metadata": known["metadata"],
            "size": 0,
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "aliases": [
                {
                    "__typename": "ArtifactAlias",
                    "id": n,
                    "alias": n,
                    "artifactCollection": collection,
                }
                for n in names
            ],
            "artifactType": {"name": known["artifactTypeName"]},
            "artifactSequence": {**collection, "latestArtifact": None},
            "currentManifest": {"id": identity, "file": self._file(f"{identity}/manifest")},
        }

    def _file(self, name: str) -> dict[str, Any]:
        url = f"{self.address}/artifacts/{name}"
        named = {"id": name, "name": name, "displayName": name, "storagePath": name}
        more = {"uploadUrl": url, "uploadHeaders": [], "directUrl": url, "url": url}
        return {
            **named,
            **more,
            "uploadMultipartUrls": None,
            "artifact": {"id": name.split("/")[0]},
        }

    def _ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = f"a{len(self.artifacts)}"
        self.artifacts[identity] = dict(given["input"])
        return {"createArtifact": {"artifact": self._artifact(identity)}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = (given.get("input") or given)["artifactID"]
        made = {"id": identity, "file": self._file(f"{identity}/manifest")}
        return {"createArtifactManifest": {"artifactManifest": made}}

    def _UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = (given.get("input") or given)["artifactManifestID"]
        made = {"id": identity, "file": self._file(f"{identity}/manifest")}
        return {"updateArtifactManifest": {"artifactManifest": made}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = (given.get("input") or given)["artifactFiles"]
        nodes = [{**self._file(f"{f['artifactID']}/{f['name']}"), "name": f["name"]} for f in asked]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = (given.get("input") or given)["artifactID"]
        self.artifacts[identity]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": self._artifact(identity)}}

    def _ArtifactMembershipByName(self, given: dict[str, Any]) -> dict[str, Any]:
        collection, _, alias = given["name"].partition(":")
        found = [
            self._artifact(identity)
            for identity, known in self.artifacts.items()
            if known["artifactCollectionName"] == collection
            and alias in [one["alias"] for one in known["aliases"]]
        ]
        if not found:
            return {"project": {"artifactCollectionMembership": None}}
        node = found[-1]
        member = {
            "__typename": "ArtifactCollectionMembership",
            "id": "m",
            "versionIndex": 0,
            "createdAt": node["createdAt"],
            "aliases": [{"__typename": "ArtifactAlias", **one} for one in node["aliases"]],
            "artifactCollection": node["artifactSequence"],
            "artifact": node,
        }
        return {"project": {"artifactCollectionMembership": member}}

    def _FetchArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        identity = given.get("id") or given.get("artifactID")
        return {"artifact": self._artifact(str(identity))}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Take in what a client streams of a run."""
        known = self.runs.setdefault(run, Received())
        known.streams += 1
        for name, part in (sent.get("files") or {}).items():
            lines, first = known.lines.setdefault(name, []), part["offset"]
            lines[first : first + len(part["content"])] = part["content"]
        if sent.get("complete"):
            known.exit_code = sent["exitcode"]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests += 1
        status = self.server.temper(self.server.requests)
        if status is None:
            self.server.over.wait(300)
            return
        _, *place = self.path.partition("?")[0].split("/")
        if self.command == "GET" and place[0].startswith("artifacts"):
            name = place[1:] if place[0] == "artifacts" else [place[5], place[-1]]
            content = self.server.stored.get("/".join(name))
            self._reply(404 if content is None else 200, content or b"")
            return
        self._reply(status, json.dumps(self._answer(body) if status == 200 else {}).encode())

    do_GET = do_PUT = do_POST

    def _answer(self, body: bytes) -> dict[str, Any]:
        _, *place = self.path.split("/")
        if place == ["graphql"]:
            asked = json.loads(body)
            return {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        if place[-1] == "file_stream":
            self.server.stream(place[-2], json.loads(body))
        elif place[0] == "artifacts":
            self.server.stored["/".join(place[1:])] = body
        elif place[0] == "storage":
            self.server.runs[place[1]].files["/".join(place[2:])] = body
        return {}

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Have the client of this process, and those that it starts, talk to a server of ours."""
    import wandb

    made = Server()
    Thread(target=made.serve_forever, daemon=True).start()
    wandb.teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", made.address)
    yield made
    made.over.set()
    wandb.teardown()
    made.shutdown()
    made.server_close()

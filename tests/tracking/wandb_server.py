"""A fake W&B server on 127.0.0.1, with the API for runs, artifacts and lineage."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"


class WandbServer(ThreadingHTTPServer):
    """A W&B server that records `runs` by id, `artifacts` by name and alias, and `used` as (run, artifact id)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        self.used = set[tuple[str, str]]()
        self.manifests: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.refused = set[str]()  # ids of runs that it will not take
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        self.shutdown()
        self.server_close()

    def logged_by(self, run: str) -> list[dict[str, Any]]:
        """Return the artifacts that a run logged, without those that W&B makes for tables."""
        return [
            a
            for a in self.artifacts.values()
            if a["runName"] == run and a["artifactTypeName"] != "run_table"
        ]

    def handle_error(self, *_: Any) -> None:
        """Ignore errors of clients that end without closing their connections."""

    def graphql(self, operation: str, variables: dict[str, Any]) -> Any:
        answers = {
            "Viewer": self.viewer,
            "GetDefaultEntity": self.viewer,
            "ServerFeaturesQuery": lambda **_: {"serverInfo": {"features": []}},
            "UpsertBucket": self.upsert_run,
            "RunResumeStatus": lambda **_: {"model": None},
            "CreateRunFiles": self.create_files,
            "ArtifactType": lambda **_: {"project": {"artifact": None}},
            "CreateArtifact": self.create_artifact,
            "CreateArtifactManifest": self.create_manifest,
            "CreateArtifactFiles": self.create_artifact_files,
            "CommitArtifact": lambda artifactID: {
                "commitArtifact": {"artifact": {"id": artifactID, "digest": "x"}}
            },
            "Run": self.run,
            "ArtifactMembershipByName": self.artifact,
            "UseArtifact": self.use,
        }
        return answers[operation](**variables)

    def viewer(self, **_: Any) -> Any:
        return {
            "viewer": {
                "id": "U",
                "entity": ENTITY,
                "username": ENTITY,
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def upsert_run(self, name: str, project: str, **variables: Any) -> Any:
        if name in self.refused:
            raise PermissionError(f"{name} is refused")
        known_values = {key: value for key, value in variables.items() if value is not None}
        inserted = name not in self.runs
        self.runs[name] = {**self.runs.get(name, {}), "project": project, **known_values}
        owner = {"id": "P", "name": project, "entity": {"id": "E", "name": ENTITY}}
        bucket = {
            "id": name,
            "name": name,
            "config": variables["config"],
            "project": owner,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def create_files(self, run: str, files: list[str], **_: Any) -> Any:
        uploads = [{"name": f, "uploadUrl": f"{self.url}/storage/{run}/{f}"} for f in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": uploads}}

    def create_artifact(self, input: dict[str, Any]) -> Any:
        name = f"A{len(self.artifacts)}"
        self.artifacts[name] = {"id": name, **input}
        for alias in input["aliases"]:
            self.aliases[f"{input['artifactCollectionName']}:{alias['alias']}"] = name
        artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def create_manifest(self, artifactID: str, **_: Any) -> Any:
        file = {
            "id": artifactID,
            "uploadUrl": f"{self.url}/manifest/{artifactID}",
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": file}}}

    def create_artifact_files(self, input: dict[str, Any]) -> Any:
        nodes = [
            {
                "name": f["name"],
                "storagePath": f["name"],
                "uploadUrl": f"{self.url}/artifact/{f['artifactID']}/{f['name']}",
                "uploadHeaders": [],
                "artifact": {"id": f["artifactID"]},
            }
            for f in input["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def run(self, name: str, **_: Any) -> Any:
        if name not in self.runs:
            return {"project": {"run": None}}
        run = {
            "id": name,
            "name": name,
            "state": "finished",
            "config": "{}",
            "summaryMetrics": "{}",
            "tags": [],
        }
        return {"project": {"run": {**run, "user": {"name": ENTITY, "username": ENTITY}}}}

    def artifact(self, entity: str, project: str, name: str) -> Any:
        if name not in self.aliases:
            return {"project": {"artifactCollectionMembership": None}}
        artifact = self.artifacts[self.aliases[name]]
        owner = {"id": "P", "internalId": "P", "name": project, "entity": {"name": entity}}
        sequence = {
            "__typename": "ArtifactSequence",
            "id": "S",
            "name": artifact["artifactCollectionName"],
            "project": owner,
        }
        version = {
            "id": artifact["id"],
            "artifactSequence": sequence,
            "versionIndex": 0,
            "artifactType": {"name": artifact["artifactTypeName"]},
            "description": None,
            "metadata": artifact["metadata"],
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 0,
            "digest": artifact["digest"],
            "commitHash": None,
            "fileCount": 0,
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [],
        }
        membership = {
            "id": "M",
            "versionIndex": 0,
            "createdAt": "2026-01-01T00:00:00",
            "aliases": [],
        }
        return {
            "project": {
                "artifactCollectionMembership": {
                    **membership,
                    "artifactCollection": sequence,
                    "artifact": version,
                }
            }
        }

    def use(self, runName: str, artifactID: str, **_: Any) -> Any:
        self.used.add((runName, artifactID))
        return {"useArtifact": {"artifact": {"id": artifactID, "digest": "x"}}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        with self.server.lock:
            self.server.requests.append((self.command, self.path, body, dict(self.headers)))
            status, answer = self.answer(body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def answer(self, body: bytes) -> tuple[int, Any]:
        kind, _, name = self.path.lstrip("/").partition("/")
        if kind == "graphql":
            payload = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", payload["query"])
            assert operation
            try:
                return 200, {
                    "data": self.server.graphql(operation[1], payload.get("variables") or {})
                }
            except PermissionError as error:
                return 400, {"errors": [{"message": str(error)}]}
        if kind == "manifest":
            self.server.manifests[name] = json.loads(body)
        elif kind in ("storage", "artifact"):
            self.server.files[name] = body
        return 200, {}

"""A W&B server on this machine, as far as runs need one: it keeps the rows it is sent, or misbehaves."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer:
    """What the server does, and what it has received."""

    def __init__(self) -> None:
        self.mode = "works"
        """`works`, `fails` (500), `refuses` (401), `hangs` or `hangs up`."""
        self.rows: dict[int, dict[str, Any]] = {}
        """The history, by line."""
        self.config: dict[str, Any] = {}
        self.run: dict[str, Any] = {}
        """What the last word about the run says of it, by GraphQL's names."""
        self.files: dict[str, bytes] = {}
        """Files of the run, by their path."""
        self.released = threading.Event()
        self.url = ""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of GraphQL for a query."""
        found = re.search(r"(?:query|mutation) (\w+)", query)
        name = found[1] if found else ""
        entity = {"id": "RW50", "name": "me"}
        if name in ("Viewer", "GetDefaultEntity"):
            return {
                "viewer": {"id": "VXNlcg==", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            }
        if name == "RunResumeStatus":
            return {"model": {"id": "UA==", "name": "arcdist", "entity": entity, "bucket": self._bucket()}}
        if name == "UpsertBucket":
            self.config = json.loads(variables.get("config") or "{}") or self.config
            self.run |= {name: value for name, value in variables.items() if value is not None}
            project = {"id": "UA==", "name": variables["project"], "entity": entity}
            return {"upsertBucket": {"bucket": {"id": "UnVu", "name": variables["name"], "project": project}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}
        if name == "Run":
            return {"project": {"run": {**self._run(), "name": variables["name"]} if self.rows else None}}
        if name == "RunFiles":
            nodes = [
                {"id": file, "name": file, "url": f"{self.url}/download/{file}", "sizeBytes": len(self.files[file])}
                for file in variables["fileNames"]
            ]
            return {"project": {"run": {"fileCount": len(nodes), "files": {"edges": [{"node": one} for one in nodes]}}}}
        if name == "RunHistoryKeys":
            return {"project": {"run": {"historyKeys": self._run()["historyKeys"]}}}
        if "minStep" in variables:
            asked = range(variables["minStep"], variables["maxStep"])
            rows = [json.dumps(row) for row in self.rows.values() if row["_step"] in asked]
            return {"project": {"run": {"history": rows}}}
        if name == "RunParquetHistory":
            return {
                "project": {
                    "run": {"parquetHistory": {"parquetUrls": [], "liveData": [dict(r) for r in self.rows.values()]}}
                }
            }
        return {}

    def _run(self) -> dict[str, Any]:
        names = ("id", "name", "displayName", "state", "createdAt", "heartbeatAt", "projectId", "description", "notes")
        return {
            **dict.fromkeys(names, "run"),
            **dict.fromkeys(("sweepName", "group", "jobType", "commit", "readOnly")),
            "user": {"name": "me", "username": "me"},
            "tags": [],
            "config": json.dumps(self.config),
            "projectId": "1",
            "systemMetrics": "{}",
            "summaryMetrics": "{}",
            "historyLineCount": len(self.rows),
            "historyKeys": {"lastStep": max(row["_step"] for row in self.rows.values()), "keys": {}},
        }

    def _bucket(self) -> dict[str, Any] | None:
        if not self.rows:
            return None
        return {
            "id": "UnVu",
            "name": "run",
            "summaryMetrics": "{}",
            "displayName": "run",
            "logLineCount": 0,
            "historyLineCount": len(self.rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(self.rows[max(self.rows)])]),
            "eventsTail": "[]",
            "config": json.dumps(self.config),
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }

    def stream(self, files: dict[str, Any]) -> None:
        """Keep lines of a run's files."""
        history = files.get("wandb-history.jsonl")
        for number, line in enumerate(history["content"] if history else ()):
            self.rows[history["offset"] + number] = json.loads(line)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that works until its `mode` is changed."""
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        codes: ClassVar[dict[str, int]] = {"fails": 500, "refuses": 401}

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if state.mode == "hangs":
                state.released.wait(60)
            if state.mode in ("hangs", "hangs up"):
                self.close_connection = True
                return
            data: dict[str, Any] = {}
            if state.mode == "works" and "/graphql" in self.path:
                asked = json.loads(body)
                data = {"data": state.answer(asked["query"], asked.get("variables") or {})}
            elif state.mode == "works" and self.path.endswith("/file_stream"):
                state.stream(json.loads(body).get("files") or {})
            content = json.dumps(data).encode()
            if self.path.startswith("/download/"):
                content = state.files[self.path.removeprefix("/download/")]
            self.send_response(404 if "/otel/" in self.path else self.codes.get(state.mode, 200))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """That W&B hangs up is no error here."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""A model hub on loopback: as much of the Hugging Face Hub's and ModelScope's protocol as their own clients use."""

import base64
import hashlib
import http.server
import json
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub(http.server.ThreadingHTTPServer):
    """
    Args:
        models: files by name, by model.
        token: what a gated hub wants to see.
        cut_after: the first answer of each file ends after so many bytes, as a lost connection does.

    Attributes:
        private: of each repository that was made, whether it is.
        branches: of each.
        stored: large files that were sent, by their SHA-256, whether committed or not.
        refused_commits: how many of the next ones fail.
        listed: contents whose hashes are listed instead of those of the files that are sent.
        sizes: that are listed instead of the true ones.
    """

    daemon_threads = True

    def __init__(self, models: dict[str, dict[str, bytes]], token: str | None = None, cut_after: int | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.token, self.cut_after = models, token, cut_after
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut: set[str] = set()
        self.listed: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.private: dict[str, bool] = {}
        self.branches: dict[str, list[str]] = {}
        self.stored: dict[str, bytes] = {}
        self.refused_commits = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path}


@contextmanager
def serving(hub: StandInHub) -> Iterator[StandInHub]:
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        return None

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """What an upload asks: to make a repository or a branch, how files are sent, to commit them."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        model = "/".join(parts[2:4])
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._json(401, {"error": "who are you"})
        elif parts == ["api", "repos", "create"]:
            self._make(json.loads(content))
        elif parts == ["api", "validate-yaml"]:  # of a model card
            self._json(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["branch"]:
            is_new = parts[5] not in self.server.branches[model]
            self.server.branches[model] += [parts[5]] * is_new
            self._json(200 if is_new else 409, {})
        elif parts[4:5] == ["preupload"]:
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".gguf")) else "regular" for name in files}
            self._json(200, {"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in files]})
        elif parts[-2:] == ["objects", "batch"]:
            self._json(
                200, {"transfer": "basic", "objects": list(map(self._how_to_send, json.loads(content)["objects"]))}
            )
        elif parts[4:5] == ["commit"]:
            self._commit(model, [json.loads(line) for line in content.splitlines()])
        else:
            self._json(404, {})

    def do_PUT(self) -> None:
        """A large file."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        self.server.stored[hashlib.sha256(content).hexdigest()] = content
        self._json(200, {})

    def _make(self, asked: dict) -> None:
        model = f"{asked['organization']}/{asked['name']}"
        if model in self.server.models:
            self._json(409, {"url": f"{self.server.url}/{model}"})
            return
        self.server.models[model], self.server.branches[model] = {}, ["main"]
        self.server.private[model] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._json(200, {"url": f"{self.server.url}/{model}", "id": model})

    def _how_to_send(self, asked: dict) -> dict:
        if asked["oid"] in self.server.stored:
            return asked
        return asked | {"actions": {"upload": {"href": f"{self.server.url}/store/{asked['oid']}"}}}

    def _commit(self, model: str, lines: list[dict]) -> None:
        if self.server.refused_commits:
            self.server.refused_commits -= 1
            self._json(500, {"error": "not now"})
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.models[model][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.models[model][value["path"]] = self.server.stored[value["oid"]]
        self._json(200, {"commitUrl": f"{self.server.url}/{model}/commit/{COMMIT}", "commitOid": COMMIT})

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        parts = urllib.parse.unquote(url.path).strip("/").split("/")
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._json(401, {"error": "who are you"}, {"X-Error-Code": "GatedRepo"})
        elif parts[:2] == ["api", "models"]:
            self._hugging_face_listing("/".join(parts[2:4]))
        elif parts[:3] == ["api", "v1", "models"]:
            self._modelscope("/".join(parts[3:5]), parts[5:], query)
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._file("/".join(parts[at - 2 : at]), "/".join(parts[at + 2 :]))
        else:
            self._json(404, {})

    def _hugging_face_listing(self, model: str) -> None:
        files = self.server.models.get(model)
        if files is None:
            self._json(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in self.path:
            self._json(200, [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files])
        else:
            siblings = [self._listed(name, content) for name, content in files.items()]
            self._json(200, {"id": model, "sha": COMMIT, "siblings": siblings})

    def _listed(self, name: str, content: bytes) -> dict[str, object]:
        content = self.server.listed.get(name, content)
        entry: dict[str, object] = {"rfilename": name, "size": self.server.sizes.get(name, len(content))}
        if name.endswith((".safetensors", ".bin")):
            sums = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            return entry | {"blobId": "0", "lfs": sums}
        return entry | {"blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}

    def _modelscope(self, model: str, rest: list[str], query: dict[str, str]) -> None:
        files = self.server.models.get(model)
        if files is None:
            self._json(404, {"Code": 10010205001, "Message": "not found", "Success": False})
        elif rest == ["repo", "files"]:
            listing = [
                {
                    "Name": name.rpartition("/")[2],
                    "Path": name,
                    "Size": len(content),
                    "Type": "blob",
                    "Revision": COMMIT,
                    "Sha256": hashlib.sha256(content).hexdigest(),
                }
                for name, content in files.items()
            ]
            self._json(200, {"Code": 200, "Success": True, "Data": {"Files": listing}})
        elif rest == ["repo"] and "FilePath" in query:
            self._file(model, query["FilePath"])
        elif rest == ["revisions"]:
            branches = [{"Revision": "master", "CreatedAt": 1}]
            self._json(200, {"Code": 200, "Success": True, "Data": {"RevisionMap": {"Branches": branches, "Tags": []}}})
        else:
            self._json(200, {"Code": 200, "Success": True, "Data": {"Name": model}})

    def _file(self, model: str, name: str) -> None:
        content = self.server.models.get(model, {}).get(name)
        if content is None:
            self._json(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut_after
        if cut is not None and len(content) > cut and name not in self.server.cut:
            self.server.cut.add(name)
            self.wfile.write(content[start : start + cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

"""A local server that speaks the OpenAI protocol and answers from the rule critic, or misbehaves by a script.

As a program: `python tests/scripted_critic.py --port 8000` serves until it is stopped, and with a command
after its options for as long as that runs ({url} in it becomes the server's address). It stands for an LLM
where its answers should make sense; nothing in it is the code under test but the rule critic.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from nsft_exp import config as configs
from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.rule import Rule
from nsft_exp.keys import digest
from nsft_exp.records import Preference, Sample, to_json


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: Any = None
    """JSON, or bytes that are sent as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """How long it thinks first."""
    cut: int | None = None
    """Close the connection after so many bytes of the body."""


Script = Callable[[dict[str, Any], int], Answer]


def completion(
    text: str | None, finish: str = "stop", model: str = "scripted", **message: Any
) -> dict[str, Any]:
    """The body of a reply with one choice; its token counts are its words."""
    content = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 100, "completion_tokens": len((text or "").split()), "total_tokens": 0}
    choice = {"index": 0, "message": content, "finish_reason": finish}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def rule_critic() -> Callable[[dict[str, Any]], str]:
    """Return the function from a request's body to the rule critic's reply."""
    categories = yaml.safe_load((configs.folder("conf") / "codebook" / "full.yaml").read_text("utf-8"))
    rule = Rule(str(configs.PACKAGE / "toy" / "lexicon.yaml"), Codebook(categories["categories"]))

    def reply(body: dict[str, Any]) -> str:
        data = json.loads(body["messages"][1]["content"])
        key = digest(data)[:12]
        sample = Sample(key, None, data["question"], data["chosen"])
        pair = (sample, Preference(key, "ok", data["chosen"], data["rejected"]))
        (correction,) = rule.corrections([pair])
        errors = [{"category": e.category, "wrong": e.wrong, "right": e.right} for e in correction.errors]
        return json.dumps({"errors": errors, "dialogue": to_json(correction.dialogue)})

    return reply


def sensible(seconds: float = 0.0) -> Script:
    """The script that answers every request as the rule critic does, after so many seconds."""
    reply = rule_critic()
    return lambda body, number: Answer(body=completion(reply(body)), seconds=seconds)


class Server(ThreadingHTTPServer):
    """Serves a script on a free port of this machine and keeps what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Script, port: int = 0, models: tuple[str, ...] = ("scripted",)) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script, self.models = script, models
        self.lock = threading.Lock()
        self.asked: list[str] = []
        """The user's message of every request, in order of arrival."""
        self.answered: list[str] = []
        """Those whose answer was sent whole."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        """The authorization headers."""
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0

    @property
    def base_url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that goes away (killed, or out of patience) is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": ""} for name in self.server.models
        ]
        self._send(Answer(body={"object": "list", "data": models}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, words = self.server, body["messages"][-1]["content"]
        with server.lock:
            number = len(server.asked)
            server.asked.append(words)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization", ""))
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            answer = server.script(body, number)
            time.sleep(answer.seconds)
            self._send(answer)
            with server.lock:
                server.answered.append(words)
        finally:
            with server.lock:
                server.in_flight -= 1

    def _send(self, answer: Answer) -> None:
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: answer.cut])
        self.wfile.flush()
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(script: Script, **options: Any) -> Iterator[Server]:
    """A server of this script while the block runs."""
    server = Server(script, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def noting(script: Script, file: Path) -> Script:
    """The same script, which first appends each request's key, by which a ledger names it, to a file."""

    def noted(body: dict[str, Any], number: int) -> Answer:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(digest(body)[:24] + "\n")
        return script(body, number)

    return noted


def main() -> int:
    """Serve the rule critic until the process is stopped, or its command ends; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it thinks about each request")
    parser.add_argument("--log", type=Path, help="a file that takes the key of every request")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run beside it; {url}: its address")
    options = parser.parse_args()
    script = sensible(options.seconds)
    script = noting(script, options.log) if options.log else script
    if options.command:
        with serving(script, port=options.port) as beside:
            words = [word.replace("{url}", beside.base_url) for word in options.command]
            return subprocess.run(words).returncode
    server = Server(script, options.port)
    print(f"{Path(__file__).name}: {server.base_url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    configs.register_resolvers()
    sys.exit(main())

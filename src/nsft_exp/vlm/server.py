"""Models behind servers of the OpenAI protocol, as answerers: `vlm.engine=server` and `vlm=server`."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.images import open_image
from nsft_exp.interfaces import Address
from nsft_exp.keys import digest
from nsft_exp.llm.asking import Call
from nsft_exp.llm.budget import Budget, Spent
from nsft_exp.llm.client import Client
from nsft_exp.llm.envelope import Envelope, read_envelope
from nsft_exp.llm.ledger import Ledger
from nsft_exp.records import NO_ANSWER, Reply, Request, UserError

if TYPE_CHECKING:
    from nsft_exp.interfaces import LoadedVLM
    from nsft_exp.vlm.hf import HFModel
    from nsft_exp.vlm.loaded import LoadedHF

CHUNK = 256
"""Requests that are in hand at once, their pictures among them."""
IMAGE_TOKENS = 8192
"""The most that an image is taken to cost, for the budget."""
KEYS = (
    *("base_url", "model", "key_env", "cache", "seeded", "check_prompts", "extra", "budget", "prices"),
    *("concurrency", "attempts", "backoff", "timeout"),
)


class ServerVLM:
    """A model that is only known by its server (the node `server`): it answers, and cannot be trained.

    `exif` says whether a picture is turned as its EXIF orientation says before it is sent, as PNG.
    Constructing it sends nothing.
    """

    def __init__(self, server: Mapping[str, Any], exif: str = "apply") -> None:
        self.server, self.exif = server, exif
        checked(server)

    def load(self, adapters: Sequence[Path] = ()) -> LoadedVLM:
        """Raise UserError: the weights are not here."""
        raise UserError("vlm=server: the model is on a server and cannot be trained here; take method=base")

    def check_served(self, adapters: Sequence[Any]) -> None:
        """Raise UserError where the server would have to answer for a model that is trained here."""
        if adapters:
            self.load()

    def answerer(self, adapters: Sequence[Path] = ()) -> LoadedVLM:
        """Return what asks the server."""
        return ServerEngine(self.server, exif=self.exif)

    def usage(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return what the calls with these keys have cost (see Client.usage)."""
        return ServerEngine(self.server).usage(keys)

    def files(self) -> list[Path]:
        """None: the server's name for the model is all that is known of it."""
        return []


class ServerEngine:
    """Asks a server: every reply is kept in `cache` before it is used, and never asked for again.

    With `model` and `check_prompts` the prompt's ids that the server read must be training's (vLLM returns
    them). Raises UserError for settings that are wrong.
    """

    def __init__(self, server: Mapping[str, Any], model: HFModel | None = None, exif: str = "apply") -> None:
        checked(server)
        self.server, self.model, self.exif = server, model, exif
        self.loaded: LoadedHF | None = None
        how = {key: server[key] for key in ("concurrency", "attempts", "backoff", "timeout")}
        budget = Budget(server["budget"], server["prices"], where="server")
        ledger = Ledger(server["cache"], where="server.cache")
        self.client = Client(ledger, budget, server["base_url"], server["key_env"], where="server", **how)

    def address(self) -> Address:
        """Return where the model is, for a program that asks it itself."""
        key_env = self.server["key_env"]
        key = os.environ.get(key_env, "").strip() if key_env else ""
        return Address(self.client.base_url, str(self.server["model"]), key)

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        """Yield (request id, its n replies): texts and how they ended, and ids where the server tells them.

        A refusal, and a reply without a choice, is a Reply that is not `given`. None has log-probabilities.
        Raises UserError for beams, views and answer prefixes, and at the end where answers are missing (no
        server, no key, budget spent ...): one line. What came is kept, and the same requests again go on from
        there.
        """
        left = iter(requests)
        while some := list(islice(left, CHUNK)):
            for request in some:
                self._refuse(request)
            rows = self.client.answers(self.call(request, n) for request in some for n in range(request.n))
            for request in some:
                found = [next(rows) for _ in range(request.n)]
                if None not in found:
                    yield request.id, tuple(self._reply(request, row) for row in found if row)
            next(rows, None)  # past the last one: raises if any is missing

    def usage(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return what the calls with these keys have cost (see Client.usage)."""
        return self.client.usage(self.server["model"], keys)

    def call(self, request: Request, number: int) -> Call:
        """Return the request of one sample; its key hashes all that is sent, and which sample it is."""
        how = request.decoding
        body: dict[str, Any] = {
            "model": self.server["model"],
            "messages": self._messages(request),
            "max_completion_tokens": how.max_new_tokens,
            "temperature": how.temperature,
        }
        if how.temperature > 0:
            body["top_p"] = how.top_p
        if how.temperature > 0 and self.server["seeded"]:
            body["seed"] = int(digest([how.seed, request.id, number])[:8], 16)
        extra = dict(self.server["extra"] or {}) | ({"return_token_ids": True} if self._checks else {})
        body |= {"extra_body": extra} if extra else {}
        length = sum(len(turn.text.encode()) for turn in request.turns)
        bound = Spent(1, length + IMAGE_TOKENS * (request.image is not None), how.max_new_tokens)
        return Call(digest([body, request.id, number])[:24], body, digest(request.turns[0].text)[:12], bound)

    @property
    def _checks(self) -> bool:
        return self.model is not None and bool(self.server["check_prompts"])

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(request.turns):
            messages.append({"role": "assistant" if number % 2 else "user", "content": turn.text})
        if request.image is not None:
            picture = {"type": "image_url", "image_url": {"url": self._picture(request.image)}}
            messages[0]["content"] = [picture, {"type": "text", "text": messages[0]["content"]}]
        return messages

    def _picture(self, image: str) -> str:
        file = io.BytesIO()
        open_image(image, self.exif).convert("RGB").save(file, "png")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    def _reply(self, request: Request, row: dict[str, Any]) -> Reply:
        envelope = read_envelope(row["raw"])
        assert envelope is not None, f"{self.client.ledger.path}: request {row['key']}: not a reply"
        finish = _ended(envelope)
        if finish in NO_ANSWER:
            return Reply("", finish=finish, request=row["key"])
        ids = self._checked_ids(request, json.loads(row["raw"])) if self._checks else ()
        return Reply((envelope.text or "").strip(), ids, finish=finish, request=row["key"])

    def _checked_ids(self, request: Request, told: dict[str, Any]) -> tuple[int, ...]:
        """The ids of the answer, as far as the server tells them, once those of the prompt are right."""
        self._check_prompt(request, told.get("prompt_token_ids"))
        return tuple(told["choices"][0].get("token_ids") or ())

    def _check_prompt(self, request: Request, ids: list[int] | None) -> None:
        from nsft_exp.vlm.row import rows_of

        if ids is None:
            raise UserError(
                f"{self.client.base_url}: does not return the ids of its prompts (vLLM does), so that they "
                "cannot be compared with training's; server.check_prompts=false goes on without"
            )
        assert self.model is not None
        self.loaded = self.loaded or self.model.without_weights()
        ours = rows_of(self.loaded, request)[0].prompt
        if tuple(ids) != ours:
            raise UserError(
                f"request {request.id}: the server read a prompt of {len(ids)} tokens where training "
                f"writes {len(ours)} others; serve what nsft export-model writes: it has training's template"
            )

    def _refuse(self, request: Request) -> None:
        """Raise UserError for a request that the protocol has no form for."""
        what = {
            "beams (Hugging Face only)": request.decoding.num_beams != 1,
            f"view {request.view}": request.view != "clean",
            "beginning of an answer": bool(request.answer_prefix),
        }
        for name, asked in what.items():
            if asked:
                raise UserError(f"request {request.id}: a server takes no {name}; take vlm.engine=hf")


def _ended(envelope: Envelope) -> str:
    """How a server's reply ended, as `Reply.finish` says it."""
    if envelope.text is None:
        return "no_choice"
    if envelope.refusal or envelope.finish == "content_filter":
        return "refused"
    return "length" if envelope.finish == "length" else "stop"


def checked(server: Mapping[str, Any]) -> None:
    """Raise UserError for a `server` node without a model, or with keys that are none."""
    for key in server:
        if key not in KEYS:
            raise UserError(f"server.{key}: there is no such key; there are {', '.join(KEYS)}")
    if not server.get("model"):
        raise UserError("server.model has no value; give the server's name for the model (GET /v1/models)")

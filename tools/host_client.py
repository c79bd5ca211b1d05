"""Speaks to a running ComfyUI: posts a prompt, follows it on the websocket, fetches files."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import websocket  # PyPI websocket-client

Message = dict[str, Any]


class PromptRejected(Exception):
    """The host refused a prompt before running it; `body` is its JSON answer."""

    def __init__(self, body: dict):
        self.body = body
        super().__init__(json.dumps(body)[:2000])

    def sentences(self) -> list[str]:
        """What a user reads: the details of every node error."""
        return [
            f"{error['message']}: {error['details']}"
            for node in self.body.get("node_errors", {}).values()
            for error in node["errors"]
        ]


class PromptFailed(Exception):
    """A node raised while the prompt ran; `data` is the host's `execution_error` message."""

    def __init__(self, data: dict):
        self.data = data
        super().__init__(data.get("exception_message", "").strip())


class PromptInterrupted(Exception):
    """The run was cancelled."""


@dataclass
class Outcome:
    """A finished prompt: outputs by node id and every message seen on the way."""

    prompt_id: str
    outputs: dict[str, dict]
    messages: list[Message] = field(default_factory=list)


class HostClient:
    def __init__(self, url: str):
        self.url = url
        self.client_id = uuid.uuid4().hex

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict, extra_data: dict | None = None) -> str:
        """Post an API prompt and return its id; raises `PromptRejected` with the host's reasons."""
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data or {}}
        try:
            answer = self.post("/prompt", body)
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.load(error)) from None
        if answer.get("node_errors"):
            raise PromptRejected(answer)
        return answer["prompt_id"]

    def run(
        self, prompt: dict, on_message: Callable[[Message], None] = lambda _: None,
        timeout: float = 600, extra_data: dict | None = None,
    ) -> Outcome:  # fmt: skip
        """Run an API prompt to its end; `on_message` sees every JSON message of the websocket."""
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        socket = websocket.create_connection(address, timeout=timeout)
        try:
            prompt_id = self.queue(prompt, extra_data)
            messages = self._follow(socket, prompt_id, on_message)
        finally:
            socket.close()
        return Outcome(prompt_id, self._outputs(prompt_id), messages)

    def _outputs(self, prompt_id: str) -> dict[str, dict]:
        """Outputs by node; the host writes its history shortly after the last message."""
        for _ in range(100):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} never appeared in the host's history")

    def _follow(self, socket, prompt_id: str, on_message) -> list[Message]:
        messages: list[Message] = []
        while True:
            kind, payload = socket.recv_data()
            if kind != websocket.ABNF.OPCODE_TEXT:
                messages.append({"type": "preview", "data": payload})
                on_message(messages[-1])
                continue
            message = json.loads(payload)
            messages.append(message)
            on_message(message)
            data = message.get("data", {})
            if data.get("prompt_id") != prompt_id:
                continue
            if message["type"] == "execution_success":
                return messages
            if message["type"] == "execution_error":
                raise PromptFailed(data)
            if message["type"] == "execution_interrupted":
                raise PromptInterrupted(prompt_id)

    def fetch(self, result: dict) -> bytes:
        """Bytes of one saved result (`{filename, subfolder, type}`)."""
        query = urllib.parse.urlencode(
            {key: result[key] for key in ("filename", "subfolder", "type")}
        )
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return answer.read()

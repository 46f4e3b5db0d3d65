"""What of vLLM's server is open. vLLM's process imports it (`--middleware`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
OPEN = "/v1/"  # below it, vLLM asks for the token


class Guard:
    """Answers 404 but for `/v1/...` and `/health`: vLLM has other paths, such as `/invocations`,
    that answer without a token."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """One request, as ASGI has it."""
        path = scope.get("path", "")
        if scope["type"] == "http" and not path.startswith(OPEN) and path != "/health":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif scope["type"] != "websocket":
            await self.app(scope, receive, send)

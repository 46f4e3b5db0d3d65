"""Pages that are made with Gradio, served to this machine alone or to whoever has a token.

They ask nobody outside: no telemetry, no fonts or scripts from elsewhere.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio

from iad_r1.settings.stage import ServedSettings

SESSIONS = 200  # whose state is kept


@contextmanager
def serving(
    build: Callable[[], gradio.Blocks],
    stage: ServedSettings,
    user: str,
    token: str | None,
    style: str,
    most_megabytes: int,
    script: str | None = None,
) -> Iterator[str]:
    """Inside, the page is served, at the address that is given.

    Args:
        build: makes the page.
        user: the name beside the token.
        style, script: its own style sheet, and a JavaScript function that is called once it is
            there.
        most_megabytes: of a file that is dropped.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory() as place:
        os.environ["GRADIO_TEMP_DIR"] = place
        page = build()
        try:
            _, address, _ = page.launch(
                server_name=stage.host,
                server_port=stage.port,
                auth=None if token is None else (user, token),
                auth_message=f"The user is {user}, the password is the token.",
                max_file_size=f"{most_megabytes}mb",
                css=style,
                js=script,
                state_session_capacity=SESSIONS,
                prevent_thread_lock=True,
                quiet=True,
                inline=False,
                share=False,
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                footer_links=[],
            )
            yield address
        finally:
            page.close(verbose=False)


def wait(address: str, user: str, token: str | None) -> None:
    """Say where the page is, until Ctrl-C."""
    asks = f" It asks for the user {user} and the token." if token else ""
    print(f"The page is at {address} until Ctrl-C.{asks}", flush=True)
    threading.Event().wait()

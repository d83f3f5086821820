"""Headless chromium, driven through its DevTools protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
OPTIONS += " --disable-background-networking --disable-component-update --disable-sync"
OPTIONS += " --window-size=1600,1400 --remote-debugging-port=0 --no-proxy-server about:blank"


class Browser:
    """One page of a browser with its own profile in ``folder``. A context manager."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        command = [CHROMIUM, f"--user-data-dir={folder}", *OPTIONS.split()]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
        port_file = folder / "DevToolsActivePort"  # written once it listens
        assert wait_for(lambda: port_file.is_file() and "\n" in port_file.read_text(), 60)
        port = port_file.read_text().split()[0]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{port}/json") as answer:
            page = next(found for found in json.load(answer) if found["type"] == "page")
        self.socket = _connect(page["webSocketDebuggerUrl"])
        self.calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # or a new #fragment keeps the old page
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self) -> str:
        """What a reader of the page sees."""
        return self.evaluate("document.body ? document.body.innerText : ''")

    def see(self, *words: str, timeout_sec: float = 90.0) -> str:
        """Wait until the page shows all of ``words``; its text."""
        text = ""

        def shown() -> bool:
            nonlocal text
            text = self.text()
            return all(word in text for word in words)

        if not wait_for(shown, timeout_sec):
            missing = [word for word in words if word not in text]
            raise AssertionError(f"the page does not show {missing}; it shows:\n{text}")
        return text

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        _send(self.socket, json.dumps(message).encode())
        while (answer := json.loads(_receive(self.socket))).get("id") != self.calls:
            pass  # an event that nobody asked for
        assert "result" in answer, answer
        return answer["result"]


def wait_for(condition: Any, timeout_sec: float) -> bool:
    deadline = time.monotonic() + timeout_sec
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _connect(url: str) -> socket.socket:
    """A WebSocket (RFC 6455)."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
    head += f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    connection.sendall(head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += _exactly(connection, 1)
    assert b" 101 " in answer.splitlines()[0], answer
    return connection


def _send(connection: socket.socket, content: bytes) -> None:
    mask = bytes(4)  # a client has to mask; with zeros that changes nothing
    connection.sendall(struct.pack("!BBQ", 0x81, 0x80 | 127, len(content)) + mask + content)


def _receive(connection: socket.socket) -> bytes:
    """One message, of however many frames."""
    content, last = b"", False
    while not last:
        first, second = _exactly(connection, 2)
        last, size = bool(first & 0x80), second & 0x7F
        if size >= 126:
            size = int.from_bytes(_exactly(connection, 2 if size == 126 else 8), "big")
        content += _exactly(connection, size)
    return content


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        piece = connection.recv(size - len(content))
        assert piece, "the browser has closed the connection"
        content += piece
    return bytes(content)

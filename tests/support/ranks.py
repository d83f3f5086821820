"""Several ranks on one machine."""

from __future__ import annotations

import socket


def launched_by_torchrun(world_size: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world_size)]

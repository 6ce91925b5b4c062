"""The texts of files for `hmt read` and `hmt ask`: plain text, and what the `documents` extra reads (PDF, Word, HTML).

A file's content decides its kind. Knows files and bytes; no model.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from .terminal import Screen

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CONVERT = "Convert it first, such as with pandoc or LibreOffice."
# How files begin that are no text, what they are, and what to do. Some text may begin with few letters: then it is longer.
_NO_TEXT = (
    (b"\x89PNG\r\n", "a PNG picture", "Recognise its text first, such as with tesseract."),
    (b"\xff\xd8\xff", "a JPEG picture", "Recognise its text first, such as with tesseract."),
    (b"GIF8", "a GIF picture", "Recognise its text first, such as with tesseract."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.doc, .xls, .ppt)", "Save it as .docx or PDF first."),
    (b"{\\rtf", "an RTF document", _CONVERT),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first: gunzip."),
    (b"BZh", "a bzip2 archive", "Unpack it first: bunzip2."),
    (b"\xfd7zXZ\0", "an xz archive", "Unpack it first: unxz."),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive", "Unpack it first."),
    (b"\x7fELF", "a program", "Name a file with text in it."),
    (b"SQLite format 3\0", "an SQLite database", "Name a file with text in it."),
)
_ZIPS = (  # a file inside, and what the whole is
    ("xl/workbook.xml", "an Excel workbook", "Save it as CSV first."),
    ("ppt/presentation.xml", "a PowerPoint presentation", "Save it as PDF first."),
    ("content.xml", "an OpenDocument file", _CONVERT),
    ("META-INF/container.xml", "an EPUB book", _CONVERT),
)
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S)
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_UNREAD_TAGS = ("script", "style", "template", "noscript", "svg")
_BLOCK_TAGS = (
    *("title", "p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "br", "hr"),
    *("pre", "blockquote", "section", "article", "header", "footer", "figure"),
)


class Document(NamedTuple):
    """A text and the name of its file."""

    name: str
    text: str


def open_documents(names: Sequence[str], screen: Screen) -> list[Document]:
    """Read the texts of files, in order; `-` is standard input.

    Raises:
        InputError: a file is missing, unreadable, empty or of an unknown kind; the message says which and what to do.
        MissingDependencyError: a file needs the `documents` extra.
    """
    if names.count("-") > 1:
        raise InputError("standard input can be read once. Name - only once.")
    return [_document(name, _standard_input(screen) if name == "-" else _file_bytes(name)) for name in names]


def _standard_input(screen: Screen) -> bytes:
    if screen.interactive:
        screen.note("Type the text; end it with Ctrl-D on a line of its own.")
    return sys.stdin.buffer.read()


def _file_bytes(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder. Name the files in it, such as {Path(name) / '*.md'}.") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}. Check the path; hmt ask takes its question last, in quotes.") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}. Check its permissions.") from error


def _document(name: str, content: bytes) -> Document:
    shown = "standard input" if name == "-" else os.fsencode(name).decode(errors="replace")
    text = text_of(shown, content)
    if not text.strip():
        raise InputError(f"{shown} is empty. Name a file with text in it.")
    return Document(shown, text)


def text_of(name: str, content: bytes) -> str:
    """Return the text of a file's content, whose first bytes tell its kind.

    Raises:
        InputError: the content holds no text, or is damaged.
        MissingDependencyError: it needs the `documents` extra.
    """
    if content[:1024].lstrip().startswith(b"%PDF-"):
        return _read(name, "a PDF document", _pdf, content)
    if content.startswith(b"PK\3\4"):
        return _zipped(name, content)
    if _HTML.match(content) or (Path(name).suffix.lower() in _HTML_SUFFIXES and content.strip()):
        return _read(name, "a web page (HTML)", _html, content)
    return _plain(name, content)


def _plain(name: str, content: bytes) -> str:
    if content.startswith(_UTF16_MARKS):
        return content.decode("utf-16", errors="replace")
    for start, what, advice in _NO_TEXT:
        if content.startswith(start):
            raise InputError(f"{name} is {what}, not text. {advice}")
    if b"\0" in content:
        raise InputError(f"{name} is not text (it holds zero bytes). {_CONVERT}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}). Convert it first: iconv -f LATIN1 -t UTF-8 FILE, or another code."
        ) from error


def _zipped(name: str, content: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            held = set(archive.namelist())
    except zipfile.BadZipFile as error:
        raise InputError(f"{name} is a damaged ZIP file ({error}). Get it again.") from error
    if "word/document.xml" in held:
        return _read(name, "a Word document", _docx, content)
    for inside, what, advice in _ZIPS:
        if inside in held:
            raise InputError(f"{name} is {what}, not text. {advice}")
    raise InputError(f"{name} is a ZIP archive, not text. Unpack it first: unzip.")


def _read(name: str, what: str, reader: Callable[[bytes], str], content: bytes) -> str:
    """Read a kind of document by the package that knows it. Turn any error into one line."""
    try:
        text = reader(content)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{name} is {what}, which {error.name} reads. Run: pip install 'hmt-memory[documents]'"
        ) from error
    except Exception as error:  # whatever a reader meets in a damaged file
        raise InputError(f"{name} is {what} that cannot be read: {error}. Save it anew, or as text.") from error
    if not text.strip():
        raise InputError(f"{name} is {what} without text. If its pages are pictures, recognise them first, as with ocrmypdf.")
    return text


def _pdf(content: bytes) -> str:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every blemish that it reads over
    pages = pypdf.PdfReader(io.BytesIO(content)).pages
    return "\n\n".join(text for page in pages if (text := page.extract_text().strip()))


def _docx(content: bytes) -> str:
    import docx
    from docx.table import Table

    lines: list[str] = []
    for block in docx.Document(io.BytesIO(content)).iter_inner_content():
        if isinstance(block, Table):
            lines += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
        else:
            lines.append(block.text)
    return "\n\n".join(line for line in lines if line.strip())


def _html(content: bytes) -> str:
    import bs4
    from bs4.element import NavigableString

    page = bs4.BeautifulSoup(content, "html.parser")
    for tag in page.find_all(_UNREAD_TAGS):
        tag.decompose()
    for string in page.find_all(string=re.compile(r"\n")):
        if type(string) is NavigableString and string.find_parent("pre") is None:  # a comment is of another type
            string.replace_with(re.sub(r"\s+", " ", string))
    for tag in page.find_all(_BLOCK_TAGS):
        tag.insert_before("\n")
        tag.insert_after("\n")
    lines = (line.strip() for line in page.get_text().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

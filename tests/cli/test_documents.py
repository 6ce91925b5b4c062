"""What `hmt read` and `hmt ask` make of files: text, PDF, Word and HTML are read, of the rest is said what it is."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest

from hmt_memory.cli.documents import text_of
from hmt_memory.errors import InputError, MissingDependencyError

LINES = ("The notice period is three months.", "It ends with a quarter.")


def pdf(*pages: str, password: str | None = None) -> bytes:
    """A PDF with one line on each page."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()})
    for text in pages:
        page, stream = writer.add_blank_page(300, 300), DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def word() -> bytes:
    """A Word document of two paragraphs with a table between them."""
    import docx

    document = docx.Document()
    document.add_paragraph(LINES[0])
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Rent", "900"
    document.add_paragraph(LINES[1])
    written = io.BytesIO()
    document.save(written)
    return written.getvalue()


def zipped(*names: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name in names:
            archive.writestr(name, "something")
    return written.getvalue()


def test_a_pdf_is_read_page_by_page() -> None:
    assert text_of("lease.pdf", pdf(*LINES)) == "\n\n".join(LINES)


def test_a_word_document_is_read_with_its_tables() -> None:
    assert text_of("lease.docx", word()) == f"{LINES[0]}\n\nRent\t900\n\n{LINES[1]}"


@pytest.mark.parametrize("name", ["page.html", "standard input"])
def test_a_web_page_is_read_without_its_markup(name: str) -> None:
    page = (
        "<!DOCTYPE html><html><head><title>T</title><meta charset='latin-1'></head><body><script>if (a < b) {}</script>"
        "<!-- not\nread --><h1>Caf\xe9</h1>"
        "<p>The <b>notice</b> period\n is &lt;three&gt; months.</p><ul><li>one</li><li>two<br>half</li></ul>"
    )
    assert text_of(name, page.encode("latin-1")).split("\n") == [
        *("T", "", "Caf\xe9", "", "The notice period is <three> months.", "", "one", "", "two", "", "half")
    ]


def test_text_that_mentions_tags_stays_as_it_is() -> None:
    for text in ("Write <html> first.", "BZ is a code", "# <p>\n", "%PDF is a format", "PK"):
        assert text_of("notes.md", text.encode()) == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "is a PNG picture, not text. Recognise"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG picture"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "is an old Office document"),
        (rb"{\rtf1\ansi text}", "is an RTF document"),
        (zipped("xl/workbook.xml"), "is an Excel workbook, not text. Save it as CSV"),
        (zipped("mimetype", "META-INF/container.xml"), "is an EPUB book"),
        (zipped("a.txt"), "is a ZIP archive, not text. Unpack"),
        (b"PK\3\4 and no more", "is a damaged ZIP file"),
        (b"%PDF-1.7\nand no more", "is a PDF document that cannot be read"),
        (zipped("word/document.xml"), "is a Word document that cannot be read"),
        (pdf(), "is a PDF document without text. If its pages are pictures"),
        (pdf(LINES[0], password="secret"), "is a PDF document that cannot be read: File has not been decrypted"),
        (b"\x00\x01", "is not text (it holds zero bytes)"),
        ("Caf\xe9".encode("latin-1"), "is not UTF-8 text (byte 3)"),
    ],
)
def test_what_cannot_be_read_is_called_what_it_is(content: bytes, said: str) -> None:
    with pytest.raises(InputError) as error:
        text_of("a-file", content)
    message = str(error.value)
    assert message.startswith(f"a-file {said}") and message[-1] == "." and "\n" not in message


@pytest.mark.parametrize(("package", "content"), [("pypdf", pdf("a")), ("docx", word()), ("bs4", b"<html><p>a</p>")])
def test_without_its_reader_the_extra_is_named(package: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package} reads\. Run: pip install 'hmt-memory\[documents\]'"):
        text_of("a-file", content)


def test_commands_read_documents(tmp_path: Path) -> None:
    from terminal_input import typing_screen

    from hmt_memory.cli.documents import open_documents

    (tmp_path / "lease.pdf").write_bytes(pdf(*LINES))
    (document,) = open_documents([str(tmp_path / "lease.pdf")], typing_screen())
    assert document.name.endswith("lease.pdf") and document.text.startswith(LINES[0])

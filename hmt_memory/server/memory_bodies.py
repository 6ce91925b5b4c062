"""Bodies of calls about sessions and corpora, and of what they are answered with. Knows no route."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .bodies import ChatMessage
from .description import shows

Id = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]  # what a database holds

# --- what is sent -------------------------------------------------------------------------------------------------------


class New(BaseModel):
    """A session or corpus to be made."""

    model_config = shows({"name": "alice"})

    name: str


class Said(BaseModel):
    """Messages to be added."""

    model_config = shows({"messages": [{"role": "user", "content": "Ida grows roses."}]})

    messages: list[ChatMessage] = Field(min_length=1)


class Fork(BaseModel):
    """A fork to be made."""

    model_config = shows({"name": "alice-what-if"})

    name: str
    upto: Id | None = None  # id of the last message that is shared; None: all are


class Attached(BaseModel):
    """Corpora that a session recalls from; those that are left out are detached."""

    model_config = shows({"corpora": ["garden"]})

    corpora: list[str]


class Retention(BaseModel):
    """What a session keeps: at most so many messages, and none that is older. Without a limit all are kept."""

    model_config = shows({"messages": 1000, "seconds": 7_776_000})

    messages: Annotated[int, Field(ge=1, lt=1 << 63)] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e11)] | None = None


class NewDocument(BaseModel):
    """A document to be added."""

    text: str = Field(min_length=1)
    name: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Documents(BaseModel):
    """Documents to be added to a corpus; those of the same name are replaced."""

    model_config = shows({"documents": [{"name": "roses.md", "text": "Roses grow in the sun."}]})

    documents: list[NewDocument] = Field(min_length=1)


# --- what comes back ----------------------------------------------------------------------------------------------------


class Named(BaseModel):
    """A session or corpus by its name."""

    name: str


class Listed(BaseModel):
    """Names of sessions or corpora."""

    object: Literal["list"]
    data: list[Named]
    has_more: bool


class Kept(BaseModel):
    """What is said of a session or corpus: counts and times."""

    name: str
    tokens: int
    segments: int
    created_at: str
    updated_at: str
    model: str | None
    memory_bits: int


class Session(Kept):
    """A session."""

    messages: int
    corpora: list[str]
    retention: dict[str, Any]


class Corpus(Kept):
    """A corpus."""

    documents: int


class StoredMessage(BaseModel):
    """A message of a session, with whatever else it was added with."""

    model_config = ConfigDict(extra="allow")

    id: int
    role: str
    content: str
    created_at: str


class Messages(BaseModel):
    """Messages of a session, in order."""

    object: Literal["list"]
    data: list[StoredMessage]
    has_more: bool


class Added(BaseModel):
    """The ids of messages that were added."""

    message_ids: list[int]


class AddedDocuments(BaseModel):
    """The ids of documents that were added."""

    document_ids: list[int]


class Forgotten(BaseModel):
    """How many messages were erased, and which sessions still have some of them."""

    forgotten: int
    also_in: list[str]


class Passage(BaseModel):
    """A passage that was recalled."""

    segment: int
    weight: float
    text: str
    source: str | None
    messages: list[int]
    document: int | None
    created_at: str


class Passages(BaseModel):
    """Passages that were recalled, by falling weight."""

    object: Literal["list"]
    data: list[Passage]
    coverage: float


class FoundText(BaseModel):
    """A message that has words of a query."""

    source: str | None
    id: int
    role: str
    text: str
    score: float
    created_at: str


class Found(BaseModel):
    """Messages that have words of a query."""

    object: Literal["list"]
    data: list[FoundText]


class StoredDocument(BaseModel):
    """A document of a corpus, without its text."""

    id: int
    name: str | None
    metadata: dict[str, Any]
    characters: int
    created_at: str


class Stored(BaseModel):
    """Documents of a corpus."""

    object: Literal["list"]
    data: list[StoredDocument]


class Verified(BaseModel):
    """What came of reading every row."""

    ok: bool
    problems: list[str]
    notes: list[str]

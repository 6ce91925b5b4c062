"""The errors this package raises on purpose. Each is an `HMTError` and also the builtin a caller would expect.

A message says what is wrong, names the field or file, and ends with what to do.
"""


class HMTError(Exception):
    """Base of all errors of this package."""


class ConfigError(HMTError, ValueError):
    """A field of `HMTConfig` is unknown, impossible, or does not fit the backbone."""


class BackboneError(HMTError, ValueError):
    """The Hugging Face model cannot serve as an HMT backbone (not a causal decoder, or an unknown output head)."""


class ModelNotFoundError(HMTError, LookupError):
    """A name, folder or file under which there are no weights."""


class CheckpointError(HMTError, ValueError):
    """An adapter folder is incomplete, damaged, foreign, or belongs to another backbone."""


class InputError(HMTError, ValueError):
    """A call received input it cannot use: wrong shape, wrong type, unknown token ids, an empty prompt."""


class BudgetError(HMTError, ValueError):
    """A part of the view is larger than its token budget."""


class StoreError(HMTError, OSError):
    """The store on disk cannot be used: not ours, made by a newer version, full, unreadable, or damaged."""


class StoreFullError(StoreError):
    """A full disk: a call could not be stored, and stored nothing."""


class StoreDamagedError(StoreError):
    """Rows on disk differ from what was written."""


class StoreInterruptedError(StoreError):
    """A database server that cannot be reached, or that ended a connection or transaction: nothing of that was stored."""


class OutcomeUnknownError(StoreError):
    """A connection lost at the end of a transaction, and no server to say whether it was stored."""


class SessionBusyError(HMTError, TimeoutError):
    """Another process or thread at work: it is writing, or has rewritten what this call was based on."""


class SessionNotFoundError(HMTError, LookupError):
    """A name under which there is no session, corpus, document or message."""


class SessionExistsError(HMTError, ValueError):
    """A name that is taken."""


class ModelMismatchError(HMTError, ValueError):
    """A memory made by another model: its embeddings mean nothing to this one."""


class AnswererError(HMTError, ConnectionError):
    """A model behind an address that cannot be reached, lets nobody in, or breaks off."""


class MissingDependencyError(HMTError, ImportError):
    """An optional package that this call needs and that is not installed."""


class ProcessLostError(HMTError, ConnectionError):
    """A run on several devices of which another process has ended."""

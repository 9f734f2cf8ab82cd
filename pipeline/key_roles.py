"""What keys of the gateway may do. Apart, so that the command line's help loads nothing else."""

from __future__ import annotations

from enum import StrEnum


class KeyRole(StrEnum):
    """What a key of the gateway lets its holder do."""

    READ = "read"  # read what the key's owner has
    SUBMIT = "submit"  # upload, create, cancel, retry and chat besides
    ADMIN = "admin"  # all of it, for every owner's files and batches

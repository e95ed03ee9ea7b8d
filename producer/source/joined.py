"""Several sources read as one: shards and keys of the further ones begin with their source's name and a colon."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from producer.source.shard import RawSample, Reader, Shard, SourceError

_COLON = ":"


class Joined:
    """The first source, whose shards are called as if it were alone, and others by name."""

    def __init__(self, first: Reader, others: Mapping[str, Reader]) -> None:
        self._first, self._others = first, dict(others)

    def shards(self) -> list[Shard]:
        """Those of the first source, then the others'; SourceError if one of them has nothing to read."""
        found = list(self._first.shards())
        taken = next((shard.name for shard in found if split_name(shard.name, self._others)[0]), "")
        if taken:
            raise SourceError(
                f"source.path: the name {taken!r} begins like the shards of source.also.{taken.partition(_COLON)[0]}; "
                "rename that source"
            )
        for name, reader in self._others.items():
            try:
                mine = reader.shards()
            except SourceError as error:
                raise SourceError(str(error).replace("source.path:", f"source.also.{name}.path:", 1)) from None
            found += [shard._replace(name=f"{name}{_COLON}{shard.name}") for shard in mine]
        return found

    def samples(self, shard: Shard) -> Iterator[RawSample]:
        """Those of the shard's own source."""
        name, inner = split_name(shard.name, self._others)
        if not name:
            yield from self._first.samples(shard)
            return
        for sample in self._others[name].samples(shard._replace(name=inner)):
            yield replace(sample, key=f"{name}{_COLON}{sample.key}", shard=shard.name)

    def read(self, shard: str, member: str, offset: int, size: int) -> bytes:
        """From the shard's own source."""
        name, inner = split_name(shard, self._others)
        return (self._others[name] if name else self._first).read(inner, member, offset, size)


def split_name(shard: str, others: Mapping[str, object]) -> tuple[str, str]:
    """The name among `others` of the source that `shard` is of, "" for the first, and what that source calls it."""
    name, colon, inner = shard.partition(_COLON)
    return (name, inner) if colon and name in others else ("", shard)

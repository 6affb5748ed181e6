"""Messages as JSON for scripts: proto field names, every field present, all integers as integers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from google._upb import _message as upb
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    # The type stubs know two implementations of descriptors.
    AnyDescriptor: TypeAlias = Descriptor | upb.Descriptor
    AnyField: TypeAlias = FieldDescriptor | upb.FieldDescriptor

Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | int | float | bool | None"

#: What protobuf's JSON writes as text, because JavaScript could not hold it. Scripts want numbers.
_LONG = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


def to_json(message: Message, indent: int | None = 2) -> str:
    """The message as JSON; on one line with ``indent`` None."""
    return dump(to_plain(message), indent)


def dump(value: Plain, indent: int | None = 2) -> str:
    """JSON of what ``to_plain`` made, or of a part of it."""
    return json.dumps(value, indent=indent, ensure_ascii=False)


def to_plain(message: Message) -> dict[str, Plain]:
    """The message as dictionaries and lists. Spans are texts such as ``15s``, enumerations their full names.

    Only fields that can be absent, and are, are left out.
    """
    fields: dict[str, Plain] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_integers(fields, message.DESCRIPTOR)


def _with_integers(fields: dict[str, Plain], described: AnyDescriptor) -> dict[str, Plain]:
    return {name: _convert(value, described.fields_by_name[name]) for name, value in fields.items()}


def _convert(value: Plain, field: AnyField) -> Plain:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        return {key: _convert(item, inner) for key, item in value.items()} if isinstance(value, dict) else value
    if isinstance(value, list):
        return [_convert(item, field) for item in value]
    if isinstance(value, dict) and kind is not None:
        return _with_integers(value, kind)
    if isinstance(value, str) and field.cpp_type in _LONG:
        return int(value)
    return value

"""What reflection looks names up in."""

from __future__ import annotations

from google.protobuf import descriptor, descriptor_pool


class Symbols:
    """The default pool, which finds files by message, enumeration and service; here also by the name of a method.

    Its methods are those of a ``DescriptorPool`` that the reflection servicer calls, under the pool's own names.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileByName(self, file_name: str) -> descriptor.FileDescriptor:
        """As the pool's."""
        return self._pool.FindFileByName(file_name)

    def FindFileContainingSymbol(self, symbol: str) -> descriptor.FileDescriptor:
        """As the pool's, and for methods. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            return self._pool.FindServiceByName(service).methods_by_name[method].containing_service.file

    def FindMessageTypeByName(self, full_name: str) -> descriptor.Descriptor:
        """As the pool's."""
        return self._pool.FindMessageTypeByName(full_name)

    def FindExtensionByNumber(self, message: descriptor.Descriptor, number: int) -> descriptor.FieldDescriptor:
        """As the pool's."""
        return self._pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: descriptor.Descriptor) -> list[descriptor.FieldDescriptor]:
        """As the pool's."""
        return self._pool.FindAllExtensions(message)

"""What the processes of a request hold on a device before they have the lease they ask for.

It is there already, so it must not stand in the request's own way; for everybody else it is as taken as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from arbiter_sidecar.ledger.leases import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Bytes of one request's processes on one device that no living lease accounts for.

    Attributes:
        guest_bytes: What was measured of those that never had a lease here, or have none any more.
        foreign_bytes: What of that counts as foreign use.
        leases: Ended leases all of whose processes the request names: what is held for these is its own.
    """

    guest_bytes: int = 0
    foreign_bytes: int = 0
    leases: tuple[Lease, ...] = ()

    @property
    def charged_bytes(self) -> int:
        """What of it the books keep from everybody: foreign use and residue."""
        return self.foreign_bytes + sum(lease.residue_bytes for lease in self.leases)

    @property
    def seen_bytes(self) -> int:
        """What of it was measured."""
        return self.guest_bytes + sum(min(lease.residue_bytes, lease.measured_bytes or 0) for lease in self.leases)

    @property
    def present_bytes(self) -> int:
        """What must be taken to be there: what was measured, and what is still held for the ended leases."""
        return self.guest_bytes + sum(lease.residue_bytes for lease in self.leases)


#: Of a request whose processes hold nothing here, or of whom too little is known.
NOTHING = Own()

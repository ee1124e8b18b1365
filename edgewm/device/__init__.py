"""Where a bundle is timed: here, or on a device over ssh. `place` is the way in; nothing is installed on a device."""

from .address import LOCAL, Address, parse_address
from .place import Place, place
from .ssh import Connection, connect

__all__ = ["LOCAL", "Address", "Connection", "Place", "connect", "parse_address", "place"]

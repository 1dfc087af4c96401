"""Object stores (``s3://``, ``gs://``) through obstore: whole objects, conditional writes, and patience.

A store that throttles (429, 503 SlowDown) is waited for, and so is one that has answered this process before and is
out of reach now. An object appears whole or not at all: an upload that is broken off is aborted. Every error is an
OSError of one line.
"""

from limrank.stores.clients import filesystem as filesystem
from limrank.stores.location import Location as Location
from limrank.stores.location import is_store as is_store
from limrank.stores.store import Stat as Stat
from limrank.stores.store import Store as Store
from limrank.stores.store import Version as Version
from limrank.stores.store import patience as patience
from limrank.stores.store import store_of as store_of

"""Files on disk and in object stores, and leases on them."""

"""Kind ``product_keys``: Memory+ (arXiv 2412.09764) over product keys (arXiv 1907.05242)."""

from __future__ import annotations

from moc.model.memory.seam import Kind


class ProductKeys(Kind):
    row_name = "value"

"""The columns of captions, beside the status of a row."""

import pyarrow as pa

from capmix.caption.settings import CaptionSettings
from capmix.settings.base import defaults_of

FIELDS = [
    ("k", pa.int32()),
    ("text", pa.string()),
    ("finish", pa.string()),
    ("flags", pa.list_(pa.string())),
    ("image_hash", pa.uint64()),
]
NEEDED = FIELDS[:-1]  # what a part has to have; parts of capmix 0.1 know no hashes
DEFAULTS = defaults_of(CaptionSettings)
BY_PEOPLE = "capmix view"  # the model that markers of edited captions name

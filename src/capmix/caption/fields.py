"""The columns of captions, in addition to the status columns."""

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
NEEDED = FIELDS[:-1]  # required columns; parts written by capmix 0.1 have no image_hash
DEFAULTS = defaults_of(CaptionSettings)
BY_PEOPLE = "capmix view"  # the model named in the markers of edited captions

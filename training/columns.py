"""Which columns of a data set hold image and class, if their types are ambiguous. Free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Column names in parquet and CSV; in WebDataset, the image's extension and the key in its JSON.

    Attributes:
        image, label: None takes the only one that fits.
    """

    image: str | None = None
    label: str | None = None


IMAGE_COLUMN_HELP = "Column with the images or their paths; for WebDataset their extension. Default: found by its type."
LABEL_COLUMN_HELP = "Column with the classes; for WebDataset the key in its JSON. Default: the only one that fits."

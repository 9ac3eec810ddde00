"""Which columns of a data set hold image and class, where its types leave more than one. Free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Names of columns of parquet and CSV; of WebDataset the image's extension and the key of its JSON.

    Attributes:
        image, label: None takes the only one that fits.
    """

    image: str | None = None
    label: str | None = None


IMAGE_COLUMN_HELP = "Column with the images, or with their paths; of WebDataset their extension. Default: by its type."
LABEL_COLUMN_HELP = "Column with the classes; of WebDataset the key of its JSON. Default: the only one that fits."
